"""Bootstrap intervals of metrics, over the images of a category, and of means over categories.

The tested images are a sample of all possible images. A metric of images that are drawn again from them, many times,
varies about as much as the metric of other samples would. Normal and anomalous images are drawn separately, because
the number of each is a choice of the test set. Each category is drawn separately too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, get_args

import numpy as np
from scipy.special import ndtr, ndtri

from afclip_lightning.metrics.image_counts import CategoryCounts, ImageRecord
from afclip_lightning.metrics.resampling import blocks, draws, metrics_of, without_each
from afclip_lightning.metrics.spro import OF_PRO, saturated
from afclip_lightning.results import LEVEL, MEAN, TITLE_OF_ALL, Interval, Key
from afclip_lightning.types import IntervalKind

FEWEST = 5
"""Smallest number of normal and of anomalous images for an interval. A sample of n images is n times the same image
with probability `n^(1 - n)`: 0.2 % for 5 images, but 1.6 % for 4. That is most of the 2.5 % at either end of a 95 %
interval."""

ONE_KIND = {"image_fixed_fpr": 0, "image_fixed_tpr": 1}
"""Metrics that are computed from images of one label only, and that label."""

LEFT_OUT = 4096
"""Largest number of normal and of anomalous images that are left out one by one; with more images, evenly spaced ones
are. So the time grows with the number of images, not with its square. They estimate the skewness in `a` of BCa, which
is 1/6 of the skewness, divided by the square root of the number of images."""

FEWEST_SAMPLES = 100
"""Smallest number of samples for an interval: the outermost 2.5 % are then two or three samples."""


class Resampled(NamedTuple):
    """A metric of one category, or a mean over categories, with its values on bootstrap samples.

    Attributes:
        value: The metric of the images themselves.
        samples: `[r]`, the metric of each sample drawn from them.
        without: `[m]` per group of images that are drawn together: the metric without each of m images.
        images: Number of images of each group, if only m of them were left out; m by default.
    """

    value: float
    samples: np.ndarray
    without: tuple[np.ndarray, ...]
    images: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Returns the number of images of each group."""
        return self.images or tuple(map(len, self.without))


@dataclass(frozen=True)
class Settings:
    """Settings of bootstrap intervals.

    Attributes:
        replicates: Number of samples.
        kind: See `interval`.
        seed: Seed of the draws. Runs on the same images have the same draws.

    Raises:
        ValueError: A setting is out of range.
    """

    replicates: int = 1000
    kind: IntervalKind = "bca"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replicates < FEWEST_SAMPLES:
            raise ValueError(f"intervals must be 0 or at least {FEWEST_SAMPLES} samples, got {self.replicates}")
        if self.kind not in get_args(IntervalKind):
            raise ValueError(
                f"the kind of intervals must be in {{{', '.join(get_args(IntervalKind))}}}, got {self.kind!r}"
            )
        if self.seed < 0:
            raise ValueError(f"the seed of intervals must not be negative, got {self.seed}")


