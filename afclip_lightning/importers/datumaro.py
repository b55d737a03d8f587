"""datumaro: Datumaro's own format: annotations/*.json, one file per subset."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from afclip_lightning.annotations.importing import add_options as add_options
from afclip_lightning.annotations.importing import convert as make
from afclip_lightning.annotations.reading import EXPORT_LIMIT, json_files, refusing
from afclip_lightning.annotations.rle import coco_to_mask
from afclip_lightning.annotations.shapes import Annotated, Export, Shape
from afclip_runtime.files import read_json
from afclip_runtime.images.shapes import Area, Bitmap, Ellipse, Line, Polygon, points_of, rectangle

REMEDY = "Export it again as Datumaro."
ANNOTATIONS = "annotations"  # the folder of the files


class Name(msgspec.Struct):
    """A label. Its number is its position."""

    name: str


class Names(msgspec.Struct):
    """The labels."""

    labels: list[Name] = []


class Categories(msgspec.Struct):
    """The labels. Only their names are read."""

    label: Names = msgspec.field(default_factory=Names)


class Image(msgspec.Struct):
    """The file of an item, and its height and width."""

    path: str | None = None
    size: list[int] | None = None


class Drawn(msgspec.Struct):
    """An annotation. Its fields depend on its type."""

    type: str
    label_id: int | None = None
    points: Any = None
    bbox: list[float] | None = None
    rle: dict[str, Any] | None = None


class Item(msgspec.Struct):
    """An image or another item."""

    id: str
    annotations: list[Drawn] = []
    image: Image | None = None


class Subset(msgspec.Struct):
    """A file."""

    items: list[Item]
    categories: Categories = msgspec.field(default_factory=Categories)


def convert(options: argparse.Namespace) -> int:
    """Converts the dataset to a set, and returns the exit code."""
    return make(options, lambda options: read(options.file))


def read(path: Path) -> Export:
    """Returns the contents of a dataset. It does not say whether somebody looked at an image without a shape.

    Args:
        path: File of a subset, or a folder with such files, directly or in its folder `annotations`.

    Raises:
        UserError: A file cannot be read, or an annotation is invalid.
    """
    folder = path / ANNOTATIONS if (path / ANNOTATIONS).is_dir() else path
    export = Export()
    for file in json_files(folder) if folder.is_dir() else [path]:
        _read_subset(file, export)
    return export


def _read_subset(path: Path, export: Export) -> None:
    content = read_json(path, Subset, remedy=REMEDY, limit=EXPORT_LIMIT)
    names = [label.name for label in content.categories.label.labels]
    export.labels += names
    for item in content.items:
        where = f"{path}, item {item.id}"
        if item.image is None:
            export.nothing["item that is not an image"] = export.nothing.get("item that is not an image", 0) + 1
            continue
        size = item.image.size or None
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise refusing(f"{where}: its size is not a height and a width: {size}", REMEDY)
        shapes: list[Shape] = []
        tags: list[str] = []
        problem = ""
        for number, drawn in enumerate(item.annotations, 1):
            if drawn.label_id is not None and not 0 <= drawn.label_id < len(names):
                raise refusing(f"{where}, annotation {number}: there is no label {drawn.label_id}", REMEDY)
            labels = () if drawn.label_id is None else (names[drawn.label_id],)
            if drawn.type == "label":
                tags += labels
                continue
            if drawn.type == "caption":
                export.nothing["caption"] = export.nothing.get("caption", 0) + 1
                continue
            try:
                area = _area(drawn, size)
            except ValueError as error:
                problem = problem or f"annotation {number} ({drawn.type}): {error}. {REMEDY}"
                continue
            shapes.append(Shape(drawn.type, labels, area))
        named = item.image.path or f"{item.id}.jpg"  # Datumaro's default
        frame = (size[1], size[0]) if size else None
        export.images.append(
            Annotated(where, (named,), frame, tuple(shapes), tuple(tags), subset=path.stem, problem=problem)
        )


def _area(drawn: Drawn, size: list[int] | None) -> Area | None:
    """Returns the area of an annotation; `None` if its type has none.

    Raises:
        ValueError: The annotation is invalid for its type.
    """
    if drawn.type == "bbox":
        if drawn.bbox is None or len(drawn.bbox) != 4 or min(drawn.bbox[2:]) < 0:
            raise ValueError(f"its bbox is not x, y, width, height: {drawn.bbox}")
        return rectangle(drawn.bbox)
    if drawn.type == "mask":
        own = (drawn.rle or {}).get("size")
        shape = size or (own if isinstance(own, list) and len(own) == 2 else [0, 0])
        return Bitmap(partial(coco_to_mask, drawn.rle, (shape[0], shape[1])))
    if drawn.type not in ("polygon", "polyline", "ellipse"):
        return None
    points = points_of(drawn.points)
    if drawn.type == "polygon":
        return Polygon((points,))
    if drawn.type == "polyline":
        return Line(points)
    numbers = points.reshape(-1).tolist()
    if len(numbers) != 4:
        raise ValueError(f"it has {len(numbers)} numbers, and needs 4")
    left, top, right, bottom = numbers  # of an ellipse, the box around it
    return Ellipse(((left + right) / 2, (top + bottom) / 2), (abs(right - left) / 2, abs(bottom - top) / 2))
