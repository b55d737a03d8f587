"""Methods on the same images: their differences in the same samples of these, and how they rank over categories."""

import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

import numpy as np

from afclip_lightning.benchmark.recorded import Group, Recorded
from afclip_lightning.metrics.image_counts import CategoryCounts
from afclip_lightning.metrics.resampling import draws, metrics_of
from afclip_lightning.metrics.significance import (
    Difference,
    Ranking,
    bootstrap_difference,
    delong_difference,
    holm,
    ranking,
    wilcoxon,
)
from afclip_lightning.results import MEAN, METRICS, TITLE, Key

FEWEST = 6
"""Categories or datasets that the signed-rank test needs: of 5, all of one sign have the p-value 0.06."""

APART = 0.005
"""How far a metric of the records may be from that of the run's table; binning moves it by less."""

Place = tuple[str, str, str]  # dataset, category or `mean`, metric


@dataclass(frozen=True)
class Sampled:
    """The metrics of one method, as measured and in samples of the images.

    Attributes:
        name: The method.
        values: The metric of each run, in [0, 1].
        samples: `[r]` each: the mean over the runs in each sample of the images, which all methods share. Of several
            runs, a sample draws these too, one fewer than there are: so many give their mean its variance, unbiased.
    """

    name: str
    values: Mapping[Place, Sequence[float]] = field(default_factory=dict)
    samples: Mapping[Place, np.ndarray] = field(default_factory=dict)

    def interval(self, place: Place) -> Difference:
        """Returns the mean over the runs with its interval."""
        return bootstrap_difference(mean(self.values[place]), self.samples[place])


