"""Per-region overlap (PRO): recall averaged over anomalous regions, integrated over the false-positive rate."""

from typing import get_args

import cv2
import numpy as np
import torch
from torch import Tensor

from afclip_lightning.metrics.curves import UndefinedMetricError, descending
from afclip_lightning.metrics.histogram import REGION, ScoreCounts
from afclip_lightning.types import ProDefinition

DEFINITIONS: tuple[ProDefinition, ...] = get_args(ProDefinition)
MVTEC_THRESHOLDS = 100
LEGACY_THRESHOLDS = 200


def region_areas(mask: np.ndarray) -> np.ndarray:
    """Returns the area of the 8-connected anomalous region that each pixel belongs to.

    Args:
        mask: `[H, W]`, any non-zero value is anomalous.

    Returns:
        `[H, W]`, int32, in pixels; 0 = normal.
    """
    marked = (mask != 0).astype(np.uint8)
    result = np.zeros(mask.shape, np.int32)
    x, y, width, height = cv2.boundingRect(marked)  # regions are small, and the time of labelling grows with the pixels
    box = slice(y, y + height), slice(x, x + width)
    if width:
        _, labels, stats, _ = cv2.connectedComponentsWithStats(marked[box], connectivity=8)
        areas = stats[:, cv2.CC_STAT_AREA]
        areas[0] = 0  # the background
        result[box] = areas[labels]
    return result


def label_regions(masks: Tensor) -> Tensor:
    """Returns the area of the region of each pixel, `[B, H, W]`, int32, on the CPU, for masks `[B, H, W]`."""
    areas = torch.zeros(masks.shape, dtype=torch.int32)
    for area, mask in zip(areas.numpy(), masks.cpu().numpy(), strict=True):
        area[:] = region_areas(mask)
    return areas


def count_regions(mask: np.ndarray) -> int:
    """Returns the number of 8-connected anomalous regions of a mask `[H, W]`; any non-zero value is anomalous."""
    marked = (mask != 0).astype(np.uint8)
    x, y, width, height = cv2.boundingRect(marked)
    return cv2.connectedComponents(marked[y : y + height, x : x + width], connectivity=8)[0] - 1 if width else 0


def pro_curve(counts: ScoreCounts) -> tuple[np.ndarray, np.ndarray]:
    """Returns false-positive rate and PRO at every threshold, each `[n + 1]`, ascending from (0, 0) to (1, 1).

    `PRO(t)` is the mean over regions of the share of the region above t. So every anomalous pixel weighs
    1 / (area of its region), divided by the number of regions.

    Raises:
        UndefinedMetricError: If there is no normal or no anomalous pixel.
    """
    _, _, fp, _ = descending(counts)
    overlap = counts.region_weight[::-1].cumsum()
    return np.append(0.0, fp / fp[-1]), np.append(0.0, overlap / overlap[-1])


def pro(counts: ScoreCounts, fpr_limit: float = 0.3, definition: ProDefinition = "exact") -> float:
    """Returns the normalised area under the PRO curve up to a false-positive rate, in [0, 1].

    - `exact`: every score is a threshold. The curve starts at (0, 0), is linear between the thresholds and at the
      limit, and its area is divided by the limit.
    - `mvtec`: the official evaluation of MVTec. The thresholds are 100 of the sorted normal scores, equally spaced by
      rank, and (1, 1) is added. Limit and division as in `exact`.
    - `legacy_cflow`: 200 thresholds, equidistant between the lowest and the highest score. Only points with
      `FPR < fpr_limit` are kept, and their FPR is rescaled as `(FPR - min) / (max - min)`. The result is the area under
      them, so it depends on where the thresholds happen to fall (CFLOW-AD, AnomalyCLIP, FAPrompt).
    - `legacy_afclip`: like `legacy_cflow`, but rescaled as `FPR / max` (the released code of AF-CLIP).

    The last three are for comparison with published tables. They are exact only on counts of distinct scores
    (`exact_counts`). On binned counts they are approximations without a bound, because their thresholds fall inside
    bins.

    Args:
        counts: Counts of pixels.
        fpr_limit: Integration limit, in (0, 1].
        definition: `exact`, `mvtec`, `legacy_cflow` or `legacy_afclip`.

    Raises:
        UndefinedMetricError: If there is no normal or no anomalous pixel. For the legacy definitions, also if all
            scores are equal or fewer than two different rates are below the limit.
        ValueError: If the limit is out of range or the definition is unknown.

    Reference: Bergmann et al., Uninformed Students, CVPR 2020 (per-region overlap, integrated to an FPR of 0.3).
    """
    _check_limit(fpr_limit)
    if definition == "exact":
        return _area_to_limit(*pro_curve(counts), fpr_limit)
    if definition == "mvtec":
        return _area_to_limit(*_mvtec_curve(counts), fpr_limit)
    if definition in DEFINITIONS:
        return _rescaled_area(*_legacy_curve(counts), fpr_limit, from_lowest=definition == "legacy_cflow")
    raise ValueError(f"definition must be one of {', '.join(DEFINITIONS)}, got {definition!r}")


