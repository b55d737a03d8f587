"""Thresholds from normal or labelled images, with their uncertainty, and the calibration file."""

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from afclip_runtime.engines.base import FLOAT32, GRAPH_DIGEST, INT8, PRECISION
from afclip_runtime.errors import CheckpointError, DatasetError, UserError, counted
from afclip_runtime.files import read_json, write_json
from afclip_runtime.inspection.distributions import binomial_quantile, pareto_excess
from afclip_runtime.inspection.drift import NormalScores
from afclip_runtime.thresholds import is_anomalous
from afclip_runtime.views.roi import Roi

Criterion = Literal["f1", "balanced"]
Count = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
SUFFIX = ".calibration.json"
ANY_PRODUCT = "object"  # name in prompts of a product without a name
CONFIDENCE = 0.9
FEWEST = 8
ENOUGH = 10  # normal images above the threshold from which on a quantile is better than a fit
RESAMPLES = 2000


@dataclass(frozen=True)
class Threshold:
    """A threshold, and how it was chosen.

    Attributes:
        value: Scores above it are anomalous, scores equal to it are not. See `is_anomalous`.
        scale: Distance to a typical normal value divided by log 9, the unit of `probability`. `None` without normal
            images.
        method: How it was chosen.
        n: Number of images from which it was chosen.
        fpr: False-positive rate on normal images, or on their pixels: the chosen rate, or the measured rate of a
            threshold that was chosen by another criterion. `None` without normal images.
        interval: Confidence interval of the threshold. `None` if it was fixed by hand.
        confidence: Confidence level of the interval.
    """

    value: float
    scale: Annotated[float, msgspec.Meta(gt=0)] | None
    method: Literal["quantile", "tail_fit", "few", "pixel_quantile", "f1", "balanced", "fixed"]
    n: Count
    fpr: Share | None
    interval: tuple[float, float] | None
    confidence: Share = CONFIDENCE


@dataclass(frozen=True)
class Origin:
    """Origin of a calibration, which is reported when it is used.

    Attributes:
        product: Name of the product, or `object` without a name.
        source: Folder or table of the images. Empty if the thresholds were fixed by hand.
        images: Number of images, without copies.
        date: Date and time in UTC, as `2026-01-31 14:05`.
        version: Version of afclip_lightning.
    """

    product: str
    source: str
    images: Count
    date: str
    version: str

    def __str__(self) -> str:
        images = f"{self.images} images from {self.source}" if self.source else "fixed by hand"
        return f"{self.product}, {self.date[:10]}, {images}"


