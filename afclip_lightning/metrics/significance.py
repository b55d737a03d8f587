"""Significance tests between methods: on the same images, and over categories or datasets."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from afclip_lightning.results import LEVEL as LEVEL


class Difference(NamedTuple):
    """The difference between two methods, and its significance.

    Attributes:
        value: The difference as measured, in the metric's unit.
        low: Lower end of its interval at `LEVEL`.
        high: Upper end of its interval at `LEVEL`.
        p_value: Two-sided p-value, in [0, 1]: the probability of a difference at least as large if there is none.
    """

    value: float
    low: float
    high: float
    p_value: float


class Ranking(NamedTuple):
    """Ranks of k methods over n categories or datasets.

    Attributes:
        ranks: `[k]`, mean rank of each method, in [1, k]; 1 is the best. Equal values share the mean of their ranks.
        p_value: p-value of Friedman's test: the probability of mean ranks at least as far apart if the methods are
            equal.
        critical_difference: Mean ranks that differ by at least this are significantly different (Nemenyi).
    """

    ranks: np.ndarray
    p_value: float
    critical_difference: float


def delong(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the AUROCs of methods that scored the same images, and the covariance of their errors.

    Mid-ranks give the structural components in O(n log n) per method instead of O(n²).

    Args:
        scores: `[k, n]`, image scores of each method.
        labels: `[n]`, 1 = anomalous, 0 = normal.

    Returns:
        `[k]` in [0, 1] and `[k, k]`.

    Raises:
        ValueError: There are fewer than two normal or two anomalous images, so that the variance is undefined.

    Reference: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), equations of section 2; Sun and Xu, IEEE Signal
        Processing Letters 21 (2014), algorithm 2.
    """
    is_anomalous = np.asarray(labels) == 1
    m, n = int(is_anomalous.sum()), int((~is_anomalous).sum())
    if min(m, n) < 2:
        raise ValueError(f"DeLong's test needs two normal and two anomalous images, got {n} and {m}")
    anomalous, normal = scores[:, is_anomalous], scores[:, ~is_anomalous]
    both = stats.rankdata(np.concatenate([anomalous, normal], axis=1), axis=1)
    above = (both[:, :m] - stats.rankdata(anomalous, axis=1)) / n  # share of normal images below each anomalous one
    below = 1 - (both[:, m:] - stats.rankdata(normal, axis=1)) / m  # share of anomalous images above each normal one
    return above.mean(axis=1), np.atleast_2d(np.cov(above)) / m + np.atleast_2d(np.cov(below)) / n