def pro_error_bound(counts: ScoreCounts, fpr_limit: float = 0.3) -> float:
    """Returns the largest possible difference between the `exact` `pro` of these bins and of the scores in them.

    Ties: between two bin edges the exact curve rises monotonically inside a rectangle `df` wide and `dy` high. With `w`
    the part of `df` below the limit, the exact area is in `[w y, w (y + dy)]` and the straight line gives
    `w (y + dy w / (2 df))`. They differ by at most `w dy (1 - w / (2 df))`, which is `df dy / 2` away from the limit.
    For scores known to be equal, the exact curve is the straight line.

    Rounding: region weights are integers, with an error of at most 1/2 per pixel. With `A` anomalous pixels of total
    weight `W`, the error of the numerator and of the denominator of `PRO(t)` is at most `A / 2`. That of `PRO(t)` is at
    most `A / W`, which is the mean area of a region divided by 2^42.

    Raises:
        UndefinedMetricError: If there is no normal or no anomalous pixel.
        ValueError: If the limit is out of range.
    """
    _check_limit(fpr_limit)
    fpr, overlap = pro_curve(counts)
    full, inside, rise = np.diff(fpr), np.diff(fpr.clip(max=fpr_limit)), np.diff(overlap)
    ties = (inside * rise * (1 - inside / np.where(full > 0, 2 * full, 1)))[~counts.tied[::-1]]
    return float(ties.sum() / fpr_limit + counts.anomalous.sum() / counts.region_weight.sum())


def _check_limit(fpr_limit: float) -> None:
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"fpr_limit must be in (0, 1], got {fpr_limit}")


def to_limit(fpr: np.ndarray, overlap: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the part of an ascending curve up to the limit. The point at the limit is interpolated."""
    inside = fpr <= limit
    return np.append(fpr[inside], limit), np.append(overlap[inside], np.interp(limit, fpr, overlap))


def _area_to_limit(fpr: np.ndarray, overlap: np.ndarray, limit: float) -> float:
    """Returns the area under an ascending curve up to the limit, divided by the limit."""
    x, y = to_limit(fpr, overlap, limit)
    return float(np.diff(x) @ (y[1:] + y[:-1]) / (2 * limit))


def _mvtec_curve(counts: ScoreCounts) -> tuple[np.ndarray, np.ndarray]:
    """Returns FPR and PRO, each `[101]`, ascending: `score > t` is anomalous, for t among the normal scores by rank.

    The rate of a rank is `1 - (rank + 1) / N`. Ties are ignored, as in the official script.
    """
    _, _, fp, _ = descending(counts)
    total = int(fp[-1])
    ranks = np.linspace(0, total - 1, MVTEC_THRESHOLDS, dtype=int)  # ascending scores
    at = np.searchsorted(counts.normal.cumsum(), ranks, side="right")
    overlap = 1 - counts.region_weight.cumsum()[at] / counts.region_weight.sum()
    return np.append(1.0, 1 - (ranks + 1) / total)[::-1], np.append(1.0, overlap)[::-1]


def _legacy_curve(counts: ScoreCounts) -> tuple[np.ndarray, np.ndarray]:
    """Returns FPR and PRO at 200 equidistant thresholds, ascending: `score > t` is anomalous."""
    normal, _, _, _ = descending(counts)
    scores = counts.lowest
    low, high = scores[0], scores[-1]
    if low == high:
        raise UndefinedMetricError("undefined if all scores are equal")
    # In the type of the scores, which is float32 in the released codes: rounding decides between which scores a
    # threshold falls.
    thresholds = np.arange(low, high, (high - low) / np.float32(LEGACY_THRESHOLDS), dtype=scores.dtype)
    passed = np.searchsorted(thresholds, scores, side="left")  # number of thresholds below the score
    size = len(thresholds) + 1
    # Score > threshold j exactly if more than j thresholds are below it. Descending thresholds: ascending FPR.
    fpr = np.bincount(passed, counts.normal, size)[:0:-1].cumsum() / normal.sum()
    overlap = np.bincount(passed, counts.region_weight / REGION, size)[:0:-1].cumsum()
    return fpr, overlap * (REGION / counts.region_weight.sum())


def _rescaled_area(fpr: np.ndarray, overlap: np.ndarray, limit: float, from_lowest: bool) -> float:
    """Returns the area under the points below the limit. FPR is rescaled to end at 1 and, if wanted, to begin at 0."""
    kept = fpr < limit
    fpr, overlap = fpr[kept], overlap[kept]
    start = fpr.min(initial=1) if from_lowest else 0
    if fpr.max(initial=0) <= start:
        raise UndefinedMetricError(f"undefined: fewer than two different false-positive rates below {limit}")
    fpr = (fpr - start) / (fpr.max() - start)
    return float(np.diff(fpr) @ (overlap[1:] + overlap[:-1]) / 2)