@dataclass(frozen=True)
class Calibration:
    """Thresholds for one checkpoint with fixed settings.

    Attributes:
        image: Threshold of image scores.
        pixel: Threshold of the values of maps. `None` without normal images.
        checkpoint: Fingerprint of the checkpoint.
        settings: Other settings that scores depend on: tiles, category, few-shot images, features.
        origin: Product, date, images. `None` in files of earlier versions.
        good: Kept scores of normal images (`good` in the file). `None` if there were too few, or in files of earlier
            versions.
        roi: Region of interest. `None` for the whole image.
    """

    image: Threshold
    pixel: Threshold | None
    checkpoint: str
    settings: dict[str, Any]
    origin: Origin | None = None
    good: NormalScores | None = None
    roi: Roi | None = None

    def __post_init__(self) -> None:
        white = self.settings.get("white")
        if white is not None and (not isinstance(white, int) or isinstance(white, bool) or not 0 < white < 2**32):
            raise ValueError(f"settings.white: expected a whole number, got {white!r}")
        if self.settings.get("roi") != (self.roi and self.roi.fingerprint):
            raise ValueError("settings.roi: the scores were made with another region of interest than the file holds")

    def save(self, path: Path) -> None:
        """Writes the calibration atomically.

        Raises:
            UserError: The file cannot be written.
        """
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        """Reads a calibration that `save` wrote.

        Raises:
            DatasetError: The file cannot be read, or is not a calibration.
        """
        return read_json(path, cls, remedy="Calibrate again.", error=DatasetError)

    def __str__(self) -> str:
        return str(self.origin or "of an earlier version, which kept neither product nor date")

    def check(self, path: Path, checkpoint: str, settings: Mapping[str, Any]) -> None:
        """Checks that the checkpoint and the settings in use are those of the calibration.

        Args:
            path: File of the calibration, for the message.
            checkpoint: Fingerprint of the checkpoint in use.
            settings: Settings in use.

        Raises:
            CheckpointError: They differ. The message names every difference.
        """
        problems = [] if checkpoint == self.checkpoint else ["another checkpoint"]
        mine, now = (json.loads(json.dumps(values)) for values in (self.settings, settings))
        problems += [
            f"{name}: {mine.get(name)!r} when calibrated, {now.get(name)!r} now"
            for name in sorted(mine.keys() | now.keys())
            if mine.get(name) != now.get(name) and name not in ("roi", PRECISION, GRAPH_DIGEST)
        ]
        precisions = [str(values.get(PRECISION, FLOAT32)) for values in (mine, now)]
        if precisions[0] != precisions[1]:
            then, current = (precision.replace(INT8, "INT8") for precision in precisions)
            problems.append(f"{then} scores when calibrated, {current} scores now: calibrate with the {current} model")
        elif mine.get(GRAPH_DIGEST) != now.get(GRAPH_DIGEST):
            problems.append("another INT8 graph: each export with --int8 has scores of its own")
        if (regions := (mine.get("roi"), now.get("roi")))[0] != regions[1]:
            said = [f"the region of interest {region}" if region else "the whole image" for region in regions]
            problems.append(
                f"{said[0]} when calibrated, {said[1]} now (without --roi, that of the calibration is taken)"
            )
        if problems:
            raise CheckpointError(
                f"{path} does not fit the current model and settings (it is {self}):\n  " + "\n  ".join(problems) + "\n"
                "Thresholds hold only for the scores from which they were chosen. Calibrate again, or use none "
                "(--no_calibration)."
            )


def origin(product: str, source: str, images: int) -> Origin:
    """Returns the origin of a calibration that is made now."""
    import afclip_runtime

    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
    return Origin(product, source, images, now, afclip_runtime.__version__)


def check_product(name: str) -> str:
    """Returns the name of a product in the Unicode normal form C.

    Raises:
        UserError: The name cannot be part of a file name, or would not be unique there.
    """
    if not is_product(name):
        raise UserError(
            f"{name!r} cannot be part of a file name: the name of a product has at most 60 letters, digits, spaces "
            "and the signs . + - _. Name it with --product."
        )
    return unicodedata.normalize("NFC", name)


def is_product(name: str) -> bool:
    """Returns whether a text is a valid name of a product, which becomes part of a file name."""
    name = unicodedata.normalize("NFC", name)
    return re.fullmatch(r"\w(?:[\w .+-]{0,58}[\w+-])?", name) is not None and len(name.encode()) < 200


def place_of(beside: Path, product: str) -> Path:
    """Returns the path of the calibration of a product.

    Args:
        beside: Path of the calibration of the product without a name, `head.calibration.json`.
        product: Name of the product; see `check_product`.
    """
    if product == ANY_PRODUCT:
        return beside
    return beside.with_name(f"{beside.name.removesuffix(SUFFIX)}.{check_product(product)}{SUFFIX}")


def find(beside: Path, wanted: str, category: str) -> Path | None:
    """Returns the path of the selected calibration, or `None` without calibrations.

    Args:
        beside: Path of the calibration of the product without a name, which need not exist.
        wanted: Name of a product, a file, or `auto`: the calibration of the category, or the only one.
        category: Name of the product in prompts.

    Raises:
        UserError: The product has no calibration, or `auto` finds several.
    """
    there = _calibrations(beside)
    if wanted != "auto":
        is_file = wanted.endswith(".json") or Path(wanted).is_file()
        named = Path(wanted) if is_file else place_of(beside, wanted)
        if is_file or named in there:
            return named
        raise UserError(f"{named}: there is no calibration of {wanted}. {_listed(there)}")
    if category != ANY_PRODUCT and is_product(category) and place_of(beside, category) in there:
        return place_of(beside, category)
    if len(there) > 1:
        raise UserError(f"name a calibration, --calibration PRODUCT or FILE, or --no_calibration. {_listed(there)}")
    return there[0] if there else None


