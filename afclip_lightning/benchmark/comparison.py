"""Comparison of methods on the same images: differences in the same samples of images, and ranks over categories."""

import itertools
import zlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

import numpy as np

from afclip_lightning.benchmark.recorded import Group, Recorded
from afclip_lightning.metrics.image_counts import CategoryCounts
from afclip_lightning.metrics.intervals import FEWEST as FEWEST_IMAGES
from afclip_lightning.metrics.intervals import Resampled, mean_of, resampled
from afclip_lightning.metrics.significance import (
    Difference,
    Ranking,
    bootstrap_difference,
    delong_difference,
    holm,
    ranking,
    wilcoxon,
)
from afclip_lightning.results import MEAN, TITLE_OF_ALL, Key
from afclip_lightning.results.titles import RANKED

FEWEST = 6
"""Smallest number of categories or datasets for the signed-rank test. With 5 of equal sign, the p-value is 0.06."""

APART = 0.005
"""Largest accepted difference between a metric of the records and of the run's table. Binning causes less."""

Place = tuple[str, str, str]  # dataset, category or `mean`, metric


@dataclass(frozen=True)
class Sampled:
    """The metrics of one method, as measured and in samples of the images.

    Attributes:
        name: Name of the method.
        values: The metric of each run, in [0, 1], as in its table.
        resampled: The mean over the runs, in samples of the images that all methods share. With n > 1 runs, each sample
            also draws n - 1 runs: then the variance of their mean is unbiased.
    """

    name: str
    values: Mapping[Place, Sequence[float]]
    resampled: Mapping[Place, Resampled]

    def value(self, place: Place) -> float:
        """Returns the mean over the runs."""
        return mean(self.values[place])


@dataclass(frozen=True)
class Compared:
    """The difference between two methods: the second minus the first.

    Attributes:
        dataset: Name of the dataset.
        category: Category, or `mean`.
        metric: A key of `results.TITLE_OF_ALL`.
        first: Name of the first method.
        second: Name of the second method.
        difference: Difference by the paired bootstrap.
        delong: Difference by DeLong's test, for the image AUROC of single runs in a category; otherwise `None`.
    """

    dataset: str
    category: str
    metric: str
    first: str
    second: str
    difference: Difference
    delong: Difference | None = None


@dataclass(frozen=True)
class Signed:
    """The signed-rank test of two methods over categories or datasets.

    Attributes:
        metric: A key of `results.TITLE_OF_ALL`.
        over: `categories` or `datasets`.
        count: Number of categories or datasets.
        first: Name of the first method.
        second: Name of the second method.
        wins: Number of those where the second method is above the first.
        losses: Number of those where it is below.
        p_value: Two-sided p-value.
        corrected: p-value corrected by Holm for all pairs of methods in this metric.
    """

    metric: str
    over: str
    count: int
    first: str
    second: str
    wins: int
    losses: int
    p_value: float
    corrected: float


@dataclass(frozen=True)
class Ranked:
    """Ranks of methods over categories or datasets in one metric.

    Attributes:
        metric: A key of `results.TITLE_OF_ALL`.
        over: `categories` or `datasets`.
        count: Number of categories or datasets.
        names: Names of the methods.
        ranking: Mean ranks of the methods.
    """

    metric: str
    over: str
    count: int
    names: tuple[str, ...]
    ranking: Ranking


@dataclass(frozen=True)
class Comparison:
    """All differences between methods.

    Attributes:
        methods: The methods, at least two.
        images: Number of images on which the methods were compared.
        replicates: Number of samples of the images.
        compared: Every pair of methods, by dataset, category and metric.
        signed: Every pair of methods, by metric.
        ranked: Ranks by metric, for three or more methods.
        notes: Sentences that a reader of the comparison must know.
    """

    methods: Sequence[Sampled]
    images: int
    replicates: int
    compared: Sequence[Compared]
    signed: Sequence[Signed]
    ranked: Sequence[Ranked]
    notes: Sequence[str]


