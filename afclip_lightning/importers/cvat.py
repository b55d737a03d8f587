"""cvat: CVAT for images 1.1: annotations.xml, or the .zip that holds it."""

import argparse
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from afclip_lightning.annotations.importing import add_options as add_options
from afclip_lightning.annotations.importing import convert as make
from afclip_lightning.annotations.reading import EXPORT_LIMIT, refusing
from afclip_lightning.annotations.rle import runs_to_mask, whole_numbers
from afclip_lightning.annotations.shapes import Annotated, Export, Shape
from afclip_runtime.errors import DatasetError
from afclip_runtime.files import open_regular
from afclip_runtime.files.xml import parse_xml, read_xml
from afclip_runtime.images.shapes import Area, Bitmap, Ellipse, Line, Polygon, points_of, rectangle

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

REMEDY = "Export it again as CVAT for images 1.1."
IN_ZIP = "annotations.xml"
MOST_SIDE = 10**6


def convert(options: argparse.Namespace) -> int:
    """Converts the export to a set, and returns the exit code."""
    return make(options, lambda options: read(options.file))


def read(path: Path) -> Export:
    """Returns the contents of an export of CVAT for images.

    It does not say whether somebody looked at an image without a shape. Occluded shapes count. Shapes that are
    `outside` of their frame are hidden there and do not count. The order in depth (`z_order`) does not matter: the
    union of all shapes is marked.

    Raises:
        UserError: The export has another format, or a shape is invalid.
    """
    path = path / IN_ZIP if (path / IN_ZIP).is_file() else path
    if path.is_dir():
        raise refusing(f"{path} is a folder without {IN_ZIP}", REMEDY)
    root = _root(path)
    if root.tag != "annotations":
        raise refusing(f"{path}: its root is {root.tag[:40]!r}, not annotations", REMEDY)
    tracks, images = root.findall("track"), root.findall("image")
    if not images:
        what = f"{len(tracks)} tracks (it is CVAT for video)" if tracks else "no image"
        raise refusing(f"{path}: holds {what}", REMEDY)
    tasks = {task.findtext("id", ""): task.findtext("name", "") for task in root.iter("task")}
    only = next(iter(tasks.values())) if len(tasks) == 1 else ""
    nothing: Counter[str] = Counter({"track of a video": len(tracks)} if tracks else {})
    found = [_image(path, image, tasks.get(image.get("task_id", ""), only), nothing) for image in images]
    labels = [name for label in root.iter("label") if (name := label.findtext("name", ""))]
    return Export(found, nothing=dict(nothing), labels=labels)


def _root(path: Path) -> "Element":
    if path.suffix.lower() != ".zip":
        return read_xml(path, remedy=REMEDY, limit=EXPORT_LIMIT, error=DatasetError)
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                member = archive.getinfo(IN_ZIP)
                if member.file_size > EXPORT_LIMIT:
                    raise refusing(f"{path}: its {IN_ZIP} has {member.file_size:,} bytes", REMEDY)
                with archive.open(member) as inside:
                    content = inside.read(EXPORT_LIMIT)
        except KeyError as error:
            raise refusing(f"{path}: holds no {IN_ZIP}", REMEDY) from error
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as error:
            raise refusing(f"{path}: cannot be unpacked ({error})", REMEDY) from error
    return parse_xml(content, f"{path}, {IN_ZIP}", remedy=REMEDY, error=DatasetError)


def _image(path: Path, image: "Element", project: str, nothing: Counter[str]) -> Annotated:
    name = image.get("name", "")
    where = f"{path}, image {name or image.get('id')}"
    if not name:
        raise refusing(f"{where}: has no name", REMEDY)
    shapes, tags, problem = [], [], ""
    for element in image:
        label = element.get("label", "")
        if element.tag == "tag":
            tags.append(label)
        elif element.get("outside") == "1":
            nothing[f"{element.tag} outside of its frame"] += 1
        else:
            try:
                reader = AREAS.get(element.tag)
                area = reader(element) if reader else None
                kind = f"turned {element.tag}" if _number(element, "rotation", "0") else element.tag
            except ValueError as error:
                problem = problem or f"{element.tag} {label!r}: {error}. {REMEDY}"
                continue
            shapes.append(Shape(kind, (label,) if label else (), area))
    try:
        size = (int(image.get("width", 0)), int(image.get("height", 0)))
    except ValueError as error:
        raise refusing(f"{where}: its width or height is not a number", REMEDY) from error
    known = size if min(size) > 0 else None
    return Annotated(where, (name,), known, tuple(shapes), tuple(tags), None, project, image.get("subset", ""), problem)


def _number(element: "Element", name: str, default: str | None = None) -> float:
    text = element.get(name, default)
    if text is None:
        raise ValueError(f"has no {name}")
    try:
        [[value, _]] = points_of([float(text), 0.0]).tolist()
    except ValueError as error:
        raise ValueError(f"its {name} is not a number: {text[:40]!r}") from error
    return float(value)


def _points(element: "Element") -> list[float]:
    text = element.get("points", "")
    try:
        return [float(part) for pair in text.split(";") for part in pair.split(",")]
    except ValueError as error:
        raise ValueError(f"its points are not numbers: {text[:40]!r}") from error


def _box(element: "Element") -> Polygon:
    left, top, right, bottom = (_number(element, name) for name in ("xtl", "ytl", "xbr", "ybr"))
    return rectangle((left, top, right - left, bottom - top), _number(element, "rotation", "0"))


def _ellipse(element: "Element") -> Ellipse:
    x, y, a, b = (_number(element, name) for name in ("cx", "cy", "rx", "ry"))
    return Ellipse((x, y), (abs(a), abs(b)), _number(element, "rotation", "0"))


def _mask(element: "Element") -> Bitmap:
    left, top, width, height = (_number(element, name) for name in ("left", "top", "width", "height"))
    if not (0 < width <= MOST_SIDE and 0 < height <= MOST_SIDE):
        raise ValueError(f"its size is {width:g}×{height:g}")
    runs = element.get("rle", "")

    def decode() -> np.ndarray:
        return runs_to_mask(whole_numbers(runs), int(height), int(width), by_columns=False)

    return Bitmap(decode, int(left), int(top))


AREAS: dict[str, Callable[["Element"], Area]] = {
    "box": _box,
    "polygon": lambda element: Polygon((points_of(_points(element)),)),
    "polyline": lambda element: Line(points_of(_points(element))),
    "ellipse": _ellipse,
    "mask": _mask,
}
"""Converters of elements by tag. Other elements (points, cuboid, skeleton) have no area."""
