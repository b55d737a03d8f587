"""Saturated per-region overlap (sPRO): PRO that counts a defect as wholly found once enough of its pixels are found.

`sPRO(t)` is the mean over defects of `min(found / s, 1)`, where `found` is the number of the defect's pixels above t
and `s` its saturation, at most its area. The first `s` pixels of a defect that are found are those with its `s` highest
scores, whatever t is. So sPRO is PRO with a weight of `1 / s` for each of these pixels and 0 for the others. It is a
sum over pixels, which can be streamed and summed over processes, and it has the error bounds of PRO.

Reference: Bergmann et al., Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Detection and
    Localization, IJCV 130 (2022). The pixels of one mask file are one defect, whatever its number of parts. Pixels of
    no defect are normal. The published evaluation is done separately for logical and structural anomalies, each with
    all normal images, and reports the mean of the two. The rows by defect type are these two.
Differs: Every score is a threshold. The published evaluation refines a grid of thresholds until neighbouring points of
    the curve are close. If masks are resized, a defect's saturation remains the same share of its area.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from afclip_lightning.metrics.anomaly_metrics import AnomalyMetrics
from afclip_lightning.metrics.histogram import REGION, ScoreCounts
from afclip_lightning.metrics.image_counts import CategoryCounts, ImageRecord
from afclip_lightning.metrics.pro import pro, pro_error_bound
from afclip_lightning.metrics.result import SMALL_LIMIT, Result
from afclip_lightning.types import Defect

OF_PRO = {"pixel_pro": "pixel_spro", "pixel_pro_05": "pixel_spro_05"}
"""Names of the PRO metrics when their weights are saturated."""


def saturated_weight(anomaly_map: Tensor, defects: Sequence[Defect]) -> Tensor:
    """Returns the weight of each pixel in sPRO, `[H, W]`, int64, in units of `REGION`, on the device of the map.

    In a defect of area `a` and saturation `s = share a`, the `floor(s)` highest scores weigh `1 / s` each, and the next
    one weighs the remainder to 1. The choice among equal scores makes no difference. The weights of a pixel of several
    defects are added.

    Args:
        anomaly_map: `[H, W]`, any numeric type.
        defects: Defects of the image, at the size of the map.
    """
    weight = torch.zeros(anomaly_map.shape, dtype=torch.float64, device=anomaly_map.device)
    for defect in defects:
        (top, left), (height, width) = defect.corner, defect.region.shape
        box = slice(top, top + height), slice(left, left + width)
        inside = defect.region.to(anomaly_map.device) > 0
        scores = anomaly_map[box][inside]
        area = defect.saturation * len(scores)
        highest = scores.topk(min(int(area) + 1, len(scores))).indices
        of_pixel = torch.zeros(len(scores), dtype=torch.float64, device=scores.device)
        of_pixel[highest] = REGION / area
        if len(highest) > int(area):
            of_pixel[highest[-1]] = REGION * (area - int(area)) / area
        weight[box][inside] += of_pixel
    return weight.round().long()


def spro_of(counts: ScoreCounts, fpr_limit: float, bounds: bool = True) -> tuple[dict[str, float], dict[str, float]]:
    """Returns `pixel_spro` and `pixel_spro_05`, in [0, 1], and their error bounds; nothing without defects.

    Args:
        counts: Counts of pixels, with saturated weights in place of region weights.
        fpr_limit: Integration limit of `pixel_spro`, in (0, 1].
        bounds: Whether binning or rounding may have moved scores.
    """
    if not counts.normal.any() or not counts.region_weight.any():
        return {}, {}
    limits = {"pixel_spro": fpr_limit, "pixel_spro_05": SMALL_LIMIT}
    values = {key: pro(counts, limit) for key, limit in limits.items()}
    return values, {key: pro_error_bound(counts, limit) for key, limit in limits.items()} if bounds else {}


def with_spro(result: Result, counts: ScoreCounts, fpr_limit: float, bounds: bool = True) -> Result:
    """Returns a result with sPRO and its error bounds; see `spro_of`."""
    values, widths = spro_of(counts, fpr_limit, bounds)
    return replace(result, metrics=result.metrics | values, error_bounds=result.error_bounds | widths)


def spro_result(result: Result, metric: AnomalyMetrics) -> Result:
    """Returns a result with the sPRO of a metric with saturated weights; without sPRO if a mask is not known.

    Args:
        result: Result of the same images.
        metric: Metric of this process, or of all processes inside `with metric.sync_context():`.
    """
    if not metric.all_masked:
        return result
    return with_spro(result, metric.pixel_counts(), metric.fpr_limit, bounds=metric.has_bounds)


def saturated(records: Sequence[ImageRecord]) -> CategoryCounts | None:
    """Returns the images with saturated weights in place of region weights; `None` if no image has any."""
    if not any(record.counts is not None and record.counts.is_saturated for record in records):
        return None
    return CategoryCounts.of([_swapped(record) for record in records])


def _swapped(record: ImageRecord) -> ImageRecord:
    return record if record.counts is None else replace(record, counts=record.counts.swapped())