def _calibrations(beside: Path) -> list[Path]:
    """Returns the calibrations beside a checkpoint, without those of other checkpoints."""
    head = beside.name.removesuffix(SUFFIX)
    names = sorted(p.name for p in beside.parent.iterdir()) if beside.parent.is_dir() else []
    mine = [name for name in names if name.endswith(SUFFIX) and f"{name.removesuffix(SUFFIX)}.".startswith(f"{head}.")]
    others = {name.rpartition(".")[0] for name in names if name.endswith(".ckpt")} - {head}
    return [beside.with_name(name) for name in mine if name.removesuffix(SUFFIX) not in others]


def _listed(paths: Sequence[Path]) -> str:
    if not paths:
        return "There is none: make one with the command calibrate."
    said = []
    for path in paths:
        try:
            said.append(f"{path}: {Calibration.read(path)}")
        except UserError:
            said.append(f"{path}: cannot be read")
    return "These are there:\n  " + "\n  ".join(said)


def fingerprint(content: bytes) -> str:
    """Returns the fingerprint of a checkpoint's content, 16 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:16]


def probability(values: np.ndarray, threshold: float, scale: float) -> np.ndarray:
    """Returns scores or maps on a scale from 0 to 1, in their type: a logistic curve that is 0.5 at the threshold.

    A typical normal value gets 0.1, and a value at the same distance above the threshold 0.9. The result increases with
    the score. It is not a frequency.

    Args:
        values: Scores, of any shape.
        threshold: Threshold of the scores.
        scale: Scale of the threshold, positive.
    """
    exponent = np.clip((values - threshold) / scale, -80, 80)
    return np.asarray(1 / (1 + np.exp(-exponent)), dtype=values.dtype)


def from_normals(scores: np.ndarray, fpr: float) -> Threshold:
    """Returns the threshold that a share `fpr` of normal images will exceed.

    With enough images (`n * fpr` is at least `ENOUGH`), it is a quantile: the order statistic that a new normal image
    exceeds with a probability of at most `fpr`. Its interval is from the binomial distribution and holds for any
    distribution of scores. With fewer images, the tail is extrapolated. A generalised Pareto distribution is fitted to
    the highest fifth of the scores (at least 10, at most half of them) by probability-weighted moments, which also work
    where the likelihood has no maximum. The interval is from a bootstrap of the scores and the fitted tail.

    On samples of 8 to 500 scores from known distributions, intervals of 90 % contained the true threshold in 74 %
    (heavy tails) to 95 % of the cases, and intervals of quantiles in 91 to 95 %. For a requested rate of 1 %, the true
    rate was on average about 4 % with 8 images, 2 % with 20 to 50 and 1.1 % with 200.

    Args:
        scores: Scores of normal images, `[n]`.
        fpr: False-positive rate, in (0, 0.5].

    Raises:
        DatasetError: There are fewer than `FEWEST` images.

    Reference: Hosking and Wallis, Technometrics 29 (1987), for the fit.
    """
    require(len(scores))
    scores = np.sort(scores.astype(np.float64))
    n, above = len(scores), _exceedances(len(scores))
    if n * fpr >= ENOUGH or fpr * n >= above:
        value = scores[min(n, math.ceil((n + 1) * (1 - fpr))) - 1]
        low, high = (binomial_quantile(share, n, 1 - fpr) for share in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
        interval = float(scores[max(low, 1) - 1]), float(scores[min(high + 1, n) - 1])
        return Threshold(float(value), scale_of(value, scores), "quantile", n, fpr, interval)
    value, shape, scale = (part[0] for part in _tail(scores[None], fpr))
    rng = np.random.default_rng(0)
    drawn = rng.choice(scores[:-above], size=(RESAMPLES, n))
    beyond = rng.random(drawn.shape) < above / n
    drawn[beyond] = scores[-above - 1] + pareto_excess(rng.random(int(beyond.sum())), shape, scale)
    low, high = np.quantile(_tail(np.sort(drawn, axis=1), fpr)[0], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Threshold(float(value), scale_of(value, scores), "tail_fit", n, fpr, (float(low), float(high)))


def require(count: int, fewest: int = FEWEST) -> None:
    """Checks that there are enough normal images for a threshold.

    Raises:
        DatasetError: There are too few. The message says how many are needed.
    """
    if count < fewest:
        raise DatasetError(
            f"{counted(count, 'normal image is', 'normal images are')} too few for a threshold: at least {fewest} "
            f"different ones are needed, and {ENOUGH} divided by the false-positive rate are enough. Add normal "
            "images, or fix the threshold by hand (--threshold and --pixel_threshold)."
        )


def _exceedances(n: int) -> int:
    """Returns the number of scores in the tail of n scores."""
    return min(max(n // 5, 10), n // 2)


def _tail(scores: np.ndarray, fpr: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns threshold, shape and scale of the tail fitted to each row of `[R, n]`, sorted; `[R]` each."""
    n = scores.shape[1]
    m = _exceedances(n)
    start = scores[:, -m - 1]
    excess = scores[:, -m:] - start[:, None]
    mean = excess.mean(axis=1)
    weighted = (excess * (1 - (np.arange(1, m + 1) - 0.35) / m)).mean(axis=1)
    shape = 2 - mean / np.maximum(mean - 2 * weighted, 1e-12)
    shape = np.clip(shape, -0.5, 0.5)  # outside, the moments are not reliable
    scale = mean * (1 - shape)  # keeps the mean if the shape was clipped
    return start + pareto_excess(np.full(len(scores), fpr * n / m), shape, scale), shape, scale


