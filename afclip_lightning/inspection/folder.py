"""Inspecting many images into one output folder: the tables, and the pictures beside them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afclip_lightning.errors import UserError
from afclip_lightning.files import atomic_path, read_json, write_json
from afclip_lightning.inspection.inputs import Input
from afclip_lightning.inspection.preannotations import keep_regions
from afclip_lightning.inspection.table import Record, Table, record_of
from afclip_lightning.volumes.maps import HELD_MAPS, NIFTI, map_path

if TYPE_CHECKING:
    from afclip_lightning.inspection.predictor import Predictor
    from afclip_lightning.inspection.verdict import Inspection

JPEG_LIMIT = 65500  # longest side that the format can have


@dataclass(frozen=True)
class Done:
    """What a run did.

    Attributes:
        new: Inspections that this run began.
        failed: How many of them gave an error, without what was left out.
        replaced: Rows of an earlier run whose file was replaced since; they are among the new ones.
        scores: By model, the scores of all its rows, earlier ones among them.
        rows: All rows, by method and key of the image.
    """

    new: int
    failed: int
    replaced: int
    scores: Mapping[str, list[float]]
    rows: Mapping[tuple[str | None, str], Record]


def save_pictures(outcome: "Inspection", folder: Path, name: str, saves: Sequence[str]) -> None:
    """Writes what of an inspection is to be saved, each file in one step.

    Raises:
        UserError: A file cannot be written.
    """
    import numpy as np
    from PIL import Image

    from afclip_lightning.data.maps import write_map
    from afclip_lightning.files.png import write_png

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
            overlay.save(temporary, kind, quality=90, comment="".join(outcome.captions[:1]))  # if none fits on it


def keep_for_volume(outcome: "Inspection", folder: Path, item: Input, saves: Sequence[str]) -> None:
    """Keeps the map of a slice until its volume is complete, if that is to be saved.

    Raises:
        UserError: The file cannot be written.
    """
    if NIFTI not in saves or item.slice is None:
        return
    import numpy as np

    path = map_path(folder / NIFTI / HELD_MAPS / item.volume, item.slice)
    with atomic_path(path, durable=False) as temporary, temporary.open("wb") as file:
        np.save(file, outcome.anomaly_map)


def inspect(
    models: "dict[str, Predictor]", inputs: Sequence[Input], folder: Path, saves: Sequence[str], num_workers: int
) -> Done:
    """Inspects what is not done yet, and what was replaced since, and returns what was done.

    Args:
        models: By name.
        inputs: The files.
        folder: Of the output.
        saves: Which pictures to write.
        num_workers: Processes that decode.

    Raises:
        UserError: A file cannot be written, or a model needs few-shot images first.
    """
    from tqdm import tqdm

    several = len(models) > 1
    new = failed = 0
    with Table(folder, several, inputs) as table:
        for method, model in models.items():
            column = method if several else None
            place = folder / method if several else folder
            todo = [item for item in inputs if (column, item.key) not in table.rows]
            images = [item for item in todo if not item.error]
            new += len(todo)
            with tqdm(total=len(todo), unit=" images", desc=method, disable=None) as bar:
                for item in (item for item in todo if item.error):
                    table.add(record_of(item, column, item.name, UserError(item.error)))
                    failed += not item.left_out
                    bar.update()
                for index, outcome in model.stream([i.path for i in images], num_workers, "overlay" in saves):
                    item, name = images[index], images[index].name
                    if isinstance(outcome, UserError):
                        failed += 1
                    else:
                        name = table.free_name(item)
                        save_pictures(outcome, place, name, saves)
                        keep_for_volume(outcome, place, item, saves)
                        keep_regions(outcome, place, item, name, saves)
                    table.add(record_of(item, column, name, outcome))
                    bar.update()
        named = {method if several else None: method for method in models}
        scores: dict[str, list[float]] = {method: [] for method in models}
        for row in table.rows.values():
            if row.score is not None and row.method in named:
                scores[named[row.method]].append(row.score)
        return Done(new, failed, table.replaced, scores, table.rows)


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuses a folder whose images were inspected otherwise; a new folder gets the settings.

    Raises:
        UserError: The folder has other settings, or cannot be written to.
    """
    path = folder / "inspect.json"
    settings = json.loads(json.dumps(settings))
    if path.exists():
        before = read_json(path, dict[str, Any], remedy="Choose another --out.")
        if before != settings:
            names = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
            raise UserError(
                f"{folder} holds inspections with another {', '.join(names)} ({path}): one table must not mix them. "
                "Choose another --out, or remove the folder."
            )
    write_json(path, settings)
