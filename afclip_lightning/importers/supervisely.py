"""supervisely: a Supervisely project, or one dataset of it: bitmaps, polygons with holes, rotated boxes, lines."""

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from afclip_lightning.annotations.importing import add_options as add_options
from afclip_lightning.annotations.importing import convert as make
from afclip_lightning.annotations.reading import EXPORT_LIMIT, json_files, refusing
from afclip_lightning.annotations.rle import png_to_mask
from afclip_lightning.annotations.shapes import Annotated, Export, Shape
from afclip_runtime.files import read_json
from afclip_runtime.images.shapes import Area, Bitmap, Line, Points, Polygon, points_of, rectangle

REMEDY = "Download the project again, with its annotations as JSON."
ANNOTATIONS, IMAGES, DATASETS = "ann", "img", "datasets"  # names of folders
META = "meta.json"
MASKS = ("bitmap", "alpha_mask")


class Size(msgspec.Struct):
    """Size of an image, in pixels."""

    height: int
    width: int


class Tag(msgspec.Struct):
    """Tag of an image or of a shape."""

    name: str
    value: Any = None


class Picture(msgspec.Struct):
    """A bitmap: a packed picture in base64, and the position of its first pixel."""

    data: str
    origin: list[int]


class Outline(msgspec.Struct):
    """A polygon and its holes."""

    exterior: list[list[float]]
    interior: list[list[list[float]]] = []


class Thing(msgspec.Struct):
    """A shape. Its fields depend on its kind."""

    class_title: str = msgspec.field(name="classTitle")
    kind: str = msgspec.field(name="geometryType")
    points: Any = None
    parts: list[Outline] = []
    bitmap: Picture | None = None
    alpha_mask: Picture | None = None
    angle: float = 0.0


class Annotation(msgspec.Struct):
    """The annotation file of an image."""

    size: Size
    objects: list[Thing]
    tags: list[Tag] = []


class Kind(msgspec.Struct):
    """A class of shapes in the project."""

    title: str


class Meta(msgspec.Struct):
    """The file of a project."""

    classes: list[Kind] = []


def convert(options: argparse.Namespace) -> int:
    """Converts the project to a set, and returns the exit code."""
    return make(options, lambda options: read(options.file))


def read(path: Path) -> Export:
    """Returns the contents of a project, a dataset or a folder `ann`. Every image has a file there, annotated or not.

    Raises:
        UserError: The folder is none of these, a file cannot be read, or a shape is invalid.
    """
    if not path.is_dir():
        raise refusing(f"{path} is not a folder", "Unpack what you downloaded, and name the project's folder.")
    files = [file for file in json_files(path) if ANNOTATIONS in (*file.relative_to(path).parts[:-1], path.name)]
    if not files:
        raise refusing(f"{path}: holds no folder {ANNOTATIONS!r} with annotations", REMEDY)
    meta = path / META
    known = read_json(meta, Meta, remedy=REMEDY, limit=EXPORT_LIMIT).classes if meta.is_file() else []
    return Export([_file(file, path) for file in files], labels=[one.title for one in known])


def _file(path: Path, root: Path) -> Annotated:
    content = read_json(path, Annotation, remedy=REMEDY, limit=EXPORT_LIMIT)
    shapes, problem = [], ""
    for number, thing in enumerate(content.objects, 1):
        try:
            area = _area(thing)
        except ValueError as error:
            problem = problem or f"object {number} ({thing.class_title}): {error}. {REMEDY}"
            continue
        shapes.append(Shape(thing.kind, (thing.class_title,), area))
    parts = path.relative_to(root.parent if root.name == ANNOTATIONS else root).parts
    at = len(parts) - 1 - parts[::-1].index(ANNOTATIONS)
    dataset, inside = parts[:at], parts[at + 1 :]
    name = "/".join((*inside[:-1], path.name.removesuffix(".json")))
    names = ("/".join((*dataset, IMAGES, name)), "/".join((*dataset, name)))
    project = "/".join(part for part in dataset if part != DATASETS) or root.resolve().name
    tags = tuple(tag.name if tag.value is None else f"{tag.name}={tag.value}" for tag in content.tags)
    size = (content.size.width, content.size.height)
    return Annotated(str(path), names, size, tuple(shapes), tags, None, project, problem=problem)


def _area(thing: Thing) -> Area | None:
    """Returns the area of a shape; `None` if its kind has none.

    The tool counts whole pixels: 3 is the centre of the fourth.

    Raises:
        ValueError: The shape is invalid for its kind.
    """
    if thing.kind in MASKS:
        return _bitmap(thing)
    if thing.kind == "multipolygon":
        holes = tuple(_pixels(hole) for part in thing.parts for hole in part.interior)
        return Polygon(tuple(_pixels(part.exterior) for part in thing.parts), holes)
    if thing.kind == "oriented_bbox":
        (left, top), (right, bottom) = _corners(thing.points)
        return rectangle((left, top, right + 1 - left, bottom + 1 - top), math.degrees(thing.angle % math.tau))
    if thing.kind not in ("rectangle", "polygon", "line"):
        return None
    try:
        outline = msgspec.convert(thing.points, Outline)
    except msgspec.ValidationError as error:
        raise ValueError(f"its points are invalid ({error})") from error
    if thing.kind == "polygon":
        return Polygon((_pixels(outline.exterior),), tuple(map(_pixels, outline.interior)))
    if thing.kind == "line":
        return Line(_pixels(outline.exterior))
    (left, top), (right, bottom) = _corners(outline.exterior)
    return rectangle((left, top, right + 1 - left, bottom + 1 - top))


def _pixels(points: list[list[float]]) -> Points:
    if any(len(point) != 2 for point in points):
        raise ValueError("its points are not pairs of numbers")
    return points_of([number for point in points for number in point]) + 0.5


def _corners(points: Any) -> list[list[float]]:
    """Returns the lowest and the highest column and row of two pixels."""
    try:
        pairs = msgspec.convert(points, list[tuple[float, float]])
    except msgspec.ValidationError as error:
        raise ValueError(f"its points are invalid ({error})") from error
    if len(pairs) != 2:
        raise ValueError("it needs two points")
    ordered: list[list[float]] = np.sort(points_of(pairs), axis=0).tolist()
    return ordered


def _bitmap(thing: Thing) -> Bitmap:
    picture = thing.bitmap or thing.alpha_mask
    if picture is None or len(picture.origin) != 2:
        raise ValueError("it has no picture, or no origin")
    return Bitmap(partial(png_to_mask, picture.data, packed=True), *picture.origin)
