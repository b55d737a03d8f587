"""The metrics of one category as a torchmetrics state, and their mean over categories."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from afclip_lightning.metrics import curves
from afclip_lightning.metrics.histogram import ScoreCounts, ScoreHistogram, exact_counts
from afclip_lightning.metrics.pro import pro, pro_error_bound, region_areas

Array = Tensor | np.ndarray


class AnomalyMetrics(Metric):
    """Image and pixel metrics of one category, streamed: memory does not grow with the number of pixels.

    Image scores are kept and ranked exactly. Pixel scores are counted in bins (see `ScoreHistogram`); `error_bounds`
    says what that can cost. The result does not depend on the order of the images, nor on how they are cut into batches
    or shared between processes. Maps are counted on their own device; the state is on that of the metric.

    Args:
        bits: Resolution of the bins, 10 to 24 leading bits of the float32 pattern of a score.
        exact: Keep all pixel scores and sort them instead: O(pixels) memory, for verification.
        fpr_limit: Limit of integration of `pixel_pro`, in (0, 1].

    Raises:
        ValueError: If `bits` or `fpr_limit` is out of range.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    low: Tensor
    counts: Tensor
    unknown: Tensor
    normal_images: list[Tensor]
    anomalous_images: list[Tensor]
    normal_pixels: list[Tensor]
    anomalous_pixels: list[Tensor]
    anomalous_areas: list[Tensor]

    def __init__(self, bits: int = 22, exact: bool = False, fpr_limit: float = 0.3) -> None:
        super().__init__()
        if not 10 <= bits <= 24:
            raise ValueError(f"bits must be in 10 ... 24, got {bits}")
        if not 0 < fpr_limit <= 1:
            raise ValueError(f"fpr_limit must be in (0, 1], got {fpr_limit}")
        self.bits, self.exact, self.fpr_limit = bits, exact, fpr_limit
        self.add_state("low", torch.tensor(0), dist_reduce_fx="min")
        self.add_state("counts", torch.zeros(3, 0, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("unknown", torch.tensor(0), dist_reduce_fx="sum")
        # All flat float32, the type that torchmetrics gathers from a process whose list is empty.
        for state in ("normal_images", "anomalous_images", "normal_pixels", "anomalous_pixels", "anomalous_areas"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(
        self,
        pred_score: Array,
        anomaly_map: Array,
        label: Array,
        mask: Array,
        mask_known: Array | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        """Adds a batch; a batch that is refused leaves the state as it was.

        Args:
            pred_score: `[B]`, image scores, finite, higher = more anomalous. Taken in float32, as are the maps.
            anomaly_map: `[B, H, W]`, pixel scores, finite. H and W may differ from batch to batch.
            label: `[B]`, 1 = anomalous, 0 = normal.
            mask: `[B, H, W]`, any non-zero value is anomalous; all zero where `label` is 0.
            mask_known: `[B]`, bool; `False` where an anomalous image has no mask. It means nothing for normal images.
                All known by default.
            names: What the B images are called in error messages.

        Raises:
            ValueError: If shapes do not fit, a score is not finite, a label is neither 0 nor 1, or a normal image has
                anomalous pixels. The message names the image.
        """
        scores = torch.as_tensor(pred_score).detach().float()
        maps = torch.as_tensor(anomaly_map).detach().float()
        labels, masks = torch.as_tensor(label).cpu(), torch.as_tensor(mask)
        known = torch.ones_like(labels, dtype=torch.bool) if mask_known is None else torch.as_tensor(mask_known).cpu()
        _check_shapes(scores, maps, labels, masks, known, names)
        _refuse(~scores.isfinite(), names, "its image score is not finite")
        lowest, highest = maps.flatten(1).aminmax(dim=1)  # NaN if there is one
        _refuse(~(lowest.isfinite() & highest.isfinite()), names, "its anomaly map has NaN or infinite values")
        _refuse((labels != 0) & (labels != 1), names, "its label is neither 0 nor 1")
        anomalous = labels == 1
        marked = masks.flatten(1).any(1).cpu()
        _refuse(marked & ~anomalous, names, "its label is 0 (normal), but its mask is not empty")

        scores = scores.to(self.device)
        self.normal_images.append(scores[(~anomalous).to(self.device)])
        self.anomalous_images.append(scores[anomalous.to(self.device)])
        usable = known.bool() | ~anomalous
        self.unknown = self.unknown + int((~usable).sum())

        areas = torch.zeros(maps.shape, dtype=torch.int32)
        for i in (marked & usable).nonzero().flatten().tolist():
            areas[i] = torch.from_numpy(region_areas(masks[i].cpu().numpy()))
        areas = areas.to(maps.device)
        if not usable.all():
            maps, areas = maps[usable.to(maps.device)], areas[usable.to(maps.device)]
        if self.exact:
            inside = areas > 0
            self.normal_pixels.append(maps[~inside].to(self.device))
            self.anomalous_pixels.append(maps[inside].to(self.device))
            self.anomalous_areas.append(areas[inside].to(self.device, torch.float32))  # whole numbers up to 2^24
        else:
            self._set_histogram(self._histogram() + ScoreHistogram.of(maps, areas, self.bits))

    def compute(self) -> dict[str, float]:
        """Returns the metrics that are defined, each in [0, 1].

        Returns:
            `image_auroc`, `image_ap`, `image_f1_max`: absent unless there are normal and anomalous images.
            `pixel_auroc`, `pixel_ap`, `pixel_f1_max`, `pixel_pro`: over the pixels of all images; absent unless there
            are normal and anomalous pixels and the mask of every anomalous image is known.
        """
        values: dict[str, float] = {}
        for level, counts in (("image", self.image_counts()), ("pixel", self.pixel_counts())):
            if counts.normal.any() and counts.anomalous.any():
                values[f"{level}_auroc"] = curves.auroc(counts)
                values[f"{level}_ap"] = curves.average_precision(counts)
                values[f"{level}_f1_max"] = curves.f1_max(counts)[0]
                if level == "pixel":
                    values["pixel_pro"] = pro(counts, self.fpr_limit)
        if self.unknown > 0:
            values = {key: value for key, value in values.items() if key.startswith("image")}
        return values

    def error_bounds(self) -> dict[str, float]:
        """Returns, for every pixel metric that is defined, how far binning can have moved it.

        Empty in exact mode. Like `image_counts` and `pixel_counts`, of this process only unless called inside
        `with metrics.sync_context():`.
        """
        counts = self.pixel_counts()
        if self.exact or self.unknown > 0 or not counts.normal.any() or not counts.anomalous.any():
            return {}
        return {
            "pixel_auroc": curves.auroc_error_bound(counts),
            "pixel_ap": curves.average_precision_error_bound(counts),
            "pixel_f1_max": curves.f1_max_error_bound(counts),
            "pixel_pro": pro_error_bound(counts, self.fpr_limit),
        }

    def image_counts(self) -> ScoreCounts:
        """Returns the counts of image scores, for the functions in `curves` (thresholds, for one)."""
        return exact_counts(_concatenate(self.normal_images), _concatenate(self.anomalous_images))

    def pixel_counts(self) -> ScoreCounts:
        """Returns the counts of pixel scores of the images with known pixel labels."""
        if self.exact:
            pixels = _concatenate(self.normal_pixels), _concatenate(self.anomalous_pixels)
            return exact_counts(*pixels, _concatenate(self.anomalous_areas))
        return self._histogram().score_counts()

    def _histogram(self) -> ScoreHistogram:
        return ScoreHistogram(int(self.low), self.counts, self.bits)

    def _set_histogram(self, histogram: ScoreHistogram) -> None:
        self.low, self.counts = torch.tensor(histogram.low, device=self.device), histogram.counts

    def _widen(self, low: int, high: int) -> None:
        """Extends the window of bins to contain `[low, high)`: torchmetrics adds only tensors of one shape."""
        self._set_histogram(self._histogram() + ScoreHistogram(low, self.counts.new_zeros(3, high - low), self.bits))

    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        """Adds the states of all processes, having brought their windows to one shape."""
        window = torch.stack([self.low, self.low + self.counts.shape[1]])
        windows = [w.tolist() for w in dist_sync_fn(window, group=process_group or self.process_group)]
        windows = [(low, high) for low, high in windows if low < high]  # others have seen nothing
        if windows:
            self._widen(min(low for low, _ in windows), max(high for _, high in windows))
        super()._sync_dist(dist_sync_fn, process_group)

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        """Adds another state: what `merge_state` and `forward` are made of."""
        other = ScoreHistogram(int(incoming_state["low"]), incoming_state["counts"], self.bits)
        self._set_histogram(self._histogram() + other)
        super()._reduce_states({**incoming_state, "low": self.low, "counts": torch.zeros_like(self.counts)})


def aggregate(per_category: Mapping[str, Mapping[str, float]]) -> tuple[dict[str, float], dict[str, int]]:
    """Returns the mean of each metric over the categories where it is defined, and their number.

    Args:
        per_category: Category to metrics, as `AnomalyMetrics.compute` returns them.
    """
    values: dict[str, list[float]] = {}
    for metrics in per_category.values():
        for key, value in metrics.items():
            values.setdefault(key, []).append(value)
    return {key: sum(v) / len(v) for key, v in values.items()}, {key: len(v) for key, v in values.items()}


def _concatenate(state: list[Tensor] | Tensor) -> np.ndarray:
    """Returns a list state as one array, `[n]`; torchmetrics turns the list into a tensor when it synchronises."""
    parts = [state] if isinstance(state, Tensor) else state
    return torch.cat([torch.empty(0), *(part.cpu() for part in parts)]).numpy()


def _name(names: Sequence[str] | None, index: int) -> str:
    return f"image {index} of the batch" if names is None else str(names[index])


def _refuse(bad: Tensor, names: Sequence[str] | None, reason: str) -> None:
    """Raises if any of the `[B]` images is bad."""
    if bad.any():
        raise ValueError(f"{_name(names, int(bad.nonzero()[0]))}: {reason}")


def _check_shapes(
    scores: Tensor, maps: Tensor, labels: Tensor, masks: Tensor, known: Tensor, names: Sequence[str] | None
) -> None:
    """Raises unless shapes are `[B]`, `[B, H, W]`, `[B]`, `[B, H, W]`, `[B]`, B, none of them empty."""
    batch = maps.shape[:1]
    names_fit = names is None or (len(names),) == batch
    if (
        maps.ndim != 3
        or maps.numel() == 0
        or masks.shape != maps.shape
        or not scores.shape == labels.shape == known.shape == batch
        or not names_fit
    ):
        count = len(names) if names is not None else len(scores) if scores.ndim else 0
        listed = ", ".join(_name(names, i) for i in range(min(count, 8))) + (", ..." if count > 8 else "")
        raise ValueError(
            f"{listed or 'empty batch'}: expected pred_score [B], anomaly_map [B, H, W], label [B], mask [B, H, W], "
            f"mask_known [B] and B names, got {[*scores.shape]}, {[*maps.shape]}, {[*labels.shape]}, "
            f"{[*masks.shape]}, {[*known.shape]} and {'no' if names is None else len(names)} names"
        )