def from_labels(scores: np.ndarray, anomalous: np.ndarray, criterion: Criterion) -> Threshold:
    """Returns the threshold that separates labelled images best.

    Args:
        scores: `[n]`.
        anomalous: Labels, `[n]`, bool. Both kinds must occur.
        criterion: `f1`, or `balanced` for balanced accuracy: the mean of the shares of anomalous and of normal images
            with the right verdict.

    Raises:
        DatasetError: One kind is missing.
    """
    if anomalous.all() or not anomalous.any():
        raise DatasetError("labelled images must be of both kinds, normal and anomalous. Add those that are missing.")
    value = _best(scores, anomalous, criterion)
    rng = np.random.default_rng(0)
    kinds = [np.flatnonzero(anomalous), np.flatnonzero(~anomalous)]
    found = []
    for _ in range(RESAMPLES // 4):
        chosen = np.concatenate([rng.choice(kind, len(kind)) for kind in kinds])
        found.append(_best(scores[chosen], anomalous[chosen], criterion))
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    normal = scores[~anomalous]
    fpr = float(is_anomalous(normal, value).mean())
    return Threshold(value, scale_of(value, normal), criterion, len(scores), fpr, (float(low), float(high)))


def _best(scores: np.ndarray, anomalous: np.ndarray, criterion: Criterion) -> float:
    order = np.argsort(-scores, kind="stable")
    ranked, hit = scores[order].astype(np.float64), anomalous[order]
    found, false = np.cumsum(hit), np.cumsum(~hit)
    f1, balanced = 2 * found / (found + false + found[-1]), found / found[-1] - false / false[-1]
    merit = f1 if criterion == "f1" else balanced
    below = np.append(ranked[1:], np.nextafter(ranked[-1], -np.inf))
    merit[below == ranked] = -1.0  # equal scores are on the same side
    best = int(merit.argmax())
    return float(min((ranked[best] + below[best]) / 2, np.nextafter(ranked[best], -np.inf)))  # the mean may round up


def fixed(value: float, normal: np.ndarray) -> Threshold:
    """Returns a threshold chosen by hand, with the share of normal scores `[n]` above it, if there are any."""
    share = float(is_anomalous(normal, value).mean()) if len(normal) else None
    return Threshold(value, scale_of(value, normal) if len(normal) else None, "fixed", len(normal), share, None)


def scale_of(value: float, normal: np.ndarray) -> float:
    """Returns the unit of `probability`. A typical normal score is log 9 units below the threshold, and so gets 0.1."""
    distance = abs(float(value) - float(np.median(normal))) / math.log(9)
    return max(distance, 1e-6 * max(abs(float(value)), 1.0))  # all scores may be equal