def compare(groups: Sequence[Group], replicates: int, seed: int = 0) -> Comparison:
    """Returns all differences between methods, metric by metric: in each category, in their mean, and over them.

    Args:
        groups: At least two methods with runs on the same images; see `recorded.on_the_same_images`.
        replicates: Number of samples of the images.
        seed: Seed of the samples.
    """
    methods, notes = sampled(groups, replicates, seed)
    signed, ranked = _over_units(methods)
    images = sum(map(len, groups[0].runs[0].records.values()))
    pairs = itertools.combinations(range(len(groups)), 2)
    compared = [_compared(groups[i], methods[i], groups[j], methods[j]) for i, j in pairs]
    return Comparison(methods, images, replicates, list(itertools.chain(*compared)), signed, ranked, notes)


def sampled(groups: Sequence[Group], replicates: int, seed: int = 0) -> tuple[list[Sampled], list[str]]:
    """Returns the metrics of methods in the same samples of the images, and one sentence per metric that is left out.

    Pixel metrics are included if every run counted its pixels. A metric without an interval in some run is left out.

    Args:
        groups: See `compare`.
        replicates: Number of samples.
        seed: Seed of the samples.
    """
    runs = [[_run(run, replicates, seed) for run in group.runs] for group in groups]
    flat = [found for of_group in runs for found in of_group]
    left_out = _left_out([run for group in groups for run in group.runs], flat)
    common = [
        place
        for place in flat[0].values
        if place[2] not in left_out and all(found.resampled.get(place) is not None for found in flat)
    ]
    methods = []
    for group, of_group in zip(groups, runs, strict=True):
        picks = _picks(group, replicates, seed)
        methods.append(
            Sampled(
                group.name,
                {place: [found.values[place] for found in of_group] for place in common},
                {place: over_runs([found.resampled[place] for found in of_group], picks) for place in common},
            )
        )
    return methods, [*left_out.values(), *_too_few(flat, left_out)]


class _Run(NamedTuple):
    """The metrics of one run: from its table, and in samples of its images; `None` if too few images have them."""

    values: dict[Place, float]
    resampled: dict[Place, Resampled | None]


def _run(run: Recorded, replicates: int, seed: int) -> _Run:
    values: dict[Place, float] = {}
    found: dict[Place, Resampled | None] = {}
    for key, metrics in run.metrics.items():
        images = CategoryCounts.of(run.records[key], run.thresholds[key])
        again = resampled(images, replicates, (seed, *key), run.pro_limit)
        for metric in TITLE_OF_ALL:
            if metric in metrics and metric in again:
                place = (*key, metric)
                values[place], found[place] = metrics[metric], again[metric]
    parts: dict[Place, list[Place]] = {}
    for place in values:
        parts.setdefault((place[0], MEAN, place[2]), []).append(place)
    for place, of in parts.items():
        values[place], found[place] = mean(values[p] for p in of), mean_of([found[p] for p in of])
    return _Run(values, found)


def _picks(group: Group, replicates: int, seed: int) -> np.ndarray:
    """Returns the runs of a method in each sample, `[draws, r]`. All categories of a sample are from the same runs."""
    count = len(group.runs)
    rng = np.random.default_rng([seed, zlib.crc32(group.name.encode("utf-8", "surrogateescape"))])
    return rng.integers(0, count, (max(count - 1, 1), replicates))


def over_runs(parts: Sequence[Resampled | None], picks: np.ndarray) -> Resampled:
    """Returns the mean of a metric over runs on the same images, in samples of both.

    Args:
        parts: The metric of each run, in the same samples of the images.
        picks: `[draws, r]`, the runs in each sample.
    """
    known = [part for part in parts if part is not None]
    values = np.array([part.value for part in known])
    samples = np.stack([part.samples for part in known])[picks, np.arange(picks.shape[1])].mean(axis=0)
    without = tuple(np.mean(group, axis=0) for group in zip(*(part.without for part in known), strict=True))
    sizes = known[0].sizes
    if len(known) > 1:  # the runs are one more group that is drawn together
        without += ((values.sum() - values) / (len(values) - 1),)
        sizes += (len(values),)
    return Resampled(float(values.mean()), samples, without, sizes)


