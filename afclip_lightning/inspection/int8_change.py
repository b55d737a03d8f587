"""The changes by INT8: scores, maps, AUROC and verdicts of a float32 and an INT8 model on the same images."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from afclip_lightning.data.images import read_mask_of
from afclip_lightning.inspection.int8_images import GivenImages
from afclip_lightning.inspection.predictor import Progress
from afclip_lightning.metrics import AnomalyMetrics
from afclip_lightning.results.tables import aligned
from afclip_lightning.types import Sample
from afclip_runtime.errors import UserError, shown
from afclip_runtime.inspection.calibration import FEWEST, from_normals
from afclip_runtime.inspection.inspector import Inspector
from afclip_runtime.inspection.verdict import Inspection
from afclip_runtime.thresholds import is_anomalous

Thresholds = tuple[float, float]  # of the float32 model, of the INT8 model

METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP"}
FPR = 0.01  # of the thresholds made for the comparison: the default of `calibrate`


@dataclass(frozen=True)
class ChangedVerdict:
    """An image whose verdict changes.

    Attributes:
        image: File of the image.
        scores: Scores of float32 and of INT8.
        anomalous: Verdicts of float32 and of INT8.
    """

    image: str
    scores: tuple[float, float]
    anomalous: tuple[bool, bool]


@dataclass(frozen=True)
class Change:
    """The changes by INT8 on the compared images.

    Attributes:
        calibrated_on: Number of images that the ranges come from.
        compared_on: Number of images that the models were compared on.
        held_out: Whether no compared image is among those that the ranges come from.
        source: Location of the compared images, in words.
        layers: Number of INT8 linear layers.
        size: Sizes of the float32 and the INT8 file, in bytes.
        score_spread: Distance from the 5th to the 95th percentile of the float32 scores.
        score_largest: Largest change of a score, absolute.
        score_mean: Mean change of a score, with its sign.
        map_spread: Standard deviation of the values of the float32 maps, over the pixels of all images.
        map_rms: Root mean square of the change of these values.
        map_largest: Largest absolute change of these values.
        metrics: Image AUROC, pixel AUROC and pixel AP, in [0, 1], of float32 and INT8, as far as labels define them.
        labels: Reason why a metric is missing; empty if none is.
        thresholds: Thresholds of the float32 and INT8 verdicts. `None` if no verdict was compared.
        thresholds_from: Source of the thresholds, or the reason why there is none.
        verdicts: Images whose verdict changes.
    """

    calibrated_on: int
    compared_on: int
    held_out: bool
    source: str
    layers: int
    size: tuple[int, int]
    score_spread: float
    score_largest: float
    score_mean: float
    map_spread: float
    map_rms: float
    map_largest: float
    metrics: dict[str, tuple[float, float]]
    labels: str
    thresholds: Thresholds | None
    thresholds_from: str
    verdicts: list[ChangedVerdict]

    @property
    def shares(self) -> dict[str, float]:
        """Relative changes, which `--tolerance` limits: of scores and maps by their spread, of verdicts by images."""
        shares = {
            "scores": _share(self.score_largest, self.score_spread),
            "maps": _share(self.map_rms, self.map_spread),
        }
        return shares if self.thresholds is None else shares | {"verdicts": len(self.verdicts) / self.compared_on}

    def beyond(self, tolerance: float) -> list[str]:
        """Returns the names of the shares above a tolerance. NaN counts as above."""
        return [name for name, share in self.shares.items() if not share <= tolerance]

    def to_dict(self) -> dict[str, Any]:
        """Returns the changes and their shares as plain values."""
        return {**asdict(self), "shares": self.shares}

    def table(self) -> str:
        """Returns the changes as a table, with a text on the images."""
        shares = self.shares
        lines = [("measure", "unit", "float32", "INT8", "change", "share")]
        lines += [
            (METRICS[name], "%", f"{100 * a:.2f}", f"{100 * b:.2f}", f"{100 * (b - a):+.2f}", "")
            for name, (a, b) in self.metrics.items()
        ]
        a, b = (size / 2**20 for size in self.size)
        lines += [
            ("file", "MB", f"{a:.1f}", f"{b:.1f}", "", ""),
            ("score, mean change", "score", "", "", f"{self.score_mean:+.4f}", ""),
            ("score, largest change", "score", "", "", f"{self.score_largest:.4f}", f"{shares['scores']:.3f}"),
            ("map, RMS change", "score", "", "", f"{self.map_rms:.4f}", f"{shares['maps']:.3f}"),
        ]
        if self.thresholds is not None:
            changed = f"{len(self.verdicts)} of {self.compared_on}"
            lines.append(("verdicts that change", "images", "", "", changed, f"{shares['verdicts']:.3f}"))
        held = "held out from calibration" if self.held_out else "the same ones: more images would be held out"
        return "\n".join(
            [
                *aligned(lines),
                f"Calibrated on {self.calibrated_on} images, compared on {self.compared_on}, {held} ({self.source}).",
                *filter(None, [self.labels]),
                f"Verdicts: {self.thresholds_from}.",
                *(
                    f"  {v.image}: {_word(v.anomalous[0])} ({v.scores[0]:.4f}) becomes "
                    f"{_word(v.anomalous[1])} ({v.scores[1]:.4f})"
                    for v in self.verdicts
                ),
            ]
        )


def _word(anomalous: bool) -> str:
    return "anomalous" if anomalous else "normal"


def _share(change: float, spread: float) -> float:
    """Returns a change as a share of a spread; infinite for a change without spread."""
    if spread > 0 or np.isnan(spread):
        return change / spread
    return 0.0 if change == 0 else float("inf")


@dataclass
class _Maps:
    """Sums over the inspected pixels of all maps."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    change: float = 0.0
    largest: float = 0.0

    def add(self, exact: np.ndarray, int8: np.ndarray) -> None:
        wide, difference = exact.astype(np.float64), int8.astype(np.float64) - exact
        self.count += wide.size
        self.total += float(wide.sum())
        self.squares += float((wide**2).sum())
        self.change += float((difference**2).sum())
        self.largest = float(np.max([self.largest, np.abs(difference).max()]))

    @property
    def spread(self) -> float:
        return float(np.sqrt(max(0.0, self.squares / self.count - (self.total / self.count) ** 2)))

    @property
    def rms(self) -> float:
        return float(np.sqrt(self.change / self.count))


