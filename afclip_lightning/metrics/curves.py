"""Ranking metrics as pure functions of score counts, each with a proven bound of the error by binning.

A score is anomalous if it is above the threshold (`results.is_anomalous`). The threshold of a bin is the largest number
below its lowest score.

Notation: thresholds are visited from the highest down. Bin i holds `n_i` normal and `p_i` anomalous scores; `FP_i` and
`TP_i` are the sums over the bins visited so far, bin i included; `N` and `P` are the totals. Every edge between two
bins is a threshold of the unbinned scores too. So binned curves pass through points of the exact curves, and only the
order inside each bin is lost. All bounds follow from the worst order. A bin whose scores are known to be equal adds
nothing to them.
"""

from typing import NamedTuple

import numpy as np

from afclip_lightning.metrics.histogram import ScoreCounts

CURVE_POINTS = 200
"""Largest number of points of a curve that is kept for drawing."""


class UndefinedMetricError(ValueError):
    """A metric is undefined for these scores, for example because none is anomalous."""


class Curve(NamedTuple):
    """A curve, reduced to the points needed to draw it.

    Attributes:
        x: `[n]`, in [0, 1], ascending.
        y: `[n]`, in [0, 1].
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, width: float = 1.0) -> "Curve":
        """Returns at most `CURVE_POINTS` points of a curve, equally spaced along it.

        The distance along a curve is `sum |dx| / width + |dy|`, at most 2 for a curve that only rises. A point that is
        left out is at most one step from the line through the points that are kept.

        Args:
            x: `[n]`, n at least 1, ascending.
            y: `[n]`.
            width: Width of the range of x that is shown.
        """
        along = np.append(0, np.cumsum(np.abs(np.diff(x)) / width + np.abs(np.diff(y))))
        kept = np.unique(np.searchsorted(along, np.linspace(0, along[-1], CURVE_POINTS)))
        return cls(tuple(x[kept].tolist()), tuple(y[kept].tolist()))


def descending(counts: ScoreCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns `n_i`, `p_i`, `FP_i`, `TP_i`, each `[n]`, float64, highest threshold first."""
    normal, anomalous = counts.normal[::-1].astype(np.float64), counts.anomalous[::-1].astype(np.float64)
    if not normal.any() or not anomalous.any():
        raise UndefinedMetricError("undefined without both normal and anomalous scores")
    return normal, anomalous, normal.cumsum(), anomalous.cumsum()


def roc_curve(counts: ScoreCounts) -> tuple[np.ndarray, np.ndarray]:
    """Returns false-positive and true-positive rate at every threshold, each `[n + 1]`, from (0, 0) to (1, 1).

    Raises:
        UndefinedMetricError: If there is no normal or no anomalous score.
    """
    _, _, fp, tp = descending(counts)
    return np.append(0, fp / fp[-1]), np.append(0, tp / tp[-1])


def precision_recall_curve(counts: ScoreCounts) -> tuple[np.ndarray, np.ndarray]:
    """Returns recall and precision at every threshold, each `[n + 1]`, recall ascending from 0 to 1.

    Average precision reads them as steps: a precision holds from the recall of the previous point on. The first point
    repeats the precision of the highest threshold, so that its step begins at recall 0.

    Raises:
        UndefinedMetricError: If there is no normal or no anomalous score.
    """
    _, _, fp, tp = descending(counts)
    precision = tp / (tp + fp)
    return np.append(0, tp / tp[-1]), np.append(precision[0], precision)


def auroc(counts: ScoreCounts) -> float:
    """Returns the area under the ROC curve, in [0, 1]; tied scores count one half.

    `AUROC = sum_i n_i (TP_i - p_i / 2) / (N P)`

    Raises:
        UndefinedMetricError: If there is no normal or no anomalous score.
    """
    normal, anomalous, fp, tp = descending(counts)
    return float(normal @ (tp - anomalous / 2) / (fp[-1] * tp[-1]))


def auroc_error_bound(counts: ScoreCounts) -> float:
    """Returns the largest possible difference between `auroc` of these bins and of the scores in them.

    Each of the `n_i p_i` pairs within a bin counts one half, while its exact value is in [0, 1]:
    `sum_i n_i p_i / (2 N P)`.

    Raises:
        UndefinedMetricError: If there is no normal or no anomalous score.
    """
    normal, anomalous, fp, tp = descending(counts)
    return float((normal * anomalous)[~counts.tied[::-1]].sum() / (2 * fp[-1] * tp[-1]))


def average_precision(counts: ScoreCounts) -> float:
    """Returns the average precision, in [0, 1], by the step definition of scikit-learn (no interpolation).

    `AP = sum_i (p_i / P) TP_i / (TP_i + FP_i)`

    Raises:
        UndefinedMetricError: If there is no normal or no anomalous score.
    """
    _, anomalous, fp, tp = descending(counts)
    return float(anomalous @ (tp / (tp + fp)) / tp[-1])