def _left_out(runs: Sequence[Recorded], found: Sequence[_Run]) -> dict[str, str]:
    """Returns the metrics in which the runs cannot be compared, with the reasons."""
    left_out = {}
    limits = sorted({run.pro_limit for run in runs})
    if len(limits) > 1:
        between = " and ".join(f"{limit:g}" for limit in limits)
        left_out["pixel_pro"] = f"{TITLE_OF_ALL['pixel_pro']} is left out: the runs integrate it up to {between}."
    for run, metrics in zip(runs, found, strict=True):
        for place, value in metrics.values.items():
            again = metrics.resampled[place]
            if place[1] != MEAN and again is not None and abs(value - again.value) > APART:
                reason = (
                    f"{TITLE_OF_ALL[place[2]]} is left out: for {'/'.join(place[:2])} it is {100 * value:.1f} in the "
                    f"table of {run.path}, but {100 * again.value:.1f} from the records of its images. The definitions "
                    "differ, or the files come from two tests."
                )
                left_out.setdefault(place[2], reason)
    return left_out


def _too_few(found: Sequence[_Run], left_out: Container[str]) -> list[str]:
    """Returns a sentence per category that has too few images for metrics that its table has."""
    absent: dict[str, dict[str, None]] = {}
    for run in found:
        for (dataset, category, metric), again in run.resampled.items():
            if again is None and category != MEAN and metric not in left_out:
                absent.setdefault(f"{dataset}/{category}", {})[TITLE_OF_ALL[metric]] = None
    return [
        f"{name} is left out, and so is its dataset's mean, in {', '.join(titles)}: it has too few images. An "
        f"interval needs {FEWEST_IMAGES} normal and {FEWEST_IMAGES} anomalous ones."
        for name, titles in absent.items()
    ]


def _compared(first: Group, a: Sampled, second: Group, b: Sampled) -> list[Compared]:
    result = []
    single = len(first.runs) == len(second.runs) == 1
    for place in a.resampled:
        dataset, category, metric = place
        by_delong = None
        if metric == "image_auroc" and category != MEAN and single:
            by_delong = _delong(first.runs[0], second.runs[0], (dataset, category))
        samples = b.resampled[place].samples - a.resampled[place].samples
        difference = bootstrap_difference(b.value(place) - a.value(place), samples)
        result.append(Compared(dataset, category, metric, first.name, second.name, difference, by_delong))
    return result


def _delong(first: Recorded, second: Recorded, key: Key) -> Difference:
    """Returns DeLong's test of the image scores."""
    ours, theirs = (sorted(run.records[key], key=lambda record: record.name) for run in (first, second))
    labels = np.array([record.label for record in ours])
    a, b = (np.array([record.score for record in records], float) for records in (ours, theirs))
    return delong_difference(b, a, labels)


def _over_units(methods: Sequence[Sampled]) -> tuple[list[Signed], list[Ranked]]:
    """Returns the tests over categories, and over datasets where there are several."""
    signed: list[Signed] = []
    ranked: list[Ranked] = []
    names = tuple(method.name for method in methods)
    for metric in RANKED:
        places = [place for place in methods[0].values if place[2] == metric]
        for over in ("categories", "datasets"):
            units = [place for place in places if (place[1] == MEAN) == (over == "datasets")]
            if len(units) < FEWEST:
                continue
            table = np.array([[method.value(place) for method in methods] for place in units])
            pairs = list(itertools.combinations(range(len(methods)), 2))
            p_values = [wilcoxon(table[:, j] - table[:, i]) for i, j in pairs]
            for (i, j), p_value, corrected in zip(pairs, p_values, holm(p_values), strict=True):
                wins, losses = (int((sign * (table[:, j] - table[:, i]) > 0).sum()) for sign in (1, -1))
                signed.append(
                    Signed(metric, over, len(units), names[i], names[j], wins, losses, p_value, float(corrected))
                )
            if len(methods) > 2:
                ranked.append(Ranked(metric, over, len(units), names, ranking(table)))
    return signed, ranked
