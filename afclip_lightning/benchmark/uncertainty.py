"""Uncertainty of a benchmark's results: intervals, and the methods that may be the best of a column.

They are computed from the image records that runs write with `--evaluation.intervals`. Without it there are none.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np

from afclip_lightning.benchmark.table import Measurement
from afclip_lightning.metrics.image_records import RECORDS_FILE
from afclip_lightning.metrics.significance import may_be_best
from afclip_lightning.results import MEAN, Interval
from afclip_lightning.results.titles import RANKED
from afclip_runtime.errors import UserError
from afclip_runtime.files import csv_text

REPLICATES = 1000
OVER = {False: "images", True: "images and seeds"}
COLUMNS = (
    *("dataset", "method", "train", "shots", "backbone", "metric", "runs"),
    *("low", "high", "over", "may_be_best"),
)

Line = tuple[str, str, int, str]  # method, training set, shots, backbone


@dataclass(frozen=True)
class Uncertainty:
    """Uncertainty of the means over the categories of one test set.

    Attributes:
        runs: Number of runs (seeds) per line, for lines whose runs have image records.
        intervals: Ends of the intervals, in [0, 1], by line and metric. They cover images, and seeds if there are
            several.
        best: Lines and metrics that may be the best. With 95 % confidence, the best of a metric is among them.
        notes: One sentence per omission, with the reason.
    """

    runs: Mapping[Line, int]
    intervals: Mapping[tuple[Line, str], Interval]
    best: frozenset[tuple[Line, str]]
    notes: tuple[str, ...] = ()


def line_of(row: Measurement) -> Line:
    """Returns the line of a table that a measurement belongs to. The line's other measurements have other seeds."""
    return row.method, row.train, row.shots, row.backbone


def uncertainties(rows: Sequence[Measurement], cells: Path) -> dict[str, Uncertainty]:
    """Returns the uncertainty of each test set for which a run has image records.

    Args:
        rows: The benchmark's table.
        cells: Folder of the benchmark's cells.
    """
    found = {}
    for dataset in dict.fromkeys(row.dataset for row in rows):
        part = [row for row in rows if row.dataset == dataset and row.category == MEAN]
        folders: dict[Line, dict[Path, None]] = {}
        for row in part:
            folders.setdefault(line_of(row), {})[cells / row.cell] = None
        kept = {
            line: list(of) for line, of in folders.items() if all((folder / RECORDS_FILE).is_file() for folder in of)
        }
        if kept:
            try:
                found[dataset] = _of_dataset(part, kept)
            except UserError as error:
                found[dataset] = Uncertainty({}, {}, frozenset(), (f"No intervals: {error}",))
    return found


def _of_dataset(rows: Sequence[Measurement], folders: Mapping[Line, Sequence[Path]]) -> Uncertainty:
    from afclip_lightning.benchmark.comparison import sampled
    from afclip_lightning.benchmark.recorded import Group, on_the_same_images, read_recorded
    from afclip_lightning.metrics.intervals import interval

    groups = [Group("\n".join(map(str, line)), tuple(map(read_recorded, of))) for line, of in folders.items()]
    methods, left_out = sampled(on_the_same_images(groups), REPLICATES)
    intervals: dict[tuple[Line, str], Interval] = {}
    best: set[tuple[Line, str]] = set()
    for place in [place for place in methods[0].values if place[1] == MEAN]:
        metric = place[2]
        for line, method in zip(folders, methods, strict=True):
            intervals[line, metric] = interval(method.resampled[place])
        values = np.array([method.value(place) for method in methods])
        if metric in RANKED and values.max() >= _highest(rows, metric) - 1e-9:  # else the best has no records
            kept = may_be_best(values, np.stack([method.resampled[place].samples for method in methods]))
            best |= {(line, metric) for line, may in zip(folders, kept, strict=True) if may}
    runs = {line: len(of) for line, of in folders.items()}
    return Uncertainty(runs, intervals, frozenset(best), tuple(left_out))


def _highest(rows: Sequence[Measurement], metric: str) -> float:
    """Returns the highest mean over seeds that any line has in a metric."""
    values: dict[Line, list[float]] = {}
    for row in rows:
        if row.metric == metric:
            values.setdefault(line_of(row), []).append(row.value)
    return max(map(mean, values.values()))


def to_csv(found: Mapping[str, Uncertainty]) -> str:
    """Returns all intervals as CSV, values in [0, 1]."""

    def lines() -> Iterator[list[object]]:
        for dataset, known in found.items():
            for (line, metric), ends in known.intervals.items():
                runs = known.runs[line]
                rest = [*ends, OVER[runs > 1], int((line, metric) in known.best)]
                yield [dataset, *line, metric, runs, *rest]

    return csv_text(COLUMNS, lines())