def average_precision_error_bound(counts: ScoreCounts) -> float:
    """Returns the largest possible difference between `average_precision` of these bins and of the scores in them.

    Write `T = TP_{i-1}`, `F = FP_{i-1}`. At a threshold inside bin i, after `a <= p_i` anomalous and `b <= n_i` normal
    scores of the bin, precision is `(T + a) / (T + a + F + b)`. So the `p_i` anomalous scores contribute

    - at most `p_i TP_i / (TP_i + F)`: `a = p_i`, `b = 0` (all tied, above the normal ones);
    - at least `sum_{k=1..p_i} (T + k) / (T + k + FP_i)`: none tied, below the normal ones. The terms grow with k, so
      the sum is at least the integral from 0 to `p_i`, `p_i - FP_i ln((TP_i + FP_i) / (T + FP_i))`.

    The bound is the larger distance of the two sums over i, divided by P, from the binned value.

    Raises:
        UndefinedMetricError: If there is no normal or no anomalous score.
    """
    normal, anomalous, fp, tp = descending(counts)
    total = tp[-1]
    open_ = (anomalous > 0) & ~counts.tied[::-1]
    normal, anomalous, fp, tp = normal[open_], anomalous[open_], fp[open_], tp[open_]
    value = anomalous * tp / (tp + fp)
    highest = anomalous * tp / (tp + fp - normal)
    before = np.where(fp > 0, tp - anomalous + fp, 1)  # any positive number where fp = 0, for 0 ln(...) = 0
    lowest = anomalous - fp * np.log1p(anomalous / before)
    return float(max((highest - value).sum(), (value - lowest).sum()) / total)


def f1_max(counts: ScoreCounts) -> tuple[float, float]:
    """Returns the best F1 over all thresholds, in [0, 1], and the highest threshold that reaches it.

    `F1_i = 2 TP_i / (TP_i + FP_i + P)`

    Raises:
        UndefinedMetricError: If there is no normal or no anomalous score.
    """
    _, _, fp, tp = descending(counts)
    f1 = 2 * tp / (tp + fp + tp[-1])
    best = int(f1.argmax())
    return float(f1[best]), float(counts.thresholds[::-1][best])


def f1_max_error_bound(counts: ScoreCounts) -> float:
    """Returns how much the best F1 of the scores in these bins can exceed that of the bins. It is never below.

    F1 grows with TP and falls with FP; inside bin i, `TP <= TP_i` and `FP >= FP_{i-1}`:
    `max_i 2 TP_i / (TP_i + FP_{i-1} + P) - max_i F1_i`.

    Raises:
        UndefinedMetricError: If there is no normal or no anomalous score.
    """
    normal, _, fp, tp = descending(counts)
    passed_over = np.where(counts.tied[::-1], 0, normal)
    return float((2 * tp / (tp + fp - passed_over + tp[-1])).max() - f1_max(counts)[0])


def threshold_at_fpr(counts: ScoreCounts, fpr: float) -> float:
    """Returns the lowest threshold at which at most the share `fpr` of the normal scores is above it.

    It is infinite if even the highest bin holds a larger share. No anomalous scores are needed.

    Args:
        counts: Counts with at least one normal score.
        fpr: False-positive rate, in [0, 1].

    Raises:
        UndefinedMetricError: If there is no normal score.
        ValueError: If the rate is out of range.
    """
    _check_rate("fpr", fpr)
    if not counts.normal.any():
        raise UndefinedMetricError("undefined without normal scores")
    allowed = counts.normal[::-1].cumsum() / counts.normal.sum() <= fpr
    return float(counts.thresholds[::-1][allowed.sum() - 1]) if allowed.any() else float("inf")


def threshold_at_sensitivity(counts: ScoreCounts, sensitivity: float) -> float:
    """Returns the highest threshold at which at least the share `sensitivity` of the anomalous scores is above it.

    No normal scores are needed.

    Args:
        counts: Counts with at least one anomalous score.
        sensitivity: True-positive rate, or recall, in [0, 1].

    Raises:
        UndefinedMetricError: If there is no anomalous score.
        ValueError: If the rate is out of range.
    """
    _check_rate("sensitivity", sensitivity)
    if not counts.anomalous.any():
        raise UndefinedMetricError("undefined without anomalous scores")
    enough = counts.anomalous[::-1].cumsum() / counts.anomalous.sum() >= sensitivity
    return float(counts.thresholds[::-1][enough.argmax()])


def _check_rate(name: str, rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {rate}")
