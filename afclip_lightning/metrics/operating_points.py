"""Results at thresholds that were fixed without the test labels, beside those at the best threshold.

The best threshold is chosen with the labels that it is then judged by. A product runs at a threshold that was fixed
before.
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
    """Returns the rates and F1 of scores at a threshold.

    If the threshold falls into a bin whose scores differ, half of them count as above it. The exact `f1` lies between
    its values with none and with all of the bin's normal, or anomalous, scores above it. One bin holds few scores.

    Args:
        counts: Counts of the scores of a category's images or pixels.
        threshold: Scores above it are anomalous.
        rule: Rule that fixed the threshold.
        best_f1: F1 at the best threshold.
        binned: Whether a score that is alone in its bin may lie anywhere in the bin.
    """
    lowest = counts.lowest.astype(np.float64)  # otherwise NumPy rounds the threshold to float32
    above = np.where(lowest > threshold, 1.0, 0.0)
    last = int(np.searchsorted(lowest, threshold, side="right")) - 1  # the bin of the threshold, or the last below it
    open_normal = open_anomalous = 0.0
    if last >= 0:
        open_normal, open_anomalous = float(counts.normal[last]), float(counts.anomalous[last])
        if not counts.tied[last]:
            above[last] = 0.5
        elif not binned or open_normal + open_anomalous > 1:  # otherwise the scores are equal, and known
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
    """Returns the results of a category at the thresholds of its `image` and `pixel` scores, where these are known.

    Args:
        metrics: Metrics of the category.
        result: Result of these metrics.
        thresholds: Threshold of `image`, of `pixel`, or of both.
        rule: Rule that fixed them.
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
