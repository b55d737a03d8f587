"""What a threshold makes of images and pixels that was fixed without their labels, beside the best threshold.

The best threshold is chosen by the labels that it is then judged with; a product runs at one that was fixed before.
"""

from dataclasses import dataclass

import numpy as np

from afclip_lightning.metrics.histogram import ScoreCounts


@dataclass(frozen=True)
class OperatingPoint:
    """What a fixed threshold makes of a category's images, or of their pixels; all but the threshold in [0, 1].

    What is not defined is `None`: `fpr` without normal scores, `tpr` without anomalous ones, the rest unless there are
    both.

    Attributes:
        threshold: What is above it is anomalous.
        rule: How it was fixed: `mean+3sd`, `q0.99`, or the name of a calibration.
        fpr: False-positive rate: share of the normal scores above the threshold.
        tpr: True-positive rate, or recall: share of the anomalous ones.
        balanced_accuracy: Mean of `tpr` and `1 - fpr`.
        f1: Harmonic mean of precision and recall; of pixels of a whole category it is called SegF1.
        best_f1: F1 at the best threshold for these labels.
        f1_gap: What the fixed threshold costs: `best_f1 - f1`.
        f1_error: How far binning can have moved `f1`.
    """

    threshold: float
    rule: str
    fpr: float | None = None
    tpr: float | None = None
    balanced_accuracy: float | None = None
    f1: float | None = None
    best_f1: float | None = None
    f1_gap: float | None = None
    f1_error: float = 0.0


def operating_point(counts: ScoreCounts, threshold: float, rule: str, best_f1: float | None = None) -> OperatingPoint:
    """Returns what a threshold makes of scores.

    Where the threshold falls into a bin whose scores differ, half of them count as above it: `f1` lies between its
    values with none and with all of the normal, or of the anomalous, ones there. One bin holds few scores.

    Args:
        counts: Counts of the scores of a category's images, or pixels.
        threshold: What is above it is anomalous.
        rule: How it was fixed.
        best_f1: At the best threshold.
    """
    lowest = counts.lowest.astype(np.float64)  # else NumPy rounds the threshold to float32
    above = np.where(lowest > threshold, 1.0, 0.0)
    last = int(np.searchsorted(lowest, threshold, side="right")) - 1  # the bin that the threshold lies in
    if last >= 0 and not counts.tied[last]:
        above[last] = 0.5
    normal, anomalous = float(counts.normal.sum()), float(counts.anomalous.sum())
    fp, tp = float(counts.normal @ above), float(counts.anomalous @ above)
    fpr, tpr = fp / normal if normal else None, tp / anomalous if anomalous else None
    if fpr is None or tpr is None:
        return OperatingPoint(threshold, rule, fpr, tpr)
    open_ = above == 0.5
    half_fp, half_tp = float(counts.normal[open_].sum()) / 2, float(counts.anomalous[open_].sum()) / 2
    f1 = _f1(tp, fp, anomalous)
    error = max(_f1(tp + half_tp, fp - half_fp, anomalous) - f1, f1 - _f1(tp - half_tp, fp + half_fp, anomalous))
    gap = None if best_f1 is None else best_f1 - f1
    return OperatingPoint(threshold, rule, fpr, tpr, (tpr + 1 - fpr) / 2, f1, best_f1, gap, error)


def _f1(tp: float, fp: float, anomalous: float) -> float:
    return 2 * tp / (tp + fp + anomalous)