@dataclass
class _Labels:
    """Metrics of the two models, where labels are known."""

    metrics: tuple[AnomalyMetrics, AnomalyMetrics] = field(default_factory=lambda: (AnomalyMetrics(), AnomalyMetrics()))

    def add(self, sample: Sample, pair: tuple[Inspection, Inspection], inside: np.ndarray | None) -> None:
        label, mask = sample.label, np.zeros(pair[0].anomaly_map.shape, np.uint8)
        if sample.mask_path is not None:
            mask = read_mask_of(sample.image_path, sample.mask_path, sample.mask_threshold)[0]
            if inside is not None:
                mask = mask * inside
                label = int(mask.any())  # as in `test`: normal if the mask marks only pixels outside
        for metrics, found in zip(self.metrics, pair, strict=True):
            metrics.update(
                found.anomaly_map[None],
                mask[None],
                np.array([found.score]),
                np.array([label]),
                np.array([sample.mask_known]),
                names=[str(sample.image_path)],
                inside=None if inside is None else inside[None],
            )

    def values(self) -> dict[str, tuple[float, float]]:
        exact, int8 = (metrics.compute() for metrics in self.metrics)
        return {name: (exact[name], int8[name]) for name in METRICS if name in exact}


def measure(
    exact: Inspector,
    int8: Inspector,
    given: GivenImages,
    threshold: float | None,
    layers: int,
    size: tuple[int, int],
    progress: Progress,
) -> Change:
    """Returns the changes by INT8.

    Args:
        exact: The float32 model.
        int8: The INT8 model.
        given: The images.
        threshold: Threshold of image scores, for the verdicts of both models. `None` for one threshold per model, from
            the normal images of the INT8 calibration.
        layers: Number of INT8 linear layers.
        size: Sizes of the float32 and the INT8 file, in bytes.
        progress: Wraps the loop over the images, given its items and their number, and shows its progress.

    Raises:
        UserError: An image cannot be read, or a score is not finite.
    """
    thresholds, thresholds_from = _thresholds(exact, int8, given, threshold)
    paths = [sample.image_path for sample in given.compared]
    maps, labels = _Maps(), _Labels()
    scores = np.zeros((len(paths), 2))
    pairs = progress(_both(exact, int8, paths), len(paths))
    for row, sample, pair in zip(scores, given.compared, pairs, strict=True):
        row[:] = [found.score for found in pair]
        height, width = pair[0].anomaly_map.shape
        inside = None if sample.roi is None else sample.roi.inside(height, width, sample.image_path)
        maps.add(*(found.anomaly_map if inside is None else found.anomaly_map[inside] for found in pair))
        labels.add(sample, pair, inside)
    change = np.diff(scores, axis=1)[:, 0]
    metrics = labels.values()
    low, high = np.percentile(scores[:, 0], [5, 95])
    return Change(
        calibrated_on=len(given.calibrating),
        compared_on=len(paths),
        held_out=given.held_out,
        source=given.source,
        layers=layers,
        size=size,
        score_spread=float(high - low),
        score_largest=float(np.abs(change).max()),
        score_mean=float(change.mean()),
        map_spread=maps.spread,
        map_rms=maps.rms,
        map_largest=maps.largest,
        metrics=metrics,
        labels=_missing(given, metrics),
        thresholds=thresholds,
        thresholds_from=thresholds_from,
        verdicts=[] if thresholds is None else _changed(paths, scores, thresholds),
    )


