"""The one streaming state of the metrics: how many pixels, and how much region weight, have which score.

Scores are binned by the leading bits of their float32 pattern, so no range has to be known beforehand and the width of
a bin is relative to the score: at 22 bits a bin spans 2^-13 of its octave. All counts are integers, hence histograms
add exactly: the result does not depend on the order of the images, nor on how the stream is cut or distributed.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

REGION = 2**42
"""Fixed-point weight of one whole region. An int64 bin holds 2^21 regions; see `pro_error_bound` for the rounding."""


class ScoreCounts(NamedTuple):
    """What every curve is computed from: counts of scores by ascending threshold (`score >= threshold` is anomalous).

    Attributes:
        thresholds: `[n]`, float32, strictly ascending; the smallest score that falls into the bin.
        normal: `[n]`, int64, normal pixels (or images) in the bin.
        anomalous: `[n]`, int64, anomalous pixels (or images) in the bin.
        region_weight: `[n]`, int64, sum of `REGION / area` over the anomalous pixels in the bin, where `area` is that
            of the region which the pixel belongs to.
    """

    thresholds: np.ndarray
    normal: np.ndarray
    anomalous: np.ndarray
    region_weight: np.ndarray


def score_keys(scores: Tensor) -> Tensor:
    """Returns integers in the order of the scores: `a < b` exactly if `key(a) < key(b)`; -0 and +0 share key 0.

    A float32 pattern is sign and magnitude, and magnitudes are in order already. Negating those of negative scores
    turns the pattern into two's complement.

    Args:
        scores: Any shape, float32, finite.

    Returns:
        Same shape, int32.
    """
    pattern = scores.contiguous().view(torch.int32)
    sign = pattern >> 31  # 0 or -1
    return (pattern ^ (sign & 0x7FFFFFFF)) - sign


def key_scores(keys: np.ndarray) -> np.ndarray:
    """Returns the float32 scores that have these keys (`[n]`, int64): the inverse of `score_keys`."""
    magnitude = np.abs(keys).astype(np.int32).view(np.float32)
    return np.where(keys < 0, -magnitude, magnitude)


def region_weight(areas: Tensor) -> Tensor:
    """Returns `REGION / area` rounded to the nearest integer: `[n]`, int64, for areas `[n]`, integer, at least 1."""
    areas = areas.long()
    return (REGION + areas // 2) // areas


@dataclass(frozen=True)
class ScoreHistogram:
    """Additive counts over the dense window of score bins that occurred.

    Attributes:
        low: Number of the first bin of the window.
        counts: `[3, n]`, int64: normal pixels, anomalous pixels and region weight of bins `low ... low + n - 1`.
        bits: Leading bits of the float32 pattern that name a bin: sign, 8 of exponent, the rest of mantissa.
    """

    low: int
    counts: Tensor
    bits: int = 22

    @classmethod
    def of(cls, scores: Tensor, areas: Tensor, bits: int = 22) -> "ScoreHistogram":
        """Returns the histogram of some pixels, counted on the device of `scores`.

        Args:
            scores: Any shape, float32, finite.
            areas: Same number of elements, integer: area in pixels of the anomalous region of the pixel, 0 = normal.
            bits: See the class.
        """
        areas = areas.flatten()
        bins = score_keys(scores.flatten()) >> (32 - bits)
        if not len(bins):
            return cls(0, torch.zeros(3, 0, dtype=torch.int64, device=bins.device), bits)
        low, high = torch.stack(bins.aminmax()).tolist()
        bins -= low
        size = high - low + 1
        anomalous = areas.nonzero().squeeze(1)
        anomalous_bins = bins[anomalous]
        counts = torch.zeros(3, size, dtype=torch.int64, device=bins.device)
        counts[1] = torch.bincount(anomalous_bins, minlength=size)
        counts[0] = torch.bincount(bins, minlength=size) - counts[1]
        # Not bincount(weights=...), which sums in float64 and is not deterministic on CUDA.
        counts[2].index_add_(0, anomalous_bins, region_weight(areas[anomalous]))
        return cls(low, counts, bits)

    def __add__(self, other: "ScoreHistogram") -> "ScoreHistogram":
        """Returns the histogram of the pixels of both, on the device of the first."""
        if self.bits != other.bits:
            raise ValueError(f"cannot add a histogram of {other.bits} bits to one of {self.bits} bits")
        theirs = other.counts.to(self.counts.device)
        if not self.counts.shape[1]:
            return ScoreHistogram(other.low, theirs, self.bits)
        if not theirs.shape[1]:
            return self
        low = min(self.low, other.low)
        high = max(self.low + self.counts.shape[1], other.low + theirs.shape[1])
        counts = F.pad(self.counts, (self.low - low, high - self.low - self.counts.shape[1]))  # a copy
        counts[:, other.low - low : other.low - low + theirs.shape[1]] += theirs
        return ScoreHistogram(low, counts, self.bits)

    def score_counts(self) -> ScoreCounts:
        """Returns the bins that are not empty; each threshold is the lower edge of its bin."""
        counts = self.counts.cpu().numpy()
        used = np.flatnonzero(counts[:2].any(axis=0))
        return ScoreCounts(key_scores((used + self.low) << (32 - self.bits)), *counts[:, used])


def exact_counts(normal: np.ndarray, anomalous: np.ndarray, areas: np.ndarray | None = None) -> ScoreCounts:
    """Returns counts by distinct score, from all the scores: O(n log n) time, for verification and for small n.

    Args:
        normal: `[n]`, float32, scores of the normal pixels or images.
        anomalous: `[p]`, float32, scores of the anomalous ones.
        areas: `[p]`, area of the region of each anomalous pixel; 1 by default.
    """
    normal_values, normal_counts = np.unique(normal, return_counts=True)
    values, inverse, value_counts = np.unique(anomalous, return_inverse=True, return_counts=True)
    thresholds = np.union1d(normal_values, values)
    counts = np.zeros((3, len(thresholds)), np.int64)
    at = np.searchsorted(thresholds, values)
    counts[0, np.searchsorted(thresholds, normal_values)] = normal_counts
    counts[1, at] = value_counts
    weights = region_weight(torch.from_numpy(np.ones(len(anomalous)) if areas is None else areas)).numpy()
    np.add.at(counts[2], at[inverse], weights)
    return ScoreCounts(thresholds, *counts)
