"""labelme: LabelMe's .json files, one or a folder of them: polygons, circles, rotated rectangles, lines, masks."""

import argparse
import os
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
from afclip_runtime.images.shapes import Area, Bitmap, Ellipse, Line, Polygon, points_of

REMEDY = "Save it in LabelMe again."


class Drawn(msgspec.Struct):
    """A shape. `mask` is a picture in base64."""

    label: str
    points: list[list[float]]
    shape_type: str | None = "polygon"
    mask: str | None = None


class LabelFile(msgspec.Struct):
    """The part of a file that is read. An embedded picture (`imageData`) is not read."""

    shapes: list[Drawn]
    image_path: str = msgspec.field(name="imagePath")
    flags: dict[str, Any] | None = None
    image_height: int | None = msgspec.field(name="imageHeight", default=None)
    image_width: int | None = msgspec.field(name="imageWidth", default=None)


def convert(options: argparse.Namespace) -> int:
    """Converts the files to a set, and returns the exit code."""
    return make(options, lambda options: read(options.file, options.images))


def read(path: Path, images: Path) -> Export:
    """Returns the contents of LabelMe's files.

    An image with a file was looked at by somebody. An image without a file is undecided.

    Args:
        path: A file, or a folder that is searched with its subfolders.
        images: Folder of the images. A file names its image by a path relative to itself, or by a path of another
            machine.

    Raises:
        UserError: A file cannot be read, or a shape is invalid.
    """
    found = [_file(file, images) for file in (json_files(path) if path.is_dir() else [path])]
    return Export(found, unlisted=True)


def _file(path: Path, images: Path) -> Annotated:
    content = read_json(path, LabelFile, remedy=REMEDY, limit=EXPORT_LIMIT)
    shapes, problem = [], ""
    for number, drawn in enumerate(content.shapes, 1):
        try:
            area = _area(drawn)
        except ValueError as error:
            problem = problem or f"shape {number} ({drawn.label}): {error}. {REMEDY}"
            continue
        shapes.append(Shape(drawn.shape_type or "polygon", (drawn.label,), area))
    size = (content.image_width, content.image_height) if content.image_width and content.image_height else None
    tags = tuple(name for name, value in (content.flags or {}).items() if value is True)
    names = _names(path, content.image_path, images)
    return Annotated(str(path), names, size, tuple(shapes), tags, finished=True, problem=problem)


def _names(path: Path, named: str, images: Path) -> tuple[str, ...]:
    """Returns the possible paths of the image in the folder of images.

    Raises:
        UserError: The path leads out of that folder.
    """
    named = named.replace("\\", "/")
    place = os.path.abspath(path.parent / named)
    root = os.path.abspath(images)
    if os.path.isabs(named) or ":" in named.partition("/")[0]:
        return (named,)  # a path of another machine: only its end counts
    if place.startswith(root + os.sep):
        return (os.path.relpath(place, root),)
    if ".." not in named.split("/"):
        return (named,)
    raise refusing(f"{path}: its image {named[:200]!r} lies outside of {images}; refused", "Give --images its folder.")


def _area(drawn: Drawn) -> Area | None:
    """Returns the area of a shape; `None` if its kind has none.

    Raises:
        ValueError: The points are invalid.
    """
    kind = drawn.shape_type or "polygon"
    if kind not in CORNERS:
        return None
    points = points_of([number for point in drawn.points for number in point])
    if any(len(point) != 2 for point in drawn.points):
        raise ValueError("its points are not pairs of numbers")
    least = CORNERS[kind]
    if len(points) < least:
        raise ValueError(f"it has {len(points)} points, and needs {least}")
    if kind == "polygon" or kind == "oriented_rectangle":
        return Polygon((points,))
    if kind in ("line", "linestrip"):
        return Line(points)
    (left, top), (right, bottom) = points[0], points[1]
    if kind == "circle":
        radius = float(np.hypot(right - left, bottom - top))
        return Ellipse((left, top), (radius, radius))
    if kind == "rectangle":
        return Polygon((np.array([[left, top], [right, top], [right, bottom], [left, bottom]]),))
    return Bitmap(partial(_mask, drawn.mask, points), int(left), int(top))


def _mask(text: str | None, points: np.ndarray) -> np.ndarray:
    mask = png_to_mask(text)
    (left, top), (right, bottom) = points[:2].astype(int)
    if mask.shape != (bottom - top + 1, right - left + 1):
        raise ValueError(f"its mask is {mask.shape[1]}×{mask.shape[0]} pixels, and its box has another size")
    return mask


CORNERS = {
    "polygon": 1,
    "rectangle": 2,
    "oriented_rectangle": 4,
    "circle": 2,
    "line": 2,
    "linestrip": 1,
    "mask": 2,
}
"""Least number of points by shape. Other shapes (point, points) have no area."""
