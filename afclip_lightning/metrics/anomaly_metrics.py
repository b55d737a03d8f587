"""The metrics of one category as a torchmetrics state."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn
from torchmetrics.utilities.distributed import gather_all_tensors

from afclip_lightning.metrics.histogram import BINS, ScoreCounts, ScoreHistogram, exact_counts, wide_range
from afclip_lightning.metrics.histogram import region_weight as weight_of
from afclip_lightning.metrics.pro import DEFINITIONS, ProDefinition, label_regions
from afclip_lightning.metrics.result import Result, result_of
from afclip_lightning.metrics.scores import FLOAT32, FLOAT64, ROUNDED, Array, ranked, to_tensor
from afclip_lightning.results import TOLERANCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WEIGHTS = "anomalous_weights"  # float64 whatever the scores are: whole numbers up to 2^53
LISTS = ("normal_images", "anomalous_images", "normal_pixels", "anomalous_pixels", WEIGHTS)


class NotFiniteError(ValueError):
    """A score or a map holds NaN or infinity."""


class AnomalyMetrics(Metric):
    """Image and pixel metrics of one category. They are streamed: memory does not grow with the number of pixels.

    Scores are ranked in float32. From the first score that float32 cannot represent, they are ranked in float64. Whole
    numbers beyond 2^53 may become equal even there. The error bounds then treat every score as rounded.

    Pixel scores are counted in bins (see `ScoreHistogram`). The error of binning has a proven bound, and `compute`
    warns if the bound exceeds the tolerance. Image scores are kept and ranked exactly. The result does not depend on
    the order of the images, their batches or their processes. Maps and metric must be on the same device.

    Args:
        bins: Largest number of scores that are distinguished, 2^10 to 2^22. A state takes up to `48 * bins` bytes.
        exact: Keep and sort all pixel scores instead of binning them. Memory is O(pixels), and there is no error.
        fpr_limit: Integration limit of `pixel_pro`, in (0, 1]. The limit of `pixel_pro_05` is 0.05.
        pro_definition: Definition of `pixel_pro`: `exact` or, with `exact=True` only, another definition of `pro`.
        tolerance: Largest error bound without a warning.

    Raises:
        ValueError: If an argument is out of range.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    lowest: Tensor
    highest: Tensor
    counts: Tensor
    precision: Tensor
    unmasked: Tensor
    unscored: Tensor
    normal_images: list[Tensor]
    anomalous_images: list[Tensor]
    normal_pixels: list[Tensor]
    anomalous_pixels: list[Tensor]
    anomalous_weights: list[Tensor]

    def __init__(
        self,
        bins: int = BINS,
        exact: bool = False,
        fpr_limit: float = 0.3,
        pro_definition: ProDefinition = "exact",
        tolerance: float = TOLERANCE,
    ) -> None:
        super().__init__()
        if not 2**10 <= bins <= 2**22:
            raise ValueError(f"bins must be in 2^10 ... 2^22, got {bins}")
        if not 0 < fpr_limit <= 1:
            raise ValueError(f"fpr_limit must be in (0, 1], got {fpr_limit}")
        if not tolerance >= 0:
            raise ValueError(f"tolerance must be in [0, infinity), got {tolerance}")
        if pro_definition not in DEFINITIONS:
            raise ValueError(f"pro_definition must be in {{{', '.join(DEFINITIONS)}}}, got {pro_definition!r}")
        if pro_definition != "exact" and not exact:
            raise ValueError(f"pro_definition {pro_definition!r} needs exact=True: its thresholds fall inside bins")
        self.bins, self.exact, self.fpr_limit = bins, exact, fpr_limit
        self.pro_definition, self.tolerance = pro_definition, tolerance
        nothing = ScoreHistogram.empty(bins)
        self.add_state("lowest", torch.tensor(nothing.lowest), dist_reduce_fx="min")
        self.add_state("highest", torch.tensor(nothing.highest), dist_reduce_fx="max")
        self.add_state("counts", nothing.counts, dist_reduce_fx="sum")
        self.add_state("precision", torch.tensor(FLOAT32), dist_reduce_fx="max")
        self.add_state("unmasked", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("unscored", torch.tensor(0), dist_reduce_fx="sum")
        for state in LISTS:
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(
        self,
        anomaly_map: Array,
        mask: Array,
        pred_score: Array | None = None,
        label: Array | None = None,
        mask_known: Array | None = None,
        region_area: Array | None = None,
        names: Sequence[str] | None = None,
        allow_empty_mask: bool = False,
        region_weight: Tensor | None = None,
        inside: Array | None = None,
    ) -> None:
        """Adds a batch. A batch that is refused leaves the state as it was.

        Args:
            anomaly_map: `[B, H, W]`, pixel scores of any numeric type, finite, higher = more anomalous. H and W may
                differ from batch to batch.
            mask: `[B, H, W]`, any non-zero value is anomalous.
            pred_score: `[B]`, image scores, finite. Without them there are no image metrics.
            label: `[B]`, 1 = anomalous, 0 = normal. By default, an image is anomalous if its mask is not empty.
            mask_known: `[B]`, bool; `False` where an anomalous image has no mask. It is ignored for normal images. All
                masks are known by default.
            region_area: `[B, H, W]`, int32, `region_areas` of each mask, on the device of the maps, where a loader has
                computed them already. They are computed here by default.
            names: Names of the B images in error messages.
            allow_empty_mask: Accept an anomalous image whose known mask is empty. Resizing can empty a mask.
            region_weight: `[B, H, W]`, int64, weight of each anomalous pixel in PRO, in units of `histogram.REGION`, on
                the device of the maps. It is `REGION / area` by default. See `spro`.
            inside: `[B, H, W]`, bool, the pixels that are evaluated; all by default. Masks are ignored elsewhere, and
                `region_area` must be that of the remaining parts.

        Raises:
            ValueError: If shapes do not fit, a score is not finite, a label is neither 0 nor 1 or disagrees with its
                mask. The message names the image.
        """
        given = {"anomaly_map": anomaly_map, "mask": mask, "region_area": region_area, "inside": inside}
        given |= {"pred_score": pred_score, "label": label, "mask_known": mask_known}
        tensors = {key: to_tensor(key, value) for key, value in given.items() if value is not None}
        _check_shapes(tensors, names)
        (maps, precision), masks = ranked(tensors["anomaly_map"]), tensors["mask"]
        if maps.device != self.device:
            raise ValueError(f"the maps are on {maps.device} and this metric is on {self.device}: move one of them")
        counted = tensors["inside"].bool() if inside is not None else None
        if counted is not None:
            masks = masks.where(counted.to(masks.device), masks.new_zeros(()))
        marked = masks.flatten(1).any(1).cpu()
        labels = tensors.get("label", marked).cpu()
        anomalous = labels == 1
        known = tensors.get("mask_known", torch.ones_like(marked)).cpu().bool()
        extremes = torch.stack([maps.flatten(1).amin(1), maps.flatten(1).amax(1)])  # NaN if there is one
        _refuse(~extremes.isfinite().all(0), names, "its anomaly map has NaN or infinite values", NotFiniteError)
        _refuse((labels != 0) & ~anomalous, names, "its label is neither 0 nor 1")
        _refuse(marked & ~anomalous, names, "its label is 0 (normal), but its mask is not empty")
        if not allow_empty_mask:
            _refuse(anomalous & known & ~marked, names, "its label is 1 (anomalous), but its mask is empty")

        if "pred_score" in tensors:
            scores, of_scores = ranked(tensors["pred_score"])
            _refuse(~scores.isfinite(), names, "its image score is not finite", NotFiniteError)
            precision = max(precision, of_scores)
            scores, at = scores.to(self.device), anomalous.to(self.device)
            self.normal_images.append(scores[~at])
            self.anomalous_images.append(scores[at])
        else:
            self.unscored = self.unscored + len(maps)
        usable = known | ~anomalous
        self.unmasked = self.unmasked + int((~usable).sum())

        areas = tensors["region_area"] if "region_area" in tensors else label_regions(masks)
        areas, weights = areas.to(maps.device), region_weight
        if counted is not None or not usable.all():
            at = usable.to(maps.device)
            if counted is not None:
                at = at[:, None, None] & counted.to(maps.device)
            maps, areas, weights = maps[at], areas[at], None if weights is None else weights[at]
        histogram = self._histogram()
        if precision > FLOAT32:
            histogram.to_float64()
        if self.exact:
            defect = areas > 0
            self.normal_pixels.append(maps[~defect])
            self.anomalous_pixels.append(maps[defect])
            weight = weight_of(areas[defect]) if weights is None else weights[defect]
            self.anomalous_weights.append(weight.double())
        else:
            histogram.add(maps, areas, weights)
        self._set_histogram(histogram)
        if precision == ROUNDED:
            self.precision = torch.tensor(ROUNDED, device=self.device)

    def compute(self) -> dict[str, float]:
        """Returns the metrics that are defined, each in [0, 1]. Warns if an error bound exceeds the tolerance.

        Returns:
            `image_auroc`, `image_ap`, `image_f1_max`: absent unless there are normal and anomalous images and all have
            scores. `pixel_ap`, `pixel_auroc`, `pixel_f1_max`, `pixel_pro`, `pixel_pro_05`: over the pixels of all
            images; absent unless there are normal and anomalous pixels and the mask of every anomalous image is known.
        """
        result = self.result()
        over = [f"{key} by up to {b:.1e}" for key, b in result.error_bounds.items() if b > self.tolerance]
        if over:
            rank_zero_warn(
                f"Binning may have moved {', '.join(over)}: over the tolerance of {self.tolerance:g}. Use exact=True, "
                f"or more than {self.bins} bins."
            )
        return result.metrics

    def result(self) -> Result:
        """Returns the metrics with their error bounds and thresholds.

        Like `image_counts` and `pixel_counts`, it covers this process only, unless it is called inside
        `with metrics.sync_context():`.
        """
        return result_of(
            self.image_counts(),
            self.pixel_counts(),
            scored=self.all_scored,
            masked=self.all_masked,
            image_bounds=self._rounded,
            pixel_bounds=self.has_bounds,
            fpr_limit=self.fpr_limit,
            definition=self.pro_definition,
        )

    @property
    def all_scored(self) -> bool:
        """Returns whether all images so far have scores."""
        return int(self.unscored) == 0

    @property
    def has_bounds(self) -> bool:
        """Returns whether binning or rounding may have moved pixel scores."""
        return not self.exact or self._rounded

    @property
    def all_masked(self) -> bool:
        """Returns whether the masks of all anomalous images so far are known."""
        return int(self.unmasked) == 0

    def image_counts(self) -> ScoreCounts:
        """Returns the counts of image scores, for the functions in `curves`."""
        return self._untied(exact_counts(_concatenate(self.normal_images), _concatenate(self.anomalous_images)))

    def pixel_counts(self) -> ScoreCounts:
        """Returns the counts of pixel scores of the images with known pixel labels."""
        if self.exact:
            pixels = _concatenate(self.normal_pixels), _concatenate(self.anomalous_pixels)
            return self._untied(exact_counts(*pixels, weights=_concatenate(self.anomalous_weights)))
        return self._untied(self._histogram().score_counts())

    @property
    def _rounded(self) -> bool:
        return int(self.precision) == ROUNDED

    def _untied(self, counts: ScoreCounts) -> ScoreCounts:
        """Returns the counts with no bin marked as tied, if rounding may have made scores equal."""
        return counts._replace(tied=np.zeros_like(counts.tied)) if self._rounded else counts

    def plot(self, axes: Sequence["Axes"] | None = None) -> tuple["Figure", Sequence["Axes"]]:
        """Returns a figure and its three axes, with the ROC, precision-recall and PRO curves of the pixels.

        Args:
            axes: Three axes to draw on; a new figure by default.

        Raises:
            UndefinedMetricError: If there is no normal or no anomalous pixel.
            ModuleNotFoundError: If matplotlib is not installed; the message says how to get it.
        """
        from afclip_lightning.metrics.plots import plot_curves

        with self.sync_context():
            counts = self.pixel_counts()
        return plot_curves(counts, self.fpr_limit, axes)

    def _histogram(self) -> ScoreHistogram:
        wide = int(self.precision) > FLOAT32
        return ScoreHistogram(int(self.lowest), int(self.highest), self.counts, self.bins, wide)

    def _set_histogram(self, histogram: ScoreHistogram) -> None:
        self.lowest = torch.tensor(histogram.lowest, device=self.device)
        self.highest = torch.tensor(histogram.highest, device=self.device)
        self.counts = histogram.counts
        if histogram.wide and int(self.precision) == FLOAT32:
            self.precision = torch.tensor(FLOAT64, device=self.device)

    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        """Adds the states of all processes. Their bins are aligned first, because torchmetrics adds equal shapes."""
        here = torch.stack([self.lowest, self.highest, self.precision])
        states = torch.stack(dist_sync_fn(here, group=process_group or self.process_group)).tolist()
        histogram, number = self._histogram(), torch.float32
        ranges = [(lowest, highest) for lowest, highest, _ in states]
        if any(precision > FLOAT32 for *_, precision in states):
            histogram.to_float64()
            number = torch.float64
            ranges = [range_ if state[2] else wide_range(*range_) for state, range_ in zip(states, ranges, strict=True)]
        histogram.widen(min(lowest for lowest, _ in ranges), max(highest for _, highest in ranges))
        self._set_histogram(histogram)
        for name in LISTS:  # flat and of one type, also in a process without images
            kind = torch.float64 if name == WEIGHTS else number
            parts = [part.flatten().to(kind) for part in getattr(self, name)]
            setattr(self, name, [torch.cat([torch.empty(0, dtype=kind, device=self.device), *parts])])
        super()._sync_dist(dist_sync_fn, process_group)

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        """Adds another state. `merge_state` and `forward` call this."""
        lowest, highest = int(incoming_state["lowest"]), int(incoming_state["highest"])
        wide = int(incoming_state["precision"]) > FLOAT32
        histogram = self._histogram()
        histogram.merge(ScoreHistogram(lowest, highest, incoming_state["counts"], self.bins, wide))
        self._set_histogram(histogram)
        merged = {"lowest": self.lowest, "highest": self.highest, "counts": torch.zeros_like(self.counts)}
        super()._reduce_states({**incoming_state, **merged})


def _concatenate(state: list[Tensor] | Tensor) -> np.ndarray:
    """Returns a list state as one array, `[n]`. torchmetrics turns the list into a tensor when it synchronises."""
    parts = [state] if isinstance(state, Tensor) else state
    return torch.cat([torch.empty(0), *(part.cpu() for part in parts)]).numpy()


def _name(names: Sequence[str] | None, index: int) -> str:
    return f"image {index} of the batch" if names is None else str(names[index])


def _refuse(bad: Tensor, names: Sequence[str] | None, reason: str, error: type[ValueError] = ValueError) -> None:
    """Raises if any of the `[B]` images is bad."""
    if bad.any():
        raise error(f"{_name(names, int(bad.nonzero()[0]))}: {reason}")


def _check_shapes(tensors: Mapping[str, Tensor], names: Sequence[str] | None) -> None:
    """Raises unless tensors of pixels are `[B, H, W]`, all others are `[B]`, and none of them is empty."""
    shape = tensors["anomaly_map"].shape
    per_pixel = {"anomaly_map", "mask", "region_area", "inside"}
    fits = [tensor.shape == (shape if key in per_pixel else shape[:1]) for key, tensor in tensors.items()]
    names_fit = names is None or (len(names),) == shape[:1]
    if len(shape) != 3 or not shape.numel() or not all(fits) or not names_fit:
        count = len(names) if names is not None else next((len(t) for t in tensors.values() if t.ndim), 0)
        listed = ", ".join(_name(names, i) for i in range(min(count, 8))) + (", ..." if count > 8 else "")
        got = ", ".join(f"{key} {[*tensor.shape]}" for key, tensor in tensors.items())
        raise ValueError(
            f"{listed or 'empty batch'}: expected anomaly_map [B, H, W], mask (and region_area, inside) of that size, "
            f"pred_score, label, mask_known [B] and B names; got {got}, {'no' if names is None else len(names)} names"
        )
