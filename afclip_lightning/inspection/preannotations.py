"""`inspect --save labelstudio,coco`: the regions that models mark, in files that annotation tools import.

The regions of an image are stored in a file per image, so that a stopped run can resume. At the end of each run, the
files for the tools are made from all of these.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from afclip_lightning.annotations.exporting import CONFIG, MarkedImage, coco_instances, labelstudio_task, marked_image
from afclip_runtime.errors import UserError
from afclip_runtime.files import atomic_path, read_json, write_json, write_text
from afclip_runtime.inspection.inputs import Input
from afclip_runtime.inspection.table import Record

if TYPE_CHECKING:
    from afclip_runtime.inspection.verdict import Inspection

TOOLS = ("labelstudio", "coco")
PARTS = "regions"  # folder with one file per image
REMEDY = "Remove the output folder, and inspect again."


def keep_regions(outcome: "Inspection", folder: Path, item: Input, name: str) -> None:
    """Stores the regions of an image for the annotation tools.

    Raises:
        UserError: The file cannot be written.
    """
    if outcome.mask is None:
        return
    image = marked_image(item.name + item.path.suffix, outcome.score, outcome.mask, outcome.anomaly_map)
    write_json(folder / PARTS / f"{name}.json", msgspec.to_builtins(image))


def read_marked(path: Path) -> MarkedImage:
    """Returns the stored regions of an image.

    Raises:
        UserError: The file cannot be read, or has another form.
    """
    image = read_json(path, MarkedImage, remedy=REMEDY)
    try:
        image.check()
    except ValueError as error:
        raise UserError(f"{path}: {error}. {REMEDY}") from error
    return image


def write_preannotations(rows: Iterable[Record], folder: Path, saves: Sequence[str], address: str) -> list[Path]:
    """Writes the files for the tools, and returns them.

    Args:
        rows: Rows of all images and all methods.
        folder: Output folder.
        saves: The tools.
        address: Prefix of the path of an image in Label Studio.

    Raises:
        UserError: The stored regions of an image cannot be read, or a file cannot be written.
    """
    by_method: dict[str | None, list[Record]] = {}
    for row in rows:
        if not row.error:
            by_method.setdefault(row.method, []).append(row)
    written = []
    for method, own in by_method.items():
        place = folder / method if method else folder
        images: Iterable[MarkedImage] = (read_marked(place / PARTS / f"{row.name}.json") for row in own)
        if "coco" in saves:
            images = list(images)
            write_json(place / "coco.json", coco_instances(images))
            written.append(place / "coco.json")
        if "labelstudio" in saves:
            with atomic_path(place / "labelstudio.json") as temporary, temporary.open("w", encoding="ascii") as file:
                for number, image in enumerate(images):
                    task = labelstudio_task(image, address, method or "afclip")
                    file.write(("[\n" if not number else ",\n") + json.dumps(task))
                file.write("\n]\n")
            write_text(place / "labelstudio.xml", CONFIG)
            written.append(place / "labelstudio.json")
    return written
