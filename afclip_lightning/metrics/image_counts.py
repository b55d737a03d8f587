"""Counts of each image's scores, small enough to be kept, so that images can be resampled.

An image's pixels are counted in bins of its own range. So its counts do not depend on the other images, their order or
their process. The images of a category are then converted to common groups of bins. In these, the counts of any sample
of images, repeated images included, are a weighted sum.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from afclip_lightning.metrics.histogram import (
    MANTISSA,
    WIDE_MANTISSA,
    Bins,
    ScoreCounts,
    ScoreHistogram,
    score_keys,
    wide_keys,
)
from afclip_lightning.metrics.histogram import REGION as IMAGE_REGION
from afclip_lightning.metrics.scores import Array, ranked, to_tensor
from afclip_runtime.thresholds import is_anomalous

IMAGE_BINS = 2**13
"""Resolution of one image's counts: at most 2^14 bins. A used bin takes 6 bytes, a bin with anomalous pixels 14 more
(22 with sPRO). Without sPRO that is at most 328 kB per image, and about 50 kB for 518 x 518 pixels with large
defects."""

ANOMALOUS_GROUPS, REGION_GROUPS, NORMAL_GROUPS = 1536, 384, 384
"""Number of equal shares of a category's anomalous pixels, region weight and normal pixels. A group of bins holds at
most one share of each, unless a single bin holds more. Grouping affects average precision most, through the anomalous
pixels."""

TAIL = (1e-7, 1e-1)
TAIL_GROUPS = 32
"""Groups per factor of ten in the false-positive rate of the pixels of normal images, within `TAIL`. Equal shares would
be too coarse where few false alarms are allowed."""

REGION = 2**36
"""Weight of one whole region in common groups: sums of up to 2^17 regions are exact in float64."""


class Counts(Protocol):
    """The pixel counts of one image, in memory or in a file; see `kept_counts`."""

    @property
    def is_saturated(self) -> bool:
        """Returns whether there are weights of sPRO."""

    def swapped(self) -> "Counts":
        """Returns the counts with the weights of sPRO, if there are any, in place of the region weights."""

    def load(self) -> "ImageCounts":
        """Returns the counts."""


class ImageCounts(NamedTuple):
    """The pixels of one image, counted in the bins of its own range that are used.

    Attributes:
        lowest: Lowest key of its scores.
        highest: Highest key of its scores.
        wide: Whether keys are those of float64 scores.
        bins: `[n]`, uint16, ascending numbers of the bins used.
        pixels: `[n]`, uint32, number of pixels in each bin.
        marked: `[m]`, uint16, ascending numbers of the bins that hold anomalous pixels.
        anomalous: `[m]`, uint32, number of anomalous pixels in each of these.
        region_weight: `[m]`, int64, see `ScoreCounts`.
        saturated_weight: `[m]`, int64, sum of the weights of sPRO; `None` without sPRO. See `spro`.
    """

    lowest: int
    highest: int
    wide: bool
    bins: np.ndarray
    pixels: np.ndarray
    marked: np.ndarray
    anomalous: np.ndarray
    region_weight: np.ndarray
    saturated_weight: np.ndarray | None = None

    @classmethod
    def of(cls, anomaly_map: Tensor, region_area: Tensor, saturated_weight: Tensor | None = None) -> "ImageCounts":
        """Returns the counts of an image.

        Args:
            anomaly_map: Any shape, float32 or float64, finite, at least one pixel.
            region_area: Same shape, int32: area in pixels of the anomalous region of each pixel, 0 = normal.
            saturated_weight: Same shape, int64, see `spro.saturated_weight`.
        """
        histogram = ScoreHistogram.empty(IMAGE_BINS, anomaly_map.device)
        histogram.add(anomaly_map, region_area)
        normal, anomalous, weight = histogram.counts.cpu().numpy()
        pixels = normal + anomalous
        used, marked = pixels.nonzero()[0], anomalous.nonzero()[0]
        saturated = None
        if saturated_weight is not None:
            other = ScoreHistogram.empty(IMAGE_BINS, anomaly_map.device)  # the same scores give the same bins
            other.add(anomaly_map, region_area, saturated_weight)
            saturated = other.counts[2].cpu().numpy()[marked]
        return cls(
            histogram.lowest,
            histogram.highest,
            histogram.wide,
            used.astype(np.uint16),
            pixels[used].astype(np.uint32),
            marked.astype(np.uint16),
            anomalous[marked].astype(np.uint32),
            weight[marked],
            saturated,
        )

    @property
    def nbytes(self) -> int:
        """Returns the size of the arrays, in bytes."""
        parts = (self.bins, self.pixels, self.marked, self.anomalous, self.region_weight, self.saturated_weight)
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def partition(self) -> Bins:
        """Returns the partition that `bins` and `marked` number."""
        return Bins.between(self.lowest, self.highest, IMAGE_BINS, WIDE_MANTISSA if self.wide else MANTISSA)

    @property
    def is_saturated(self) -> bool:
        """See `Counts`."""
        return self.saturated_weight is not None

    def swapped(self) -> "ImageCounts":
        """See `Counts`."""
        return self if self.saturated_weight is None else self._replace(region_weight=self.saturated_weight)

    def load(self) -> "ImageCounts":
        """Returns these."""
        return self

    def histogram(self) -> ScoreHistogram:
        """Returns the counts as a histogram that can be widened and merged."""
        counts = np.zeros((3, self.partition.size), np.int64)
        counts[0, self.bins] = self.pixels
        counts[0, self.marked] -= self.anomalous
        counts[1, self.marked], counts[2, self.marked] = self.anomalous, self.region_weight
        return ScoreHistogram(self.lowest, self.highest, torch.from_numpy(counts), IMAGE_BINS, self.wide)

    def above(self, threshold: float) -> np.ndarray:
        """Returns the numbers of normal and anomalous pixels above a threshold, and their errors, `[4]`, float64.

        The numbers are exact except for the bin that the threshold falls into, unless that bin holds one score. Half
        of its pixels count as above the threshold, so the error is at most half of its pixels.
        """
        first, inside = self._first_above(threshold)
        normal = self.pixels.astype(np.float64)
        normal[np.searchsorted(self.bins, self.marked)] -= self.anomalous
        parts = (self.bins, normal), (self.marked, self.anomalous.astype(np.float64))
        half = [float(count[at == inside].sum()) / 2 for at, count in parts]
        over = [float(count[at >= first].sum()) for at, count in parts]
        return np.array([over[0] + half[0], over[1] + half[1], *half])

    def _first_above(self, threshold: float) -> tuple[int, int]:
        """Returns the first bin whose scores are above a threshold, and the bin of the threshold; -1 for none."""
        number = np.float64 if self.wide else np.float32
        limits = np.finfo(number)
        if threshold < limits.min:
            return 0, -1
        near = np.array([min(threshold, float(limits.max))], number)
        if float(near[0]) > threshold:  # scores are above the threshold if they are above the number just below it
            near = np.nextafter(near, number(-np.inf))
        key = int(score_keys(torch.from_numpy(near)))
        if key < self.lowest:
            return 0, -1
        if key >= self.highest:
            return self.partition.size, -1
        at = int(self.partition.index(torch.tensor([key])))
        return at + 1, at if at % 2 else -1  # the scores of even bins are equal


@dataclass(frozen=True)
class ImageRecord:
    """The record of one image.

    Attributes:
        name: Path of the image, unique in its category.
        label: 1 = anomalous, 0 = normal.
        score: Image score, finite; `None` without an image score.
        counts: Counts of its pixels, in memory or in a file; `None` if the mask is not known.
    """

    name: str
    label: int
    score: float | None
    counts: Counts | None

    def pixels(self) -> ImageCounts | None:
        """Returns the counts of its pixels. Counts in a file are read at each call."""
        return None if self.counts is None else self.counts.load()

    @classmethod
    def of(
        cls,
        name: str,
        label: int,
        score: float | None,
        anomaly_map: Array,
        region_area: Tensor | None,
        saturated_weight: Tensor | None = None,
    ) -> "ImageRecord":
        """Returns the record of an image that `AnomalyMetrics.update` has accepted.

        Args:
            name: Path of the image.
            label: 1 = anomalous, 0 = normal.
            score: Image score, if there is one.
            anomaly_map: `[H, W]`, any numeric type, finite.
            region_area: `[H, W]`, int32, `region_areas` of its mask; `None` where the mask is not known.
            saturated_weight: `[H, W]`, int64, weight of each pixel in sPRO; see `spro.saturated_weight`.
        """
        if region_area is None:
            return cls(name, label, score, None)
        scores, _ = ranked(to_tensor("anomaly_map", anomaly_map))
        return cls(name, label, score, ImageCounts.of(scores, region_area.to(scores.device), saturated_weight))


@dataclass(frozen=True)
class CategoryCounts:
    """The images of one category in common groups of bins, highest scores first.

    Attributes:
        names: Names of the n images, ascending.
        labels: `[n]`, int64, 1 = anomalous, 0 = normal.
        scores: `[n]`, float64, image scores; NaN for an image without one.
        masked: `[n]`, bool, whether the mask of each image is known.
        lowest: `[g]`, lowest score of each group, descending.
        normal: `[n, g]`, float64 whole numbers: normal pixels of each image in each group.
        anomalous: `[n, g]`, float64 whole numbers: anomalous pixels of each image in each group.
        region_weight: `[n, g]`, float64 whole numbers: sums of `REGION / area`, where `area` is the area of the
            pixel's region.
        tied: `[g]`, bool, whether all scores of a group are known to be equal.
        above: `[4, n]` for each level (`image`, `pixel`) with a fixed threshold: normal and anomalous scores of each
            image above the threshold, and the largest error of each. A level is absent unless all images have scores
            of it.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    scores: np.ndarray
    masked: np.ndarray
    lowest: np.ndarray
    normal: np.ndarray = field(repr=False)
    anomalous: np.ndarray = field(repr=False)
    region_weight: np.ndarray = field(repr=False)
    tied: np.ndarray = field(repr=False)
    above: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, records: Sequence[ImageRecord], thresholds: Mapping[str, float] = MappingProxyType({})
    ) -> "CategoryCounts":
        """Returns the images of a category. The order of the records makes no difference.

        Args:
            records: At least one record, with different names.
            thresholds: Fixed thresholds by level; see `above`.

        Raises:
            ValueError: Two images have one name.
        """
        records = sorted(records, key=lambda record: record.name)
        names = tuple(record.name for record in records)
        if len(set(names)) < len(names):
            twice = next(a for a, b in pairwise(names) if a == b)
            raise ValueError(f"{twice}: two images of a category have this name")
        masked = [(i, record) for i, record in enumerate(records) if record.counts is not None]
        whole = ScoreHistogram.empty(IMAGE_BINS)
        for _, counts in _pixels(masked):
            whole.merge(counts.histogram())
        seen = whole.score_counts()
        used = whole.counts[:2].any(0).nonzero().squeeze(1).numpy()  # the order of `score_counts`
        of_normal_images = np.zeros(whole.counts.shape[1])
        for _, counts in _pixels([(i, record) for i, record in masked if record.label == 0]):
            np.add.at(of_normal_images, _moved(counts, whole)[0], counts.pixels)
        group = _groups(seen, of_normal_images[used])
        size = int(group[-1]) + 1 if len(group) else 0
        of_bin = np.zeros(whole.counts.shape[1], np.int64)
        of_bin[used] = group
        normal, anomalous, weight = grouped = np.zeros((3, len(records), size))
        for i, counts in _pixels(masked):
            bins, marked = _moved(counts, whole)  # computed twice: for all images they take more memory than the images
            grouped[:, i] = _grouped(counts, of_bin[bins], of_bin[marked], size)[:, ::-1]
        first = np.searchsorted(group, np.arange(size))
        alone = np.bincount(group, minlength=size) == 1
        return cls(
            names,
            np.array([record.label for record in records], np.int64),
            np.array([np.nan if record.score is None else record.score for record in records], np.float64),
            np.array([record.counts is not None for record in records], bool),
            seen.lowest[first][::-1],
            normal,
            anomalous,
            weight,
            (seen.tied[first] & alone)[::-1],
            _above(records, thresholds),
        )

    def pixel_counts(self, weights: np.ndarray | None = None) -> ScoreCounts:
        """Returns the counts of a sample of the images, for the functions in `curves` and `pro` and their error bounds.

        A whole region weighs less here than in `ScoreCounts`, and its weights are rounded once more. The part of
        `pro_error_bound` that is due to rounding grows by 1/64.

        Args:
            weights: `[n]`, how often each image is in the sample; once each by default.
        """
        times = np.ones(len(self.names)) if weights is None else weights
        normal, anomalous, weight = (
            (times @ part)[::-1].astype(np.int64) for part in (self.normal, self.anomalous, self.region_weight)
        )
        return ScoreCounts(self.lowest[::-1], normal, anomalous, weight, self.tied[::-1])


