"""The table of a benchmark: one measurement per line, collected from the folders of the runs."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path

from afclip_lightning.benchmark.matrix import Cell, Step
from afclip_lightning.results.operating import OperatingPoint, points_as_metrics
from afclip_runtime.errors import UserError
from afclip_runtime.files import atomic_path, csv_text, is_there, read_json, shown, wait_for_lock, write_text

DONE, TABLE = "done.json", "results"
REMEDY = "--retry makes it again."


@dataclass(frozen=True)
class Measurement:
    """A line of the benchmark's table: one value of one metric, with its conditions.

    Attributes:
        cell: The run's folder in `cells/`.
        method: Name of the method.
        train: Training set; empty for a method that is not fitted.
        dataset: Test set.
        category: Category of the test set, or `mean` for the mean over them.
        shots: Normal images per category.
        seed: Seed.
        metric: Metric as in a run's results, like `image_auroc`.
        value: Value in [0, 1].
        backbone: Description of the backbone.
    """

    cell: str
    method: str
    train: str
    dataset: str
    category: str
    shots: int
    seed: int
    metric: str
    value: float
    backbone: str


@dataclass(frozen=True)
class Done:
    """The record that the runner writes into a run's folder when the run has ended.

    Attributes:
        method: See `Measurement`.
        train: See `Measurement`.
        seed: See `Measurement`.
        dataset: Test set; empty for `fit`.
        shots: See `Measurement`.
        seconds: Duration of the run, in seconds.
        digest: Digest of the step at that time.
    """

    method: str
    train: str
    seed: int
    dataset: str
    shots: int
    seconds: float
    digest: str


@dataclass(frozen=True)
class _ResultsRow:
    category: str
    metrics: dict[str, float]
    operating_points: dict[str, OperatingPoint] = field(default_factory=dict)


@dataclass(frozen=True)
class _Results:
    rows: list[_ResultsRow]


@dataclass(frozen=True)
class _Run:
    backbone: str = ""


def read_done(folder: Path) -> Done:
    """Returns the record that the runner wrote into a run's folder when the run had ended.

    Raises:
        UserError: The record is damaged. The message names it.
    """
    return read_json(folder / DONE, Done, remedy=REMEDY)


def read_results(folder: Path) -> list[tuple[str, str, float]]:
    """Returns category, metric and value of every result in a run's folder.

    Raises:
        UserError: The file is damaged or absent. The message names the file and the row.
    """
    path = folder / "results.json"
    rows = read_json(path, _Results, finite=False, remedy=REMEDY).rows  # a threshold may be infinite
    found = [
        (row.category, metric, value)
        for row in rows
        for metric, value in (row.metrics | points_as_metrics(row.operating_points)).items()
    ]
    if not found:
        raise UserError(f"{shown(path)}: has no results.")
    for category, metric, value in found:
        if not 0 <= value <= 1:  # false for NaN too
            raise UserError(f"{shown(path)}: is damaged: {category} has {metric} {value!r}. {REMEDY}")
    names = [row.category for row in rows]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{shown(path)}: has the category {twice[0]} twice. {REMEDY}")
    return found


def read_backbone(folder: Path) -> str:
    """Returns the description of a run's backbone.

    Raises:
        UserError: The file is damaged or absent. The message names it.
    """
    return read_json(folder / "run.json", _Run, remedy=REMEDY).backbone


def is_done(folder: Path, step: Step) -> bool:
    """Returns whether a step was completed in its folder, and everything that it depends on is unchanged.

    Raises:
        UserError: It was completed, but its output cannot be read. The message names the file.
    """
    if not is_there(folder / DONE):
        return False
    done = read_done(folder)
    if done.digest != step.digest:
        return False
    if (done.dataset, done.shots) != (step.dataset, step.shots):
        raise UserError(f"{shown(folder / DONE)}: belongs to another run. {REMEDY}")
    if step.dataset:
        read_results(folder)
        read_backbone(folder)
    return True


def assemble(out: Path, cells: Sequence[Cell]) -> tuple[list[Measurement], list[str]]:
    """Writes the table of all runs in a folder, of all processes, and returns it.

    Runs whose cell has changed since are left out.

    Args:
        out: Folder of the benchmark.
        cells: The cells of the current matrix.

    Returns:
        The rows, and one sentence per damaged run, which is not among them.
    """
    today = {cell.folder / step.name: step for cell in cells for step in cell.steps}
    rows: list[Measurement] = []
    damaged: list[str] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        with wait_for_lock(out / f".{TABLE}.lock"):  # so the last writer has read the results of all others
            for path in sorted((out / "cells").glob(f"*/*/{DONE}")):
                folder = path.parent
                try:
                    if folder not in today or is_done(folder, today[folder]):
                        rows += _rows(folder)
                except UserError as error:
                    damaged.append(str(error))
            write_text(out / f"{TABLE}.csv", to_csv(rows))
            if find_spec("pyarrow"):
                _write_parquet(out / f"{TABLE}.parquet", rows)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}). Choose another --out.") from error
    return rows, damaged


def to_csv(rows: Sequence[Measurement]) -> str:
    """Returns the table as CSV."""
    return csv_text([field.name for field in fields(Measurement)], map(astuple, rows))


def _rows(folder: Path) -> list[Measurement]:
    done = read_done(folder)
    if not done.dataset:
        return []
    name, backbone = f"{folder.parent.name}/{folder.name}", read_backbone(folder)
    return [
        Measurement(
            name, done.method, done.train, done.dataset, category, done.shots, done.seed, metric, value, backbone
        )
        for category, metric, value in read_results(folder)
    ]


def _write_parquet(path: Path, rows: Sequence[Measurement]) -> None:
    import pyarrow
    from pyarrow import parquet

    def cell(value: str | int | float) -> str | int | float:
        return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value

    columns = {field.name: [cell(getattr(row, field.name)) for row in rows] for field in fields(Measurement)}
    with atomic_path(path) as temporary:
        parquet.write_table(pyarrow.table(columns), temporary)
