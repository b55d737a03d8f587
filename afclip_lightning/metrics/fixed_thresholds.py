"""Thresholds that are fixed without labels: rules on the scores of normal images, or on those of their pixels."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from afclip_lightning.errors import UserError

FACTOR = 3.0
"""Standard deviations above the mean, as MVTec AD 2 suggests."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and spread of scores, in float64: 24 bytes, whatever the number of scores.

    Moments of parts merge to those of the whole, so that no more than one map is ever in memory. With the moments of
    each image merged in one fixed order the result is the same, bit for bit, however images were shared between
    processes.

    Rounding: one map is passed twice, so that its `squares` are off by some 20 u (NumPy sums in pairs), where u is
    1.1e-16. Each merge adds a few u times the condition number, the root of 1 + mean² / variance. A thousand maps whose
    mean is a thousand standard deviations give a relative error of `sd` below 1e-9; that of a float32 score is 6e-8.

    Reference: Chan, Golub, LeVeque, Algorithms for computing the sample variance, The American Statistician 37 (1983).

    Attributes:
        count: How many scores.
        mean: Their mean; 0 of none.
        squares: Sum of their squared distances to the mean.
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
                "a score of a normal image is NaN or infinite, so no threshold comes from it. Mend its map."
            )
        values -= mean
        rest = float(values.sum())  # what rounding of the mean left
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
        """Returns the moments of all parts together, added from the first to the last."""
        return sum(parts, cls())

    @property
    def sd(self) -> float:
        """Returns the standard deviation of these scores, the root of the mean squared distance (as `numpy.std`)."""
        return math.sqrt(self.squares / self.count) if self.count else math.nan


def mean_plus_sd(normal: Moments, factor: float = FACTOR) -> float:
    """Returns the mean of normal scores plus some standard deviations: what is above it is anomalous.

    It is no quantile: of scores with a normal distribution 0.13 % lie above it at 3, of others up to 10 %
    (Cantelli's inequality, `1 / (1 + factor²)`).

    Args:
        normal: Moments of the scores of normal images, or of the pixels of their maps.
        factor: Standard deviations.

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
