"""What a few normal images say: a threshold, the false-positive rate they can promise, which are unlike the rest."""

import math

import numpy as np

from afclip_runtime.inspection.calibration import CONFIDENCE, ENOUGH, FEWEST, Threshold, from_normals, require, scale_of
from afclip_runtime.inspection.pixel_tail import PixelTail

FEWEST_HELD_OUT = 2  # a spread needs two
UNLIKE = 6.0  # median absolute deviations above the median, each of a normal distribution's standard deviation
LEAST_SPREAD = 0.05  # of the median: equal scores have no deviation


def from_held_out(scores: np.ndarray, fpr: float) -> Threshold:
    """Returns the threshold that a share `fpr` of normal images will exceed, of as few as two.

    From `FEWEST` images on it is that of `from_normals`. Of fewer it is the upper prediction limit of a normal
    distribution: mean + t · s · sqrt(1 + 1 / n), with t the quantile of Student's distribution of n - 1 degrees of
    freedom. A further score lies above it with a probability of `fpr` if scores are distributed normally, which so few
    cannot show. The interval is that of the distribution's quantile, from the non-central t distribution.

    Args:
        scores: `[n]`, of normal images that the model did not have when it scored them.
        fpr: In (0, 0.5].

    Raises:
        DatasetError: There are fewer than two.

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
    """Returns what the maps of held-out normal images are added to, of as few as two."""
    return PixelTail(images, fpr, FEWEST_HELD_OUT)


def promise(count: int, fpr: float) -> str:
    """Returns which false-positive rate so many normal images can promise, in a sentence.

    Whatever the scores' distribution, a further normal image exceeds the highest of n with a probability of
    1 / (n + 1): no threshold from n images promises less.
    """
    least, enough = 1 / (count + 1), math.ceil(ENOUGH / fpr)
    if fpr >= least:
        return f"{count} normal images can promise a false-positive rate of {least:.1%} or more; asked was {fpr:.1%}."
    return (
        f"{count} normal images can promise a false-positive rate of no less than {least:.1%}; asked was {fpr:.1%}. "
        f"So the threshold goes by the shape of their scores, which is a guess. {math.ceil(1 / fpr) - 1} images can "
        f"promise it, {enough} make it sure. Calibrate again when there are more."
    )


def unlike_the_rest(scores: np.ndarray) -> list[int]:
    """Returns which images score far above the others, the highest first; none of fewer than four images.

    Args:
        scores: `[n]`, of normal images that the model did not have when it scored them.
    """
    if len(scores) < 4:
        return []
    median = float(np.median(scores))
    deviation = 1.4826 * float(np.median(np.abs(scores - median)))
    deviation = max(deviation, LEAST_SPREAD * abs(median), 1e-9)
    far = np.flatnonzero(scores > median + UNLIKE * deviation)
    return [int(i) for i in far[np.argsort(-scores[far], kind="stable")]]
