"""Streaming histogram of scores: the number of pixels, and the region weight, per bin of scores.

Scores are binned by their bit pattern, as float32 or, where that would merge some, as float64. The bins are as fine as
a fixed number of bins allows for the range of scores so far. When the range grows, neighbouring bins are added: bins of
a wider range are always unions of bins of a narrower one. All counts are integers, so histograms add exactly. The
result depends on the scores only, not on their order, nor on how they were cut into batches or distributed.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

REGION = 2**42
"""Fixed-point weight of one whole region. An int64 bin holds 2^21 regions; see `pro_error_bound` for the rounding."""

MANTISSA = 23
"""Number of mantissa bits of a float32: one octave has 2^23 keys."""

WIDE_MANTISSA = 52
"""Number of mantissa bits of a float64."""

OCTAVES = 30
"""Magnitudes this many factors of two below the largest share a bin. Zero has its own bin."""

BINS = 2**19
"""Default resolution: at most 24 MiB per state, and 2^16 bins per octave for scores between 0.01 and 1."""

CHUNK = 2**20
"""Number of pixels counted at a time, so that temporaries take a few MiB, whatever the size of the batch."""


class ScoreCounts(NamedTuple):
    """Counts of scores in ascending bins. Every curve is computed from them.

    Attributes:
        lowest: `[n]`, float32 or float64, strictly ascending. No score of the bin is lower, and every score of a lower
            bin is.
        normal: `[n]`, int64, normal pixels (or images) in the bin.
        anomalous: `[n]`, int64, anomalous pixels (or images) in the bin.
        region_weight: `[n]`, int64, sum of `REGION / area` over the anomalous pixels in the bin, where `area` is the
            area of the pixel's region.
        tied: `[n]`, bool, whether all scores of the bin are known to be equal, so that binning loses no order.
    """

    lowest: np.ndarray
    normal: np.ndarray
    anomalous: np.ndarray
    region_weight: np.ndarray
    tied: np.ndarray

    @property
    def thresholds(self) -> np.ndarray:
        """Returns the highest threshold below each bin, `[n]`: the largest number below its lowest score."""
        return np.nextafter(self.lowest, self.lowest.dtype.type(-np.inf))


def score_keys(scores: Tensor) -> Tensor:
    """Returns integers in the order of the scores: `a < b` exactly if `key(a) < key(b)`; -0 and +0 share key 0.

    A bit pattern is sign and magnitude, and magnitudes are in order already. Negating the magnitude of negative scores
    turns the pattern into two's complement.

    Args:
        scores: Any shape, float32 or float64, finite.

    Returns:
        Same shape, int32 for float32 and int64 for float64.
    """
    integers = torch.int64 if scores.dtype == torch.float64 else torch.int32
    limits = torch.iinfo(integers)
    pattern = scores.contiguous().view(integers)
    sign = pattern >> (limits.bits - 1)  # 0 or -1
    return (sign & limits.max).bitwise_xor_(pattern).sub_(sign)


def key_scores(keys: np.ndarray, wide: bool = False) -> np.ndarray:
    """Returns the scores that have these keys: the inverse of `score_keys`.

    Args:
        keys: `[n]`, int64.
        wide: Whether they are keys of float64 scores; of float32 ones otherwise.
    """
    magnitude = np.abs(keys)
    magnitude = magnitude.view(np.float64) if wide else magnitude.astype(np.int32).view(np.float32)
    return np.where(keys < 0, -magnitude, magnitude)


def wide_keys(keys: Tensor) -> Tensor:
    """Returns the float64 keys of float32 scores, `[n]`, int64, by their float32 keys, `[n]`, int64."""
    return score_keys(torch.from_numpy(key_scores(keys.cpu().numpy())).double()).to(keys.device)


def wide_range(lowest: int, highest: int) -> tuple[int, int]:
    """Returns a range of float32 keys as a range of float64 keys. A reversed range is empty, and stays so."""
    if lowest > highest:
        return 2**63 - 1, -(2**63)
    low, high = wide_keys(torch.tensor([lowest, highest])).tolist()
    return low, high


def region_weight(areas: Tensor) -> Tensor:
    """Returns `REGION / area` rounded to the nearest integer: `[n]`, int64, for areas `[n]`, integer, at least 1."""
    areas = areas.long()
    return (REGION + areas // 2) // areas


class Bins(NamedTuple):
    """A partition of a range of keys. Even bins hold one score, odd bins the scores between two even bins.

    So coarse scores that are equal (half precision, integers, 0 and 1 where a map is saturated) are distinguished from
    different scores in one bin.

    Attributes:
        floor: Keys up to this magnitude share a bin per sign. Zero has its own bin.
        shift: The even bins are at multiples of `2^shift` beyond the floor.
        first: Number of the first bin.
        size: Number of bins.
        above: Whether all keys are above the floor.
    """

    floor: int
    shift: int
    first: int
    size: int
    above: bool

    @classmethod
    def between(cls, lowest: int, highest: int, limit: int, mantissa: int = MANTISSA) -> "Bins":
        """Returns the finest partition of `[lowest, highest]` with at most `limit` even bins.

        Both `floor` and `shift` grow with the range, and the floor is a multiple of every possible `2^shift`. Therefore
        the bins of a wider range are unions of these.
        """
        octave = max(abs(lowest), abs(highest)) >> mantissa
        floor = max(octave - OCTAVES + 1, 0) << mantissa
        # The span of the keys of either sign. The part beyond the floor may shrink as the floor rises.
        reach = OCTAVES << mantissa
        span = min(max(highest, 0) - max(lowest, 0), reach) + min(max(-lowest, 0) - max(-highest, 0), reach)
        shift = 0
        while (span >> shift) + 2 > limit:
            shift += 1
        low, high = (key >> shift for key in _beyond(torch.tensor([lowest, highest]), floor).tolist())
        return cls(floor, shift, 2 * low, 2 * (high - low + 1), above=lowest > floor)

    def index(self, keys: Tensor) -> Tensor:
        """Returns the bins, from 0, of keys of any shape and integer type."""
        keys = keys - self.floor if self.above else _beyond(keys, self.floor)  # the first is common, and faster
        below = keys >> self.shift
        return keys.add_(2**self.shift - 1).bitwise_right_shift_(self.shift).add_(below).sub_(self.first)

    def keys(self, index: Tensor) -> Tensor:
        """Returns the lowest key in each bin: `[n]`, int64, for bins `[n]`, int64."""
        number = index + self.first
        keys = (number >> 1 << self.shift) + (number & 1)
        # The bin just above zero begins with the smallest positive number.
        return torch.where(keys == 1, keys, keys + keys.sign() * self.floor)


def _beyond(keys: Tensor, floor: int) -> Tensor:
    """Returns a new tensor of the signed distances of keys beyond the floor; -1, 0 or 1 within the floor."""
    beyond = keys - keys.clamp(-floor, floor)
    return torch.where(beyond == 0, keys.clamp(-1, 1), beyond)


@dataclass
class ScoreHistogram:
    """Additive counts by score.

    Keys are those of float32 scores until a score comes that only float64 can represent. The bins in use are then
    converted to float64 bins. Each remains one bin, or becomes a part of one. This would fail if all scores were below
    2^-96, where float32 steps become uniform and float64 steps do not. Such scores are counted in float64 from the
    start.

    Attributes:
        lowest: Lowest key so far; above `highest` if there is none.
        highest: Highest key so far.
        counts: `[3, n]`, int64: normal pixels, anomalous pixels and region weight of the n bins between these keys.
        limit: Largest number of scores that are distinguished.
        wide: Whether keys are those of float64 scores.
    """

    lowest: int
    highest: int
    counts: Tensor
    limit: int
    wide: bool = False

    @classmethod
    def empty(cls, limit: int = BINS, device: torch.device | None = None) -> "ScoreHistogram":
        """Returns an empty histogram."""
        return cls(2**31, -(2**31), torch.zeros(3, 0, dtype=torch.int64, device=device), limit)

    @property
    def bins(self) -> Bins:
        """Returns the bins of the counts. There must be at least one."""
        return Bins.between(self.lowest, self.highest, self.limit, WIDE_MANTISSA if self.wide else MANTISSA)

    def add(self, scores: Tensor, areas: Tensor, weights: Tensor | None = None) -> None:
        """Adds pixels. They must be on the device of `counts`.

        Args:
            scores: Any shape, float32 or float64, finite. Float64 scores are distinguished in float64.
            areas: Same shape, int32: area in pixels of the anomalous region of the pixel, 0 = normal.
            weights: Same shape, int64: weight of each anomalous pixel, `REGION / area` by default. A whole region
                weighs `REGION`.
        """
        if not scores.numel():
            return
        lowest, highest = score_keys(torch.stack(scores.aminmax())).tolist()
        if scores.dtype == torch.float64:
            self.to_float64()
        else:
            if self._tiny(lowest, highest):
                self.to_float64()
            if self.wide:
                lowest, highest = wide_range(lowest, highest)
        self.widen(lowest, highest)
        number = torch.float64 if self.wide else torch.float32
        bins = self.bins
        areas = areas.flatten()
        for number_of_part, part in enumerate(scores.flatten().split(CHUNK)):
            at = slice(number_of_part * CHUNK, number_of_part * CHUNK + len(part))
            part_areas = areas[at]
            index = bins.index(score_keys(part.to(number)))
            self.counts[0] += torch.bincount(index, minlength=bins.size)
            anomalous = part_areas.nonzero().squeeze(1)
            index = index[anomalous].long()
            ones = torch.ones_like(index)
            self.counts[0].index_add_(0, index, ones, alpha=-1)
            self.counts[1].index_add_(0, index, ones)
            # Not bincount(weights=...), which sums in float64 and is not deterministic on CUDA.
            of_region = region_weight(part_areas[anomalous]) if weights is None else weights.flatten()[at][anomalous]
            self.counts[2].index_add_(0, index, of_region)

    def _tiny(self, lowest: int, highest: int) -> bool:
        """Returns whether all scores, including the float32 keys `lowest` to `highest`, are below 2^-96."""
        return not self.wide and 0 < max(-lowest, highest, -self.lowest, self.highest) < (OCTAVES + 1) << MANTISSA

    def to_float64(self) -> None:
        """Converts the counts to bins of float64 scores. Does nothing if they already are."""
        if self.wide:
            return
        counts, bins = self.counts, self.bins if self.counts.shape[1] else None
        self.lowest, self.highest = wide_range(self.lowest, self.highest)
        self.wide = True
        if bins is not None:
            used = counts[:2].any(0).nonzero().squeeze(1)
            self.counts = counts.new_zeros(3, self.bins.size)
            self.counts.index_add_(1, self.bins.index(wide_keys(bins.keys(used))), counts[:, used])

    def merge(self, other: "ScoreHistogram") -> None:
        """Adds the counts of another histogram, which may be on another device."""
        if self.limit != other.limit:
            raise ValueError(f"cannot add a histogram of {other.limit} bins to one of {self.limit} bins")
        if self.wide or other.wide:
            self.to_float64()
            other = replace(other)
            other.to_float64()
        self.widen(other.lowest, other.highest)
        if other.counts.shape[1]:
            self._take(other.counts.to(self.counts.device), other.bins)

    def widen(self, lowest: int, highest: int) -> None:
        """Extends the range to the keys `lowest` to `highest`. A reversed range is empty and changes nothing."""
        if lowest > highest or (self.lowest <= lowest and highest <= self.highest):
            return
        counts, bins = self.counts, self.bins if self.counts.shape[1] else None
        self.lowest, self.highest = min(lowest, self.lowest), max(highest, self.highest)
        if bins == self.bins:
            return
        self.counts = counts.new_zeros(3, self.bins.size)
        if bins is not None:
            self._take(counts, bins)

    def _take(self, counts: Tensor, bins: Bins) -> None:
        """Adds counts of finer bins, each of which is part of one bin here."""
        used = counts[:2].any(0).nonzero().squeeze(1)
        self.counts.index_add_(1, self.bins.index(bins.keys(used)), counts[:, used])

    def score_counts(self) -> ScoreCounts:
        """Returns the bins that are not empty."""
        if not self.counts.shape[1]:
            return exact_counts(np.zeros(0, np.float32), np.zeros(0, np.float32))
        counts = self.counts.cpu()
        used = counts[:2].any(0).nonzero().squeeze(1)
        normal, anomalous, weight = counts[:, used].numpy()
        tied = (used.numpy() % 2 == 0) | (normal + anomalous == 1)
        return ScoreCounts(key_scores(self.bins.keys(used).numpy(), self.wide), normal, anomalous, weight, tied)


def exact_counts(
    normal: np.ndarray, anomalous: np.ndarray, areas: np.ndarray | None = None, weights: np.ndarray | None = None
) -> ScoreCounts:
    """Returns counts of each distinct score, in O(n log n) time: for verification and for small n.

    Args:
        normal: `[n]`, float32 or float64, scores of the normal pixels or images.
        anomalous: `[p]`, float32 or float64, scores of the anomalous pixels or images.
        areas: `[p]`, area of the region of each anomalous pixel; 1 by default.
        weights: `[p]`, whole numbers, instead of areas: weight of each anomalous pixel, in units of `REGION`.
    """
    normal_values, normal_counts = np.unique(normal, return_counts=True)
    values, inverse, value_counts = np.unique(anomalous, return_inverse=True, return_counts=True)
    lowest = np.union1d(normal_values, values)
    n, p, weight = np.zeros((3, len(lowest)), np.int64)
    at = np.searchsorted(lowest, values)
    n[np.searchsorted(lowest, normal_values)] = normal_counts
    p[at] = value_counts
    if weights is None:
        weights = region_weight(torch.from_numpy(np.ones(len(anomalous)) if areas is None else areas)).numpy()
    np.add.at(weight, at[inverse], weights.astype(np.int64))
    return ScoreCounts(lowest, n, p, weight, tied=np.ones(len(lowest), bool))
