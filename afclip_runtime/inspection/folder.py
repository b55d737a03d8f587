"""Inspection of many images into an output folder: the tables, and the pictures beside them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afclip_runtime.errors import UserError
from afclip_runtime.files import atomic_path, fingerprint, read_json, write_json
from afclip_runtime.inspection.inputs import Input
from afclip_runtime.inspection.table import Record, Table, record_of

if TYPE_CHECKING:
    from afclip_runtime.inspection.drift import Drift
    from afclip_runtime.inspection.inspector import Inspector
    from afclip_runtime.inspection.verdict import Inspection

    Keep = Callable[[Inspection, Path, Input, str], None]
    Judged = tuple[Input, Record, Inspection | UserError]
    Observer = Callable[[Record, Inspection | UserError], None]

_OUTPUTS = ("a CSV table (inspections.csv)", "Parquet files (parts/)")  # without and with shards
JPEG_LIMIT = 65500  # longest side of a JPEG image, in pixels


@dataclass(frozen=True)
class Done:
    """Result of a run.

    Attributes:
        new: Number of inspections in this run.
        failed: Number of them with an error, without files that were left out.
        left_out: Number of files of a kind that is not read.
        replaced: Number of rows of an earlier run whose file was replaced since. They count as new, too.
        drifts: Per model, the drift of the scores of all its rows from the normal images of its calibration.
        rows: All rows, by method and key of the image.
        first_failed: Row of the first image that failed, if any.
    """

    new: int
    failed: int
    left_out: int
    replaced: int
    drifts: "Mapping[str, Drift]"
    rows: Mapping[tuple[str | None, str], Record]
    first_failed: Record | None = None


def save_pictures(outcome: "Inspection", folder: Path, name: str, saves: Sequence[str]) -> None:
    """Writes the chosen pictures of an inspection, each file atomically.

    Raises:
        UserError: A file cannot be written.
    """
    import numpy as np
    from PIL import Image

    from afclip_runtime.files.png import write_png
    from afclip_runtime.images.maps import write_map

    if "map" in saves:
        write_map(folder / "maps" / f"{name}.png", outcome.anomaly_map)
    if "npy" in saves:
        with atomic_path(folder / "npy" / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, outcome.anomaly_map)
    if "mask" in saves and outcome.mask is not None:
        write_png(folder / "masks" / f"{name}.png", outcome.mask)
    if "overlay" in saves:
        overlay = Image.fromarray(outcome.overlay())
        kind, suffix = ("JPEG", ".jpg") if max(overlay.size) <= JPEG_LIMIT else ("PNG", ".png")
        with atomic_path(folder / "overlays" / f"{name}{suffix}") as temporary:
            overlay.save(temporary, kind, quality=90, comment="".join(outcome.captions[:1]))  # none may fit on it


def judge(
    model: "Inspector",
    method: str | None,
    inputs: Sequence[Input],
    table: Table,
    place: Path,
    saves: Sequence[str],
    num_workers: int,
    drift: "Drift",
    keeps: "Sequence[Keep]" = (),
) -> "Iterator[Judged]":
    """Inspects files, saves their pictures, and yields each file with its row, which is not yet in the table.

    Args:
        model: The model.
        method: Name of the model if several models share the table.
        inputs: The files.
        table: The table, which gives names to saved files.
        place: Folder of the model's files.
        saves: See `inspect`.
        num_workers: See `inspect`.
        drift: Drift of the stream so far, see `drift_of`. The scores are added to it.
        keeps: See `inspect`.

    Raises:
        WriteError: A file cannot be written.
        UserError: The model needs few-shot images first.
    """
    for item in inputs:
        if item.error:
            error = UserError(item.error)
            yield item, record_of(item, method, item.name, error), error
    images = [item for item in inputs if not item.error]
    for index, outcome in model.stream([item.path for item in images], num_workers, "overlay" in saves):
        item, name, alarm = images[index], images[index].name, None
        if not isinstance(outcome, UserError):
            alarm = None if item.volume else drift.add(outcome.score)
            name = table.free_name(item)
            save_pictures(outcome, place, name, saves)
            for keep in keeps:
                keep(outcome, place, item, name)
        yield item, record_of(item, method, name, outcome, alarm), outcome


def drift_of(model: "Inspector", method: str | None, table: Table) -> "Drift":
    """Returns the drift of the images in a table from the normal images of a model's calibration.

    A resumed run thereby continues its stream. Slices of volumes are left out, since neighbouring slices are similar
    and thus not independent.

    Args:
        model: The model that gave the scores.
        method: Name of the model if several models share the table.
        table: Table of the stream so far.
    """
    from afclip_runtime.inspection.drift import Drift

    drift = Drift(model.calibration.good if model.calibration else None)
    for row in table.rows.values():
        if row.method == method and row.score is not None and row.volume is None:
            drift.add(row.score)
    return drift


def inspect(
    models: "Mapping[str, Inspector]",
    inputs: Sequence[Input],
    folder: Path,
    saves: Sequence[str],
    num_workers: int,
    keeps: "Sequence[Keep]" = (),
    observers: "Sequence[Observer]" = (),
) -> Done:
    """Inspects the files that have no row yet, and those that were replaced since.

    Args:
        models: Models by name.
        inputs: The files.
        folder: Output folder.
        saves: Kinds of pictures to write.
        num_workers: Number of decoding threads.
        keeps: Functions that are called before a row is written, with the inspection, the folder of its model, the
            input and the name of its files.
        observers: Functions that are called after a row is written, with the row and its inspection or error. Once per
            image and model.

    Raises:
        WriteError: A file cannot be written.
        UserError: A model needs few-shot images first.
    """
    from afclip_runtime.progress import progress_of

    several = len(models) > 1
    drifts: dict[str, Drift] = {}
    new = failed = left_out = 0
    first_failed: Record | None = None
    with Table(folder, several, inputs) as table:
        for method, model in models.items():
            column = method if several else None
            place = folder / method if several else folder
            todo = table.todo(inputs, column)
            new += len(todo)
            drifts[method] = drift = drift_of(model, column, table)
            judged = judge(model, column, todo, table, place, saves, num_workers, drift, keeps)
            with progress_of(total=len(todo), desc=method) as bar:
                for item, row, outcome in judged:
                    table.add(row)
                    if isinstance(outcome, UserError) and not item.left_out:
                        failed += 1
                        first_failed = first_failed or row
                    left_out += item.left_out
                    for observe in observers:
                        observe(row, outcome)
                    bar.update()
        return Done(new, failed, left_out, table.replaced, drifts, table.rows, first_failed)


def settings_of(models: "Mapping[str, Inspector]", saves: Sequence[str]) -> dict[str, Any]:
    """Returns the settings that all rows of an output share, for `check_settings`."""
    facts = {name: [model.checkpoint, model.settings] for name, model in models.items()}
    thresholds = {name: model.thresholds_before_feedback for name, model in models.items()}
    return {"model": facts, "threshold": thresholds, "save": sorted(saves)}


def check_settings(folder: Path, settings: dict[str, Any]) -> str:
    """Checks that the images of a folder were inspected with these settings. Returns the digest of the settings.

    The settings are written into a new folder.

    Raises:
        UserError: The folder has other settings, or cannot be written to.
    """
    path = folder / "inspect.json"
    settings = json.loads(json.dumps(settings))
    if path.exists():
        before = read_json(path, dict[str, Any], remedy="Choose another --out.")
        if before.get("output") != settings.get("output"):
            held, wanted = (_OUTPUTS[found.get("output") == "parts"] for found in (before, settings))
            raise UserError(
                f"{folder} holds {held}, and this command writes {wanted} ({path}). "
                "Choose another --out, or remove the folder."
            )
        if before != settings:
            names = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
            raise UserError(
                f"{folder} holds inspections with another {', '.join(names)} ({path}): one table must not mix them. "
                "Choose another --out, or remove the folder."
            )
    write_json(path, settings)
    return fingerprint(path)