def _thresholds(
    exact: Inspector, int8: Inspector, given: GivenImages, threshold: float | None
) -> tuple[Thresholds | None, str]:
    """Returns the thresholds of both models, and a text on their source."""
    if threshold is not None:
        return (threshold, threshold), f"both at the threshold in use, {threshold:.4g}"
    if len(given.normal) < FEWEST:
        return None, f"not compared: there is no threshold, and fewer than {FEWEST} normal images to choose one"
    scores = np.array([[found.score for found in pair] for pair in _both(exact, int8, given.normal)])
    values = from_normals(scores[:, 0], FPR).value, from_normals(scores[:, 1], FPR).value
    said = f"each at its own threshold, {values[0]:.4g} and {values[1]:.4g}, from {len(scores)} normal images"
    return values, f"{said} of the calibration"


def _both(exact: Inspector, int8: Inspector, paths: Sequence[Path]) -> Iterator[tuple[Inspection, Inspection]]:
    """Yields the inspections of each image by both models.

    Raises:
        UserError: An image cannot be read, or a score is not finite.
    """
    streams = (model.stream(paths, keep_images=False) for model in (exact, int8))
    for (_, first), (_, second) in zip(*streams, strict=True):
        for outcome in (first, second):
            if isinstance(outcome, UserError):
                raise outcome
        yield first, second  # type: ignore[misc]  # neither is an error


def _changed(paths: Sequence[Path], scores: np.ndarray, thresholds: Thresholds) -> list[ChangedVerdict]:
    found = []
    for path, (exact, int8) in zip(paths, scores.tolist(), strict=True):
        anomalous = is_anomalous(exact, thresholds[0]), is_anomalous(int8, thresholds[1])
        if anomalous[0] != anomalous[1]:
            found.append(ChangedVerdict(shown(path), (exact, int8), anomalous))
    return found


def _missing(given: GivenImages, metrics: dict[str, tuple[float, float]]) -> str:
    """Returns the reason why a metric is missing; empty if none is."""
    if not given.labelled:
        return "No AUROC: the images have no labels. Put normal ones below a folder good, and anomalous ones beside it."
    if "image_auroc" not in metrics:
        return "No AUROC: the compared images are of one kind, all normal or all anomalous."
    return "" if "pixel_auroc" in metrics else "No pixel AUROC: there are no masks (ground_truth in MVTec AD's layout)."
