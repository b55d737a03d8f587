"""The one table: a row a value, put together from what each run left in its folder."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from afclip_lightning.benchmark.matrix import Cell
from afclip_lightning.errors import UserError
from afclip_lightning.files import atomic_path, write_text

DONE, TABLE = "done.json", "results"


@dataclass(frozen=True)
class Row:
    """One value.

    Attributes:
        cell: The run's folder in `cells/`.
        method: Name of the method.
        train: Training set; empty for a method that is not fitted.
        dataset: Test set.
        category: Its category, or `mean` for the mean over them.
        shots: Normal images a category.
        seed: Seed.
        metric: As in a run's results, like `image_auroc`.
        value: In [0, 1].
        backbone: What the method ran on.
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


def read_done(folder: Path) -> dict[str, Any]:
    """Returns what the runner wrote into a run's folder when the run had ended.

    Raises:
        UserError: It is damaged; the message names it.
    """
    path = folder / DONE
    done = _read_json(path)
    known = {"method": str, "train": str, "seed": int, "dataset": str, "shots": int, "digest": str}
    if not isinstance(done, dict) or any(not isinstance(done.get(key), kind) for key, kind in known.items()):
        raise UserError(f"{path}: is damaged: it does not say what was run.")
    return done


def read_results(folder: Path) -> list[tuple[str, str, float]]:
    """Returns category, metric and value of every result in a run's folder.

    Raises:
        UserError: The file is damaged or absent; the message names it and the row.
    """
    path = folder / "results.json"
    content = _read_json(path)
    try:
        found = [
            (row["category"], metric, value) for row in content["rows"] for metric, value in row["metrics"].items()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is damaged: {error!r}. --retry makes it again.") from error
    for category, metric, value in found:
        if not (isinstance(category, str) and _is_share(value)):
            raise UserError(f"{path}: is damaged: {category} has {metric} {value!r}. --retry makes it again.")
    if not found:
        raise UserError(f"{path}: has no results.")
    return found


def assemble(out: Path, cells: Sequence[Cell]) -> tuple[list[Row], list[str]]:
    """Writes the table of everything that has been run into a folder, by whichever process, and returns it.

    Rows of a run that its cell would make otherwise today are left out.

    Args:
        out: Folder of the benchmark.
        cells: The cells of today's matrix.

    Returns:
        The rows, and what is damaged and so is not among them, a sentence each.
    """
    today = {cell.folder / step.name: step.digest for cell in cells for step in cell.steps}
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / f".{TABLE}.lock"):  # who writes last has read what all the others wrote
        rows: list[Row] = []
        damaged: list[str] = []
        for path in sorted((out / "cells").glob(f"*/*/{DONE}")):
            folder = path.parent
            try:
                done = read_done(folder)
                if done["dataset"] and today.get(folder, done["digest"]) == done["digest"]:
                    rows += _rows(folder, done)
            except UserError as error:
                damaged.append(str(error))
        write_text(out / f"{TABLE}.csv", to_csv(rows))
        if find_spec("pyarrow"):
            _write_parquet(out / f"{TABLE}.parquet", rows)
    return rows, damaged


def to_csv(rows: Sequence[Row]) -> str:
    """Returns the table as CSV."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, rows))
    return buffer.getvalue()


def _rows(folder: Path, done: Mapping[str, Any]) -> list[Row]:
    facts = {key: done[key] for key in ("method", "train", "dataset", "shots", "seed")}
    run = _read_json(folder / "run.json")
    backbone = str(run.get("backbone", "")) if isinstance(run, dict) else ""
    name = f"{folder.parent.name}/{folder.name}"
    return [Row(name, category=c, metric=m, value=v, backbone=backbone, **facts) for c, m, v in read_results(folder)]


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(Row)}
    with atomic_path(path) as temporary:
        parquet.write_table(pyarrow.table(columns), temporary)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}). --retry makes it again.") from error


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
