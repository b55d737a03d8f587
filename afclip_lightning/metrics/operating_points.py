"""What a threshold makes of images and pixels that was fixed without their labels, beside the best threshold.

The best threshold is chosen by the labels that it is then judged with; a product runs at one that was fixed before.
"""

from collections.abc import Mapping

import numpy as np

from afclip_lightning.metrics.anomaly_metrics import AnomalyMetrics
from afclip_lightning.metrics.histogram import ScoreCounts
from afclip_lightning.metrics.result import Result
from afclip_lightning.results.operating import OperatingPoint


def operating_point(
    counts: ScoreCounts, threshold: float, rule: str, best_f1: float | None = None, binned: bool = False
) -> OperatingPoint:
    """Returns what a threshold makes of scores.

    Where the threshold falls into a bin whose scores differ, half of them count as above it: `f1` lies between its
    values with none and with all of the normal, or of the anomalous, ones there. One bin holds few scores.

    Args:
        counts: Counts of the scores of a category's images, or pixels.
        threshold: What is above it is anomalous.
        rule: How it was fixed.
        best_f1: At the best threshold.
        binned: Whether a score that is alone in its bin may lie anywhere in it.
    """
    lowest = counts.lowest.astype(np.float64)  # else NumPy rounds the threshold to float32
    above = np.where(lowest > threshold, 1.0, 0.0)
    last = int(np.searchsorted(lowest, threshold, side="right")) - 1  # the bin that the threshold lies in, or beyond
    open_normal = open_anomalous = 0.0
    if last >= 0:
        open_normal, open_anomalous = float(counts.normal[last]), float(counts.anomalous[last])
        if not counts.tied[last]:
            above[last] = 0.5
        elif not binned or open_normal + open_anomalous > 1:  # equal scores, which are known
            open_normal = open_anomalous = 0.0
    normal, anomalous = float(counts.normal.sum()), float(counts.anomalous.sum())
    fp, tp = float(counts.normal @ above), float(counts.anomalous @ above)
    fpr, tpr = fp / normal if normal else None, tp / anomalous if anomalous else None
    if fpr is None or tpr is None:
        return OperatingPoint(rule, threshold, fpr, tpr)
    f1, part = _f1(tp, fp, anomalous), above[last]
    highest = _f1(tp + (1 - part) * open_anomalous, fp - part * open_normal, anomalous)
    lowest_f1 = _f1(tp - part * open_anomalous, fp + (1 - part) * open_normal, anomalous)
    error = max(highest - f1, f1 - lowest_f1)
    gap = None if best_f1 is None else best_f1 - f1
    return OperatingPoint(rule, threshold, fpr, tpr, (tpr + 1 - fpr) / 2, f1, best_f1, gap, error)


def operating_points(
    metrics: AnomalyMetrics, result: Result, thresholds: Mapping[str, float], rule: str
) -> dict[str, OperatingPoint]:
    """Returns what thresholds make of a category's `image` scores and `pixel` scores, where these are known.

    Args:
        metrics: Of the category.
        result: What it says.
        thresholds: Of `image`, of `pixel`, or of both.
        rule: How they were fixed.
    """
    points = {}
    if "image" in thresholds and metrics.all_scored:
        best = result.metrics.get("image_f1_max")
        points["image"] = operating_point(metrics.image_counts(), thresholds["image"], rule, best)
    if "pixel" in thresholds and metrics.all_masked:
        best = result.metrics.get("pixel_f1_max")
        pixels, binned = metrics.pixel_counts(), not metrics.exact
        points["pixel"] = operating_point(pixels, thresholds["pixel"], rule, best, binned)
    return points


def _f1(tp: float, fp: float, anomalous: float) -> float:
    return 2 * tp / (tp + fp + anomalous)
