"""Output of a comparison: tables of text, CSV and JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from afclip_lightning.benchmark.comparison import FEWEST, Compared, Comparison, Sampled, Signed
from afclip_lightning.benchmark.render import NONE, Grid, spread
from afclip_lightning.metrics.intervals import interval
from afclip_lightning.metrics.significance import LEVEL, Difference, holm, may_be_best
from afclip_lightning.results import MEAN, TITLE_OF_ALL
from afclip_lightning.results.titles import FIXED, RANKED
from afclip_runtime.files import csv_text

COLUMNS = (
    *("metric", "dataset", "category", "first", "second", "first_value", "second_value"),
    *("difference", "low", "high", "p_value", "delong_low", "delong_high", "delong_p_value"),
)


def tables(found: Comparison) -> list[Grid]:
    """Returns the comparison as tables, in percent: means over categories, tests over categories, then each metric."""
    metrics = [metric for metric in TITLE_OF_ALL if any(place[2] == metric for place in found.methods[0].values)]
    means = [_means(found, metrics), _mean_differences(found, metrics)]
    over = [_signed(found)] if found.signed else []
    return [*means, *over, *(_per_category(found, metric) for metric in metrics)]


def explained(found: Comparison) -> list[str]:
    """Returns the explanations of the tables, each of one or two sentences."""
    several = any(len(values) > 1 for method in found.methods for values in method.values.values())
    over = "images, and of the runs of a method" if several else "images"
    lines = [
        f"In percent, on {found.images} images. In brackets is the {100 * LEVEL:g} % interval over "
        f"{found.replicates} samples of the {over}, which all methods share: of values BCa, of differences between the "
        "percentiles.",
        "p is from the paired bootstrap: twice the share of samples in which the difference is 0 or of the other "
        "sign. It is not corrected for the number of rows.",
    ]
    if several:
        lines.append(
            "A method of several runs is their mean ± standard deviation; its interval holds both sources of "
            "variation, images and seeds."
        )
    if any(row.metric in FIXED for row in found.compared):
        lines.append(
            f"{', '.join(FIXED.values())} are at the thresholds that each run fixed without labels; every sample is "
            "judged at the same ones."
        )
    if any(row.delong for row in found.compared):
        lines.append("DeLong is the p-value of DeLong's test of two correlated AUROCs.")
    if found.signed:
        lines.append(
            "Wilcoxon is the p-value of the signed-rank test over categories or datasets, each of which counts once."
        )
    elif units := {place[:2] for place in found.methods[0].values if place[1] != MEAN}:
        lines.append(f"The signed-rank test over categories needs {FEWEST} of them; there are {len(units)}.")
    if len(found.methods) > 2:
        lines.append("Holm is the p-value to its left, corrected for all pairs of methods in this metric.")
        pairs = math.comb(len(found.methods), 2)
        enough = math.ceil(2 * pairs / (1 - LEVEL) - 1e-9) - 1
        if found.replicates < enough:
            least = 2 * pairs / (found.replicates + 1)
            lines.append(
                f"With {pairs} pairs and {found.replicates} samples, Holm's p is at least {min(least, 1):.2g}: take "
                f"--replicates {enough} or more."
            )
    return [*lines, *found.notes]


def to_csv(found: Comparison) -> str:
    """Returns every difference as CSV, with values in [0, 1]. Unknown values are empty."""
    methods = {method.name: method for method in found.methods}

    def line(row: Compared) -> list[Any]:
        values = [methods[name].value((row.dataset, row.category, row.metric)) for name in (row.first, row.second)]
        delong = ["", "", ""] if row.delong is None else [*map(_known, row.delong[1:])]
        return [row.metric, row.dataset, row.category, row.first, row.second, *values, *row.difference, *delong]

    return csv_text(COLUMNS, map(line, found.compared))


def to_json(found: Comparison) -> dict[str, Any]:
    """Returns the comparison for JSON, with values in [0, 1]. Unknown values are left out."""

    def difference(value: Difference) -> dict[str, float]:
        return {name: number for name, number in value._asdict().items() if not math.isnan(number)}

    methods = [
        {
            "name": method.name,
            "metrics": [
                {
                    **dict(zip(("dataset", "category", "metric"), place, strict=True)),
                    "values": list(values),
                    **dict(zip(("low", "high"), interval(method.resampled[place]), strict=True)),
                }
                for place, values in method.values.items()
            ],
        }
        for method in found.methods
    ]
    differences = [
        {
            **{name: getattr(row, name) for name in ("metric", "dataset", "category", "first", "second")},
            **difference(row.difference),
            **({} if row.delong is None else {"delong": difference(row.delong)}),
        }
        for row in found.compared
    ]
    ranks = [
        {
            **{name: getattr(row, name) for name in ("metric", "over", "count")},
            "ranks": dict(zip(row.names, row.ranking.ranks.tolist(), strict=True)),
            "friedman_p_value": row.ranking.p_value,
            "critical_difference": row.ranking.critical_difference,
        }
        for row in found.ranked
    ]
    return {
        "images": found.images,
        "replicates": found.replicates,
        "level": LEVEL,
        "methods": methods,
        "differences": differences,
        "signed_rank_tests": [asdict(row) for row in found.signed],
        "ranks": ranks,
        "notes": list(found.notes),
    }


def _means(found: Comparison, metrics: Sequence[str]) -> Grid:
    rows: list[tuple[str, ...]] = []
    bold: set[tuple[int, int]] = set()
    for metric in metrics:
        for place in [place for place in found.methods[0].values if place[1:] == (MEAN, metric)]:
            values = np.array([method.value(place) for method in found.methods])
            if metric in RANKED:
                best = may_be_best(values, np.stack([method.resampled[place].samples for method in found.methods]))
                bold |= {(len(rows), 2 + number) for number in np.flatnonzero(best).tolist()}
            rows.append((TITLE_OF_ALL[metric], place[0], *(value_text(method, place) for method in found.methods)))
    names = tuple(method.name for method in found.methods)
    below = f"Bold: with {100 * LEVEL:g} % confidence the truly best of a row is among them (Hsu)."
    return Grid(
        "Means over categories", ("metric", "dataset", *names), tuple(rows), 2, below=(below,), bold=frozenset(bold)
    )


def _mean_differences(found: Comparison, metrics: Sequence[str]) -> Grid:
    many = len(found.methods) > 2
    rows = []
    for metric in metrics:
        for dataset in dict.fromkeys(row.dataset for row in found.compared):
            part = [row for row in found.compared if (row.metric, row.dataset, row.category) == (metric, dataset, MEAN)]
            for row, corrected in zip(part, holm([row.difference.p_value for row in part]), strict=True):
                cells = [p_text(row.difference.p_value), *([p_text(float(corrected))] if many else [])]
                rows.append((TITLE_OF_ALL[metric], dataset, _pair(row), difference_text(row.difference), *cells))
    header = ("metric", "dataset", "methods", "difference", "p", *(("Holm",) if many else ()))
    return Grid("Differences of the means", header, tuple(rows), 3)


def _signed(found: Comparison) -> Grid:
    many = len(found.methods) > 2
    rows = [
        (
            TITLE_OF_ALL[row.metric],
            f"{row.count} {row.over}",
            _pair(row),
            f"{row.wins} : {row.losses}",
            p_text(row.p_value),
            *([p_text(row.corrected)] if many else []),
        )
        for row in found.signed
    ]
    header = ("metric", "over", "methods", "above : below", "Wilcoxon", *(("Holm",) if many else ()))
    return Grid("Over categories and datasets", header, tuple(rows), 3)


def _per_category(found: Comparison, metric: str) -> Grid:
    """Returns the metric of each category, and the differences of the other methods from the first."""
    first = found.methods[0].name
    rows_of = [row for row in found.compared if row.metric == metric and row.first == first]
    by_place = {(row.dataset, row.category, row.second): row for row in rows_of}
    tested = {row.second for row in rows_of if row.delong}
    rows = []
    for place in (place for place in found.methods[0].values if place[1] != MEAN and place[2] == metric):
        cells = [value_text(method, place) for method in found.methods]
        for other in found.methods[1:]:
            row = by_place[place[0], place[1], other.name]
            cells += [difference_text(row.difference), p_text(row.difference.p_value)]
            cells += [NONE if row.delong is None else p_text(row.delong.p_value)] if other.name in tested else []
        rows.append((place[0], place[1], *cells))
    header = ["dataset", "category", *(method.name for method in found.methods)]
    for other in found.methods[1:]:
        header += [f"{other.name} − {first}", "p", *(["DeLong"] if other.name in tested else [])]
    return Grid(TITLE_OF_ALL[metric], tuple(header), tuple(rows), 2)


def value_text(method: Sampled, place: tuple[str, str, str]) -> str:
    """Returns a method's metric in percent with its interval; for several runs, mean ± standard deviation."""
    values, (low, high) = [100 * value for value in method.values[place]], interval(method.resampled[place])
    return f"{spread(values)} [{100 * low:.1f}, {100 * high:.1f}]"


def difference_text(difference: Difference) -> str:
    """Returns a difference in percent with its interval."""
    value, low, high = (f"{100 * number:+.1f}".replace("-", "−") for number in difference[:3])
    return f"{value} [{low}, {high}]"


def p_text(p_value: float) -> str:
    """Returns a p-value to three decimals."""
    if math.isnan(p_value):
        return "n/a"
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _pair(row: Compared | Signed) -> str:
    return f"{row.second} − {row.first}"


def _known(value: float) -> float | str:
    return "" if math.isnan(value) else value
