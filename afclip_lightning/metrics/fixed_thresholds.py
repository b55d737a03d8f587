"""Rules that fix thresholds without anomalous images: from the scores of normal images, or of their pixels."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from afclip_lightning.metrics.histogram import ScoreCounts
from afclip_runtime.errors import UserError

FACTOR = 3.0
"""Standard deviations above the mean, as MVTec AD 2 suggests."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and spread of scores, in float64: 24 bytes, whatever the number of scores.

    Moments of parts are merged into those of the whole, so that only one map at a time is in memory. If the moments of
    the images are merged in a fixed order, the result is the same, bit for bit, however images were distributed over
    processes.

    Rounding: each map is read twice, so that the relative error of its `squares` is about 20 u (NumPy sums in pairs),
    where u is 1.1e-16. Each merge adds a few u times the condition number, the root of 1 + mean² / variance. For a
    thousand maps whose mean is a thousand standard deviations, the relative error of `sd` is below 1e-9. That of a
    float32 score is 6e-8.

    Reference: Chan, Golub, LeVeque, Algorithms for computing the sample variance, The American Statistician 37 (1983).

    Attributes:
        count: Number of scores.
        mean: Mean of the scores; 0 if there is none.
        squares: Sum of the squared distances of the scores to the mean.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, scores: np.ndarray) -> "Moments":
        """Returns the moments of scores of any shape and type.

        Raises:
            UserError: A score is NaN or infinite.
        """
        if not scores.size:
            return cls()
        values = scores.astype(np.float64).reshape(-1)
        mean = float(values.mean())
        if not math.isfinite(mean):
            raise UserError(
                "a score of a normal image is NaN or infinite, so no threshold comes from it. Correct its map."
            )
        values -= mean
        rest = float(values.sum())  # not 0, because the mean is rounded
        return cls(scores.size, mean + rest / scores.size, max(float(values @ values) - rest * rest / scores.size, 0.0))

    def __add__(self, other: "Moments") -> "Moments":
        """Returns the moments of both."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        distance = other.mean - self.mean
        mean = self.mean + distance * (other.count / count)
        squares = self.squares + other.squares + distance * distance * (self.count * (other.count / count))
        return Moments(count, mean, squares)

    @classmethod
    def merged(cls, parts: Iterable["Moments"]) -> "Moments":
        """Returns the moments of all parts together, merged from the first to the last."""
        return sum(parts, cls())

    @property
    def sd(self) -> float:
        """Returns the standard deviation of these scores, the root of the mean squared distance, as `numpy.std`."""
        return math.sqrt(self.squares / self.count) if self.count else math.nan


def mean_plus_sd(normal: Moments, factor: float = FACTOR) -> float:
    """Returns the threshold `mean + factor * sd` of normal scores. Scores above it are anomalous.

    It is not a quantile. With 3 standard deviations, 0.13 % of normally distributed scores lie above it. For other
    distributions it may be up to 10 % (Cantelli's inequality, `1 / (1 + factor²)`).

    Args:
        normal: Moments of the scores of normal images, or of the pixels of their maps.
        factor: Number of standard deviations.

    Raises:
        UserError: There are fewer than 2 scores.
        ValueError: `factor` is not finite.

    Reference: Heckler-Kram et al., The MVTec AD 2 dataset, arXiv 2503.21622: 3 standard deviations, over the pixels of
        `validation/good`.
    """
    if not math.isfinite(factor):
        raise ValueError(f"factor must be finite, got {factor}")
    if normal.count < 2:
        raise UserError(
            f"a threshold of mean and standard deviation needs the scores of normal images, and there are "
            f"{normal.count}. Give normal images that are neither trained on nor tested."
        )
    return normal.mean + factor * normal.sd


@dataclass(frozen=True)
class Rule:
    """Rule that computes a threshold from the scores of normal images.

    Attributes:
        text: The rule as it was written: `mean+3sd` or `q0.99`.
        factor: Standard deviations above the mean; `None` for a quantile.
        fpr: Share of the normal scores that may lie above the threshold; `None` for mean and standard deviation.
    """

    text: str
    factor: float | None = None
    fpr: float | None = None

    @classmethod
    def of(cls, text: str) -> "Rule":
        """Returns the rule that a text names.

        Raises:
            ValueError: The text names no rule.
        """
        if found := re.fullmatch(r"mean\+(\d+(?:\.\d+)?)sd", text):
            return cls(text, factor=float(found[1]))
        if found := re.fullmatch(r"q(0?\.\d+)", text):
            return cls(text, fpr=1 - float(found[1]))
        raise ValueError(f"a rule is mean+3sd or q0.99 (any factor, any quantile below 1), got {text!r}")

    @property
    def fewest(self) -> int:
        """Returns the number of scores of normal images that the rule needs."""
        return 2 if self.fpr is None else math.ceil(1 / self.fpr - 1e-9)

    def threshold(self, moments: Moments, counts: ScoreCounts, binned: bool = True) -> float:
        """Returns the threshold of normal scores. Scores above it are anomalous.

        A quantile is the lowest score such that at most the share `fpr` of the scores lies above it. For binned scores
        it is the upper end of its bin, or the lower end if the bin is the highest.

        Args:
            moments: Moments of the scores.
            counts: Counts of the same scores, all of them normal.
            binned: Whether scores were counted in bins. Otherwise each distinct score was counted.

        Raises:
            UserError: There are too few scores for the rule: less than 2, or, for a quantile, so few that not even one
                may lie above it.
        """
        if self.factor is not None:
            return mean_plus_sd(moments, self.factor)
        assert self.fpr is not None
        if moments.count < self.fewest:
            raise UserError(
                f"the rule {self.text} needs {self.fewest} scores of normal images, and there are {moments.count}. "
                "Give more normal images, or a lower quantile, or the rule mean+3sd."
            )
        reached = counts.normal[::-1].cumsum()[::-1]
        at = int(np.flatnonzero(reached > self.fpr * reached[0] + 1e-9)[-1])
        if binned and at < len(reached) - 1:
            return float(counts.thresholds[at + 1])
        return float(counts.lowest[at])