def delong_difference(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> Difference:
    """Returns the AUROC of the first method minus that of the second, with DeLong's test.

    The variance is 0 if both methods separate the images perfectly, or rank them alike. A difference of 0 then has the
    p-value 1. For another difference, the p-value and the ends of the interval are NaN.

    Args:
        first: `[n]`, image scores of the first method.
        second: `[n]`, image scores of the second method, of the same images.
        labels: `[n]`, 1 = anomalous, 0 = normal.

    Raises:
        ValueError: See `delong`.
    """
    areas, covariance = delong(np.stack([first, second]), labels)
    value = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if variance <= 1e-15 * float(covariance.trace()) or variance == 0:  # rounding of equal components
        return Difference(0.0, 0.0, 0.0, 1.0) if abs(value) < 1e-12 else Difference(value, np.nan, np.nan, np.nan)
    deviation = variance**0.5
    reach = float(stats.norm.ppf((1 + LEVEL) / 2)) * deviation
    return Difference(value, value - reach, value + reach, 2 * float(stats.norm.sf(abs(value) / deviation)))


def bootstrap_difference(value: float, samples: np.ndarray) -> Difference:
    """Returns a difference with the percentile interval and the two-sided p-value of its bootstrap samples.

    The p-value is twice the smaller of two shares: of samples at or below 0, and of samples at or above 0. One is added
    to each count, so that the p-value is never 0. The ends of the interval are samples. The interval excludes 0 exactly
    if the p-value is at most `1 - LEVEL`.

    Args:
        value: The difference as measured.
        samples: `[r]`, the difference in each sample of the images, the same sample for both methods.

    Raises:
        ValueError: There are too few samples for an interval at `LEVEL`.

    Reference: Davison and Hinkley, Bootstrap Methods and their Application (1997), sections 4.2 and 5.3.1.
    """
    count = len(samples)
    outside = int((1 - LEVEL) / 2 * (count + 1) + 1e-9)
    if outside < 1:
        raise ValueError(f"an interval at {LEVEL:.0%} needs {fewest_samples()} samples, got {count}")
    ordered = np.sort(samples)
    tail = min(int((samples <= 0).sum()), int((samples >= 0).sum()))
    p_value = min(2 * (1 + tail) / (count + 1), 1.0)
    return Difference(value, float(ordered[outside - 1]), float(ordered[count - outside]), p_value)


def may_be_best(values: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Returns the methods that may be the best. The truly best one is among them with a confidence of `LEVEL`.

    A method is excluded if the lead of another method over it, in standard deviations of their difference, exceeds a
    limit. The limit is the quantile `LEVEL`, over the samples, of the largest lead by chance. It holds for all methods
    together.

    Args:
        values: `[k]`, metric of each method; higher is better.
        samples: `[k, r]`, metric of each method in the same samples of the images.

    Returns:
        `[k]`, bool; the highest value is always among them.

    Reference: Hsu, Annals of Statistics 12 (1984), comparisons with the best, with the distribution of the bootstrap.
    """
    kept = np.ones(len(values), bool)
    for i in range(len(values)):
        above = samples - samples[i]  # [k, r]
        spread = above.std(axis=1)
        varies = spread > 0  # excludes the method itself, and methods with equal scores
        if ((values > values[i]) & ~varies).any():
            kept[i] = False
        elif varies.any():
            chance = ((above - above.mean(axis=1, keepdims=True))[varies] / spread[varies, None]).max(axis=0)
            furthest = ((values - values[i])[varies] / spread[varies]).max()
            kept[i] = (1 + (chance >= furthest).sum()) / (1 + len(chance)) > 1 - LEVEL
    kept[values.argmax()] = True
    return kept


def fewest_samples() -> int:
    """Returns how many bootstrap samples an interval at `LEVEL` needs."""
    return round(2 / (1 - LEVEL)) - 1


def wilcoxon(differences: np.ndarray) -> float:
    """Returns the two-sided p-value of the signed-rank test.

    It is exact for few differences, and otherwise based on the normal distribution. The ranks of zero differences are
    split between both signs, as Demšar does.

    Args:
        differences: `[n]`, differences of two methods, one per category or dataset.

    Reference: Wilcoxon, Biometrics Bulletin 1 (1945); Demšar, JMLR 7 (2006), section 3.1.3.
    """
    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="zsplit").pvalue)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Returns p-values corrected for their number: they bound the probability of any error among all tests.

    SciPy has no such correction. statsmodels has it, but would add pandas as a dependency.

    Args:
        p_values: `[n]`, p-values of tests that are read together.

    Reference: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    values = np.asarray(p_values, float)
    order = np.argsort(values)
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = steps.clip(max=1.0)
    return corrected


def ranking(values: np.ndarray) -> Ranking:
    """Returns the ranks of methods over categories or datasets.

    Args:
        values: `[n, k]`, metric of each method in each category or dataset; higher is better; n >= 2, k >= 3.

    Reference: Friedman, JASA 32 (1937); Nemenyi (1963) as in Demšar, JMLR 7 (2006), section 3.2.2.
    """
    n, k = values.shape
    ranks = stats.rankdata(-values, axis=1).mean(axis=0)
    alike = not np.ptp(values, axis=1).any()
    p_value = 1.0 if alike else float(stats.friedmanchisquare(*values.T).pvalue)
    reach = float(stats.studentized_range.ppf(LEVEL, k, np.inf)) / 2**0.5
    return Ranking(ranks, p_value, reach * (k * (k + 1) / (6 * n)) ** 0.5)


def cliques(ranks: np.ndarray, critical_difference: float) -> list[list[int]]:
    """Returns the maximal groups of methods that do not differ significantly, best ranks first.

    Args:
        ranks: `[k]`, mean ranks.
        critical_difference: See `Ranking`.

    Returns:
        Positions in `ranks`, at least two per group.
    """
    order = [int(i) for i in np.argsort(ranks, kind="stable")]
    groups: list[list[int]] = []
    for start, first in enumerate(order):
        group = [other for other in order[start:] if ranks[other] - ranks[first] < critical_difference]
        if len(group) > 1 and not (groups and group[-1] == groups[-1][-1]):
            groups.append(group)
    return groups