@dataclass(frozen=True)
class Compared:
    """By how much the second of two methods is above the first.

    Attributes:
        dataset: Name of the dataset.
        category: Its category, or `mean`.
        metric: As in `results.METRICS`.
        first: Name of the first method.
        second: Name of the second.
        difference: By the paired bootstrap.
        delong: By DeLong's test; `None` but for the image AUROC of single runs in a category.
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
        metric: As in `results.METRICS`.
        over: `categories` or `datasets`.
        count: How many.
        first: Name of the first method.
        second: Name of the second.
        wins: Where the second is above the first.
        losses: Where it is below.
        p_value: Two-sided.
        corrected: The same by Holm, for all pairs of methods in this metric.
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
    """How methods rank over categories or datasets in one metric.

    Attributes:
        metric: As in `results.METRICS`.
        over: `categories` or `datasets`.
        count: How many.
        names: The methods.
        ranking: Their mean ranks.
    """

    metric: str
    over: str
    count: int
    names: tuple[str, ...]
    ranking: Ranking


@dataclass(frozen=True)
class Comparison:
    """What is known of the differences between methods.

    Attributes:
        methods: At least two.
        images: How many the methods were compared on.
        replicates: How many samples of the images.
        compared: By dataset, category and metric, every pair of methods.
        signed: By metric, every pair.
        ranked: By metric, where there are three methods or more.
        notes: What must be known to read it, a sentence each.
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
        groups: At least two methods, whose runs are of the same images; see `recorded.on_the_same_images`.
        replicates: How many samples of the images.
        seed: Of the samples.
    """
    methods, notes = sampled(groups, replicates, seed)
    signed, ranked = _over_units(methods)
    images = sum(map(len, groups[0].runs[0].records.values()))
    pairs = itertools.combinations(range(len(groups)), 2)
    compared = [_compared(groups[i], methods[i], groups[j], methods[j]) for i, j in pairs]
    return Comparison(methods, images, replicates, list(itertools.chain(*compared)), signed, ranked, notes)


def sampled(groups: Sequence[Group], replicates: int, seed: int = 0) -> tuple[list[Sampled], list[str]]:
    """Returns the metrics of methods in the same samples of the images, and what was left out, a sentence each.

    The metrics of pixels are among them if every run counted its pixels.

    Args:
        groups: See `compare`.
        replicates: How many samples.
        seed: Of the samples.
    """
    runs = [run for group in groups for run in group.runs]
    left_out = _left_out(runs)
    picks = [_picks(group, replicates, seed) for group in groups]
    values: list[dict[Place, list[float]]] = [{} for _ in groups]
    samples: list[dict[Place, np.ndarray]] = [{} for _ in groups]
    for key in runs[0].metrics:
        records = runs[0].records[key]
        labels = np.array([record.label for record in sorted(records, key=lambda record: record.name)])
        drawn = draws(labels, replicates, (seed, *key))
        weights = np.concatenate([np.ones((1, len(labels))), drawn])  # the first sample is of all images
        for number, group in enumerate(groups):
            found = [metrics_of(CategoryCounts.of(run.records[key]), weights, run.pro_limit) for run in group.runs]
            for metric in METRICS:
                known = [run.metrics[key][metric] for run in group.runs if metric in run.metrics[key]]
                of_runs = [part[metric] for part in found if metric in part]
                if len(known) == len(of_runs) == len(group.runs):
                    _check_table(left_out, metric, known, [float(part[0]) for part in of_runs], group, key)
                    place = (*key, metric)
                    values[number][place] = known
                    drawn_runs = np.stack(of_runs)[picks[number], np.arange(1, replicates + 1)]
                    samples[number][place] = drawn_runs.mean(axis=0)
    common = [place for place in samples[0] if all(place in part for part in samples) and place[2] not in left_out]
    methods = [
        _with_means(Sampled(group.name, {p: v[p] for p in common}, {p: s[p] for p in common}))
        for group, v, s in zip(groups, values, samples, strict=True)
    ]
    return methods, list(left_out.values())


def _picks(group: Group, replicates: int, seed: int) -> np.ndarray:
    """Returns which runs of a method each sample is of, `[draws, r]`: all categories are of the same ones."""
    count = len(group.runs)
    rng = np.random.default_rng([seed, zlib.crc32(group.name.encode())])
    return rng.integers(0, count, (max(count - 1, 1), replicates))


def _left_out(runs: Sequence[Recorded]) -> dict[str, str]:
    """Returns the metrics that the runs cannot be compared in, with the reason."""
    limits = sorted({run.pro_limit for run in runs})
    if len(limits) == 1:
        return {}
    between = " and ".join(f"{limit:g}" for limit in limits)
    return {"pixel_pro": f"{TITLE['pixel_pro']} is left out: the runs integrate it up to {between}."}


def _check_table(
    left_out: dict[str, str], metric: str, known: Sequence[float], recorded: Sequence[float], group: Group, key: Key
) -> None:
    """Leaves a metric out that the images of a run do not give as its table has it."""
    for run, value, again in zip(group.runs, known, recorded, strict=True):
        if abs(value - again) > APART:
            reason = (
                f"{TITLE[metric]} is left out: for {'/'.join(key)} it is {100 * value:.1f} in the table of {run.path}, "
                f"and {100 * again:.1f} by what is kept of its images. Its definition is another there, or the files "
                "are of two tests."
            )
            left_out.setdefault(metric, reason)


def _with_means(method: Sampled) -> Sampled:
    """Returns a method with, for each dataset, the means over its categories."""
    parts: dict[Place, list[Place]] = {}
    for dataset, category, metric in method.samples:
        parts.setdefault((dataset, MEAN, metric), []).append((dataset, category, metric))
    values = {
        place: [mean(of_run) for of_run in zip(*(method.values[p] for p in part), strict=True)]
        for place, part in parts.items()
    }
    samples = {place: np.mean([method.samples[p] for p in part], axis=0) for place, part in parts.items()}
    return Sampled(method.name, {**method.values, **values}, {**method.samples, **samples})


def _compared(first: Group, a: Sampled, second: Group, b: Sampled) -> list[Compared]:
    result = []
    for place, samples in a.samples.items():
        dataset, category, metric = place
        value = mean(b.values[place]) - mean(a.values[place])
        single = len(first.runs) == len(second.runs) == 1
        by_delong = None
        if metric == "image_auroc" and category != MEAN and single:
            by_delong = _delong(first.runs[0], second.runs[0], (dataset, category))
        difference = bootstrap_difference(value, b.samples[place] - samples)
        result.append(Compared(dataset, category, metric, first.name, second.name, difference, by_delong))
    return result


def _delong(first: Recorded, second: Recorded, key: Key) -> Difference | None:
    """Returns DeLong's test of the image scores; `None` where a kind has a single image."""
    ours, theirs = (sorted(run.records[key], key=lambda record: record.name) for run in (first, second))
    labels = np.array([record.label for record in ours])
    if min(labels.sum(), (1 - labels).sum()) < 2:
        return None
    a, b = (np.array([record.score for record in records], float) for records in (ours, theirs))
    return delong_difference(b, a, labels)


def _over_units(methods: Sequence[Sampled]) -> tuple[list[Signed], list[Ranked]]:
    """Returns the tests over categories, and over datasets where there are several."""
    signed: list[Signed] = []
    ranked: list[Ranked] = []
    names = tuple(method.name for method in methods)
    for metric in METRICS:
        places = [place for place in methods[0].samples if place[2] == metric]
        for over in ("categories", "datasets"):
            units = [place for place in places if (place[1] == MEAN) == (over == "datasets")]
            if len(units) < FEWEST:
                continue
            table = np.array([[mean(method.values[place]) for method in methods] for place in units])
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