def _above(records: Sequence[ImageRecord], thresholds: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Returns the number of scores of each image above fixed thresholds; see `CategoryCounts.above`."""
    found = {}
    scores = [record.score for record in records]
    if "image" in thresholds and None not in scores:
        labels = np.array([record.label for record in records])
        over = is_anomalous(np.array(scores, np.float64), thresholds["image"])
        found["image"] = np.stack([over & (labels == 0), over & (labels == 1), *np.zeros((2, len(over)))])
    if "pixel" in thresholds and all(record.counts is not None for record in records):
        of_pixels = [counts.above(thresholds["pixel"]) for _, counts in _pixels(list(enumerate(records)))]
        found["pixel"] = np.stack(of_pixels, axis=1)
    return found


def _pixels(records: Sequence[tuple[int, ImageRecord]]) -> Iterator[tuple[int, ImageCounts]]:
    """Yields the position and the pixel counts of each image with a known mask, one at a time in memory."""
    for i, record in records:
        if (counts := record.pixels()) is not None:
            yield i, counts


def _moved(counts: ImageCounts, whole: ScoreHistogram) -> tuple[np.ndarray, np.ndarray]:
    """Returns the category's bin of each bin of an image, `[n]`, and of each of its marked bins, `[m]`."""
    numbers = torch.from_numpy(np.concatenate([counts.bins, counts.marked]).astype(np.int64))
    keys = counts.partition.keys(numbers)
    if whole.wide and not counts.wide:
        keys = wide_keys(keys)
    at: np.ndarray = whole.bins.index(keys).numpy()
    return at[: len(counts.bins)], at[len(counts.bins) :]


def _grouped(counts: ImageCounts, group: np.ndarray, marked: np.ndarray, size: int) -> np.ndarray:
    """Returns normal and anomalous pixels and region weight of an image by group, `[3, size]`, ascending scores.

    Args:
        counts: The image.
        group: `[n]`, group of each bin used.
        marked: `[m]`, group of each bin that holds anomalous pixels.
        size: Number of groups.
    """
    anomalous = np.bincount(marked, counts.anomalous, size)
    weight = np.bincount(marked, np.rint(counts.region_weight * (REGION / IMAGE_REGION)), size)
    return np.stack([np.bincount(group, counts.pixels, size) - anomalous, anomalous, weight])


def _groups(counts: ScoreCounts, of_normal_images: np.ndarray) -> np.ndarray:
    """Returns the group of each used bin, `[k]`, ascending from 0.

    A group ends where the share of scores above it passes the next of equal steps. For the pixels of normal images,
    the logarithm of that share is compared.

    Args:
        counts: The k used bins of all images.
        of_normal_images: `[k]`, pixels of normal images in each.
    """
    steps = []
    for part, groups in (
        (counts.anomalous, ANOMALOUS_GROUPS),
        (counts.region_weight, REGION_GROUPS),
        (counts.normal, NORMAL_GROUPS),
    ):
        above = part[::-1].cumsum(dtype=np.float64)[::-1] - part
        steps.append(np.floor(above / max(float(part.sum()), 1.0) * groups))
    if total := of_normal_images.sum():
        rate = (of_normal_images[::-1].cumsum()[::-1] - of_normal_images) / total
        steps.append(np.floor(np.log10(rate.clip(*TAIL)) * TAIL_GROUPS))
    changes = np.any([np.diff(step) != 0 for step in steps], axis=0)
    return np.append(0, changes.cumsum())[: len(counts.lowest)]
