"""Statistics of a few normal images: a threshold, the lowest false-positive rate they support, and outliers."""

import math

import numpy as np

from afclip_runtime.inspection.calibration import CONFIDENCE, ENOUGH, FEWEST, Threshold, from_normals, require, scale_of
from afclip_runtime.inspection.pixel_tail import PixelTail

FEWEST_HELD_OUT = 2  # a standard deviation needs two
UNLIKE = 6.0  # above the median, in median absolute deviations scaled to a normal distribution's standard deviation
LEAST_SPREAD = 0.05  # share of the median: equal scores have no deviation


def from_held_out(scores: np.ndarray, fpr: float) -> Threshold:
    """Returns the threshold that a share `fpr` of normal images will exceed, from two or more images.

    From `FEWEST` images on it is the threshold of `from_normals`. For fewer images it is the upper prediction limit of
    a normal distribution: mean + t · s · sqrt(1 + 1 / n), with t the quantile of Student's distribution with n - 1
    degrees of freedom. A new score lies above it with probability `fpr` if scores are normally distributed. So few
    scores cannot show whether they are. The interval is that of the distribution's quantile, from the non-central t
    distribution.

    Args:
        scores: `[n]`, scores of held-out normal images.
        fpr: Share of normal images, in (0, 0.5].

    Raises:
        DatasetError: There are fewer than two scores.

    Reference: Hahn and Meeker, Statistical Intervals (1991), Sec. 4.8 (prediction) and 4.4 (quantiles).
    """
    if len(scores) >= FEWEST:
        return from_normals(scores, fpr)
    require(len(scores), FEWEST_HELD_OUT)
    from scipy.stats import nct, norm, t

    scores = scores.astype(np.float64)
    n, mean, deviation = len(scores), float(scores.mean()), float(scores.std(ddof=1))
    value = mean + float(t.ppf(1 - fpr, n - 1)) * deviation * math.sqrt(1 + 1 / n)
    ends = nct.ppf([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], n - 1, norm.ppf(1 - fpr) * math.sqrt(n))
    low, high = (mean + float(end) * deviation / math.sqrt(n) for end in ends)
    return Threshold(value, scale_of(value, scores), "few", n, fpr, (low, high))


def pixel_tail(images: int, fpr: float) -> PixelTail:
    """Returns the accumulator for the maps of held-out normal images, of which there are two or more."""
    return PixelTail(images, fpr, FEWEST_HELD_OUT)


def promise(count: int, fpr: float) -> str:
    """Returns a text on the false-positive rate that a number of normal images can guarantee.

    For any distribution of scores, a new normal image exceeds the highest of n scores with probability 1 / (n + 1). No
    threshold from n images guarantees less.
    """
    least, enough = 1 / (count + 1), math.ceil(ENOUGH / fpr)
    lowest, wanted = f"{100 * least:.1f} %", f"{100 * fpr:.1f} %"
    if fpr >= least:
        return f"{count} normal images can guarantee a false-positive rate of {lowest} or more; you asked for {wanted}."
    return (
        f"{count} normal images cannot guarantee a false-positive rate below {lowest}; you asked for {wanted}. So the "
        "threshold is extrapolated from their scores, and the true rate may be higher. At least "
        f"{math.ceil(1 / fpr) - 1} normal images can guarantee this rate, and with {enough} nothing is extrapolated. "
        "Calibrate again when there are more."
    )


def unlike_the_rest(scores: np.ndarray) -> list[int]:
    """Returns the numbers of images that score far above the others, the highest first.

    With fewer than four images it returns none.

    Args:
        scores: `[n]`, scores of held-out normal images.
    """
    if len(scores) < 4:
        return []
    median = float(np.median(scores))
    deviation = 1.4826 * float(np.median(np.abs(scores - median)))
    deviation = max(deviation, LEAST_SPREAD * abs(median), 1e-9)
    far = np.flatnonzero(scores > median + UNLIKE * deviation)
    return [int(i) for i in far[np.argsort(-scores[far], kind="stable")]]
