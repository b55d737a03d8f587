"""Per-region overlap (PRO): recall averaged over anomalous regions, integrated over the false-positive rate."""

from typing import Literal

import cv2
import numpy as np

from afclip_lightning.metrics.curves import descending
from afclip_lightning.metrics.histogram import ScoreCounts


def region_areas(mask: np.ndarray) -> np.ndarray:
    """Returns the area of the 8-connected anomalous region that each pixel belongs to.

    Args:
        mask: `[H, W]`, any non-zero value is anomalous.

    Returns:
        `[H, W]`, int32, in pixels; 0 = normal.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats((mask != 0).astype(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.int32)
    areas[0] = 0  # the background
    return areas[labels]


def _pro_curve(counts: ScoreCounts) -> tuple[np.ndarray, np.ndarray]:
    """Returns false-positive rate and PRO, each `[n + 1]`, ascending from (0, 0) to (1, 1)."""
    _, _, fp, _ = descending(counts)
    overlap = counts.region_weight[::-1].cumsum()
    return np.append(0.0, fp / fp[-1]), np.append(0.0, overlap / overlap[-1])


def _check_limit(fpr_limit: float) -> None:
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"fpr_limit must be in (0, 1], got {fpr_limit}")


def pro(counts: ScoreCounts, fpr_limit: float = 0.3) -> float:
    """Returns the normalised area under the PRO curve up to a false-positive rate, in [0, 1].

    `PRO(t)` is the mean over regions of the share of the region with `score >= t`; that is, every anomalous pixel
    weighs 1 / (area of its region), divided by the number of regions. The curve over FPR starts at (0, 0), is linear
    between the thresholds and at the limit, and its area is divided by the limit.

    Args:
        counts: Counts of pixels.
        fpr_limit: Where integration stops, in (0, 1].

    Raises:
        ValueError: If there is no normal or no anomalous pixel, or the limit is out of range.

    Reference: Bergmann et al., Uninformed Students, CVPR 2020 (per-region overlap, integrated to an FPR of 0.3).
    Differs: every score is a threshold, where released codes take 100 or 200 thresholds.
    """
    _check_limit(fpr_limit)
    fpr, overlap = _pro_curve(counts)
    inside = fpr <= fpr_limit
    x, y = np.append(fpr[inside], fpr_limit), np.append(overlap[inside], np.interp(fpr_limit, fpr, overlap))
    return float(np.diff(x) @ (y[1:] + y[:-1]) / (2 * fpr_limit))


def pro_error_bound(counts: ScoreCounts, fpr_limit: float = 0.3) -> float:
    """Returns the largest possible difference between `pro` of these bins and of the scores in them.

    Ties: between two bin edges the exact curve rises monotonically inside a rectangle `df` wide and `dy` high. With `w`
    the part of `df` below the limit, the exact area is in `[w y, w (y + dy)]` and the straight line gives
    `w (y + dy w / (2 df))`: they differ by at most `w dy (1 - w / (2 df))`, that is `df dy / 2` off the limit.

    Rounding: region weights are integers, off by at most 1/2 a pixel. With `A` anomalous pixels of total weight `W`,
    numerator and denominator of `PRO(t)` are off by at most `A / 2`, and `PRO(t)` itself by `A / W`: the mean area of a
    region / 2^42.

    Raises:
        ValueError: If there is no normal or no anomalous pixel, or the limit is out of range.
    """
    _check_limit(fpr_limit)
    fpr, overlap = _pro_curve(counts)
    full, inside, rise = np.diff(fpr), np.diff(fpr.clip(max=fpr_limit)), np.diff(overlap)
    ties = inside * rise * (1 - inside / np.where(full > 0, 2 * full, 1))
    return float(ties.sum() / fpr_limit + counts.anomalous.sum() / counts.region_weight.sum())


def pro_200_thresholds(
    maps: np.ndarray, masks: np.ndarray, normalisation: Literal["max", "min_max"], fpr_limit: float = 0.3
) -> float:
    """Returns PRO as most papers print it: 200 thresholds, equidistant between the lowest and the highest score.

    Only points with `FPR < fpr_limit` are kept. Their FPR is rescaled and the area under the remaining points is taken
    as it is, so the result depends on where the thresholds happen to fall. For comparison with printed tables only.

    Args:
        maps: `[B, H, W]`, float32, finite.
        masks: `[B, H, W]`, any non-zero value is anomalous.
        normalisation: `"max"`: FPR / max (the released code of AF-CLIP); `"min_max"`: (FPR - min) / (max - min)
            (AnomalyCLIP, FAPrompt).
        fpr_limit: Points at or above it are dropped.

    Raises:
        ValueError: If shapes differ, there is no normal or no anomalous pixel, or no two different rates remain.
    """
    if maps.shape != masks.shape or maps.ndim != 3:
        raise ValueError(f"expected maps and masks of one shape [B, H, W], got {maps.shape} and {masks.shape}")
    if normalisation not in ("max", "min_max"):
        raise ValueError(f"normalisation must be 'max' or 'min_max', got {normalisation!r}")
    scores = maps.astype(np.float32).ravel()
    areas = np.stack([region_areas(mask) for mask in masks]).ravel()
    normal = areas == 0
    if normal.all() or not normal.any():
        raise ValueError("undefined without both normal and anomalous pixels")
    low, high = scores.min(), scores.max()
    if low == high:
        raise ValueError("undefined if all scores are equal")
    # float32 throughout, as in the released codes: the thresholds decide which scores they fall between
    thresholds = np.arange(low, high, (high - low) / np.float32(200), dtype=np.float32)
    passed = np.searchsorted(thresholds, scores, side="left")  # how many thresholds are below the score
    weights = np.divide(1.0, areas, where=~normal, out=np.zeros(areas.shape))
    size = len(thresholds) + 1
    # Score > threshold j exactly if more than j thresholds are below it. Descending thresholds: ascending FPR.
    fpr = np.bincount(passed[normal], minlength=size)[:0:-1].cumsum() / normal.sum()
    overlap = np.bincount(passed, weights, minlength=size)[:0:-1].cumsum() / weights.sum()
    fpr, overlap = fpr[fpr < fpr_limit], overlap[fpr < fpr_limit]
    start = fpr.min(initial=1) if normalisation == "min_max" else 0
    if fpr.max(initial=0) <= start:
        raise ValueError(f"undefined: fewer than two different false-positive rates below {fpr_limit}")
    fpr = (fpr - start) / (fpr.max() - start)
    return float(np.diff(fpr) @ (overlap[1:] + overlap[:-1]) / 2)