@dataclass(frozen=True)
class Intervals:
    """The intervals of a run.

    Attributes:
        by_row: The interval of each metric that has one, by dataset and category, including `mean`.
        notes: One sentence per category, or mean, that lacks an interval, with the reason.
    """

    by_row: dict[Key, dict[str, Interval]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def intervals_of(
    records: Mapping[Key, Sequence[ImageRecord]],
    settings: Settings,
    fpr_limit: float = 0.3,
    thresholds: Mapping[Key, Mapping[str, float]] = MappingProxyType({}),
    groups: Mapping[Key, Sequence[ImageRecord]] = MappingProxyType({}),
) -> Intervals:
    """Returns the intervals of each category, and of each dataset's mean over its categories.

    Args:
        records: Image records by dataset and category, in any order.
        settings: Settings of the intervals.
        fpr_limit: Integration limit of `pixel_pro`, in (0, 1].
        thresholds: Thresholds that were fixed without labels, by dataset and category, and by level. Every sample uses
            the same thresholds: the intervals leave out that other normal images would give other thresholds.
        groups: Groups of images by dataset and category; see `groups.records_of`. Whole groups are drawn for group
            metrics. Single images are drawn for image and pixel metrics.
    """
    result = Intervals()
    for dataset in dict.fromkeys(dataset for dataset, _ in records):
        of_dataset: list[Mapping[str, Resampled | None]] = []
        for category in (name for other, name in records if other == dataset and records[other, name]):
            try:
                images = CategoryCounts.of(records[dataset, category], thresholds.get((dataset, category), {}))
            except ValueError as error:  # a repeated image
                result.notes.append(f"No interval of {dataset}/{category}: {error}.")
                of_dataset.append(dict.fromkeys(TITLE_OF_ALL))
                continue
            seed = (settings.seed, dataset, category)
            found = resampled(images, settings.replicates, seed, fpr_limit)
            if reason := _why_none(images, found):
                result.notes.append(f"No interval of {dataset}/{category}: {reason}.")
            if (of_defects := saturated(records[dataset, category])) is not None:
                found |= resampled_spro(of_defects, settings.replicates, seed, fpr_limit)
            if of_groups := groups.get((dataset, category)):
                whole = CategoryCounts.of(of_groups)
                found |= (judged := resampled_groups(whole, settings.replicates, seed))
                if reason := _why_none(whole, judged, "groups of images"):
                    result.notes.append(f"No interval of the groups of {dataset}/{category}: {reason}.")
            of_dataset.append(found)
            result.by_row[dataset, category] = _ends(found, settings)
        parts = {key: [found[key] for found in of_dataset if key in found] for key in TITLE_OF_ALL}
        means = {key: mean_of(of_metric) for key, of_metric in parts.items() if of_metric}
        result.by_row[dataset, MEAN] = _ends(means, settings)
        absent = [TITLE_OF_ALL[key] for key, value in means.items() if value is None and any(parts[key])]
        if absent:
            names = ", ".join(absent)
            result.notes.append(f"No interval of the mean of {dataset}, where a category has none: {names}.")
    return result


def _ends(metrics: Mapping[str, Resampled | None], settings: Settings) -> dict[str, Interval]:
    return {key: interval(one, settings.kind) for key, one in metrics.items() if one is not None}


def resampled(
    images: CategoryCounts, replicates: int, seed: Sequence[int | str] = (0,), fpr_limit: float = 0.3
) -> dict[str, Resampled | None]:
    """Returns the metrics of a category; `None` for a metric that has no interval.

    A metric has no interval if there are fewer than `FEWEST` normal or anomalous images, unless it is in `ONE_KIND`. It
    has none either if a sample leaves it undefined, because all anomalous pixels lie in a few images.

    Args:
        images: The category.
        replicates: Number of samples.
        seed: See `draws`.
        fpr_limit: Integration limit of `pixel_pro`, in (0, 1].
    """
    count = len(images.labels)
    plain = metrics_of(images, np.ones((1, count)), fpr_limit)
    if not any(_enough(images, key) for key in plain):
        return dict.fromkeys(plain)
    groups = [np.flatnonzero(images.labels == label) for label in (0, 1) if label in images.labels]
    left_out = [group[np.linspace(0, len(group) - 1, min(len(group), LEFT_OUT)).astype(int)] for group in groups]
    without = [_without(images, at, fpr_limit) for at in left_out]
    samples = metrics_of(images, draws(images.labels, replicates, seed), fpr_limit)
    return {
        key: Resampled(
            float(values[0]), samples[key], tuple(of_group[key] for of_group in without), tuple(map(len, groups))
        )
        if _enough(images, key) and all(np.isfinite(part[key]).all() for part in (plain, samples, *without))
        else None
        for key, values in plain.items()
    }


def _without(images: CategoryCounts, positions: np.ndarray, fpr_limit: float) -> dict[str, np.ndarray]:
    """Returns the metrics of a category without one image, `[m]` each, for each of the images at `m` positions."""
    count = len(images.labels)
    parts = blocks(len(positions), count)
    found = [metrics_of(images, without_each(count, positions[part]), fpr_limit) for part in parts]
    return {key: np.concatenate([of_part[key] for of_part in found]) for key in found[0]}


def resampled_spro(
    images: CategoryCounts, replicates: int, seed: Sequence[int | str] = (0,), fpr_limit: float = 0.3
) -> dict[str, Resampled | None]:
    """Returns `pixel_spro` and `pixel_spro_05` of a category with saturated weights; see `resampled`."""
    found = resampled(images, replicates, seed, fpr_limit)
    return {OF_PRO[key]: value for key, value in found.items() if key in OF_PRO}


def resampled_groups(
    groups: CategoryCounts, replicates: int, seed: Sequence[int | str] = (0,)
) -> dict[str, Resampled | None]:
    """Returns `group_auroc`, `group_ap` and `group_f1_max` of a category; see `resampled`."""
    found = resampled(groups, replicates, (*seed, "groups"))
    return {f"group_{key.removeprefix('image_')}": value for key, value in found.items()}


def _enough(images: CategoryCounts, metric: str = "") -> bool:
    """Returns whether there are enough images for the interval of a metric; by default one that needs both labels."""
    kinds = (ONE_KIND[metric],) if metric in ONE_KIND else (0, 1)
    return all((images.labels == kind).sum() >= FEWEST for kind in kinds)


def _why_none(images: CategoryCounts, metrics: Mapping[str, Resampled | None], noun: str = "images") -> str | None:
    """Returns in words why metrics of a category have no interval; `None` if all have one."""
    if not _enough(images):
        anomalous = int(images.labels.sum())
        normal = len(images.labels) - anomalous
        others = " and ".join(TITLE_OF_ALL[key] for key, value in metrics.items() if value)
        but = f", but for {others}" if others else ""
        return f"it has {normal} normal and {anomalous} anomalous {noun}, and an interval needs {FEWEST} of each{but}"
    absent = [TITLE_OF_ALL[key] for key, value in metrics.items() if value is None]
    return f"too few images have anomalous pixels ({', '.join(absent)})" if absent else None


def mean_of(parts: Sequence[Resampled | None]) -> Resampled | None:
    """Returns the mean of a metric over categories; `None` if one of them has no interval.

    Args:
        parts: The metric of each category, at least one, with equally many samples.
    """
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    value = sum(part.value for part in known) / len(known)
    samples = np.sum([part.samples for part in known], axis=0) / len(known)
    # Without one image, the mean changes by 1 / categories of the change of the category's metric.
    without = tuple(value + (group - part.value) / len(known) for part in known for group in part.without)
    return Resampled(value, samples, without, tuple(size for part in known for size in part.sizes))


def interval(metric: Resampled, kind: IntervalKind = "bca", level: float = LEVEL) -> Interval:
    """Returns the interval of a metric.

    - `percentile`: between the quantiles `(1 - level) / 2` and `(1 + level) / 2` of the samples.
    - `bca`: bias-corrected and accelerated. The bias correction shifts the quantiles by the share of samples below the
      metric itself; samples equal to it count one half. The acceleration is how the spread of the metric changes with
      its value, estimated from the metric without each image. The interval is second-order accurate. It is the
      percentile interval if the shifted quantiles do not exist, because all samples are on one side of the metric or
      one image outweighs all others.

    Args:
        metric: See `resampled` and `mean_of`.
        kind: `percentile` or `bca`.
        level: Confidence level, in (0, 1).

    Reference: Efron, Better Bootstrap Confidence Intervals, JASA 82 (1987), Eq. 2.3 and 6.6; for groups that are drawn
        apart, Davison and Hinkley, Bootstrap Methods and their Application (1997), Eq. 5.26.
    """
    ends = np.array([(1 - level) / 2, (1 + level) / 2])
    if kind == "bca":
        ends = _moved(ends, metric)
    low, high = np.quantile(metric.samples, ends)
    return float(low), float(high)


def _moved(ends: np.ndarray, metric: Resampled) -> np.ndarray:
    """Returns the quantiles of BCa in place of those of the percentile interval, `[2]`."""
    below = ((metric.samples < metric.value).mean() + (metric.samples <= metric.value).mean()) / 2
    if not 0 < below < 1:
        return ends
    bias, normal = ndtri(below), ndtri(ends)
    shift = bias + normal
    scale = 1 - _acceleration(metric.without, metric.sizes) * shift
    return np.asarray(ndtr(bias + shift / scale)) if (scale > 0).all() else ends


def _acceleration(without: Sequence[np.ndarray], images: Sequence[int] = ()) -> float:
    """Returns how fast the standard error changes with the metric: 1/6 of the skewness of each image's contribution.

    Args:
        without: See `Resampled`.
        images: See `Resampled`.
    """
    third, second = 0.0, 0.0
    for group, size in zip(without, images or map(len, without), strict=True):
        influence, share = (size - 1) * (group.mean() - group), size / len(group)
        third += share * float((influence**3).sum()) / size**3
        second += share * float((influence**2).sum()) / size**2
    return third / (6 * second**1.5) if second > 0 else 0.0
