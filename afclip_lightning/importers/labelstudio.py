"""labelstudio: Label Studio's JSON or JSON-MIN: polygons, rotated boxes and ellipses, brushes, choices, predictions."""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from afclip_lightning.annotations.importing import add_options as add_common_options
from afclip_lightning.annotations.importing import convert as make
from afclip_lightning.annotations.matching import is_image_name
from afclip_lightning.annotations.reading import EXPORT_LIMIT, export_file, refusing
from afclip_lightning.annotations.rle import brush_to_mask, png_to_mask
from afclip_lightning.annotations.shapes import Annotated, Export, Shape
from afclip_runtime.files import read_json
from afclip_runtime.images.shapes import Area, Bitmap, Ellipse, Polygon, rectangle

REMEDY = "Export it again as JSON."
MIN_FIELDS = ("id", "annotation_id", "annotator", "lead_time", "created_at", "updated_at", "agreement")  # of JSON-MIN
CHOOSE = "Choose with --several latest, or --several union."
CHOSE = "Annotations not used because of others of the same image (see --several)"
TAGS = ("choices", "taxonomy")
SEVERAL = ("latest", "union", "error")


@dataclass(frozen=True)
class Choice:
    """What is read if a task offers several things.

    Attributes:
        image_key: Field of the task that names the image; empty for the only field that does.
        several: Use of several annotations: the `latest`, the `union`, or an `error`.
        predictions: Whether the last prediction counts if there is no annotation.
        choice_keys: Fields of JSON-MIN that hold choices.
    """

    image_key: str = ""
    several: str = "latest"
    predictions: bool = False
    choice_keys: tuple[str, ...] = ()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of Label Studio, and the options common to all tools."""
    add_common_options(parser)
    own = parser.add_argument_group("Label Studio")
    own.add_argument("--image_key", default="", metavar="KEY", help="field of a task that names its image")
    own.add_argument(
        "--several",
        choices=SEVERAL,
        default="latest",
        help="annotation to take if a task has several. latest: the one starred as ground truth, or else the latest; "
        "union: all together; error: stop (%(default)s)",
    )
    own.add_argument(
        "--choice_key", action="append", default=[], metavar="KEY", help="field of JSON-MIN that holds choices"
    )
    own.add_argument("--predictions", action="store_true", help="take predictions where there is no annotation")


def convert(options: argparse.Namespace) -> int:
    """Converts the export to a set, and returns the exit code."""
    choice = Choice(options.image_key, options.several, options.predictions, tuple(options.choice_key))
    return make(options, lambda options: read(options.file, choice))


def read(path: Path, choice: Choice) -> Export:
    """Returns the contents of an export. An image whose annotation was not skipped was looked at by somebody.

    Coordinates are percentages of the upright image. `image_rotation` is the rotation of the view while somebody drew.
    It changes no coordinate.

    Raises:
        UserError: The export has another format, or a shape is invalid.
    """
    content: Any = read_json(export_file(path, ".json"), Any, remedy=REMEDY, limit=EXPORT_LIMIT)  # type: ignore[arg-type]
    export, remarks, nothing = Export(), Counter[str](), Counter[str]()
    entries: dict[str, list[tuple[str, Annotated]]] = {}
    for number, task in enumerate(content if isinstance(content, list) else [content], 1):
        where = f"{path}, entry {number}"
        if not isinstance(task, dict):
            raise refusing(f"{where}: is not a task", REMEDY)
        where += f" (task {task['id']})" if isinstance(task.get("id"), int) else ""
        minimal = "data" not in task
        try:
            image = _minimal(task, where, choice, nothing) if minimal else _task(task, where, choice, remarks, nothing)
        except ValueError as error:
            raise refusing(f"{where}: {error}", REMEDY) from error
        entries.setdefault(image.names[0] if minimal else where, []).append((_stamp(task), image))
    for same in entries.values():  # JSON-MIN has one entry per annotation
        if len(same) > 1 and choice.several == "error":
            raise refusing(f"{same[1][1].where}: its image has {len(same)} annotations", CHOOSE)
        remarks[CHOSE] += len(same) - 1
        export.images.append(_chosen([image for _, image in sorted(same, key=lambda one: one[0])], choice.several))
    export.nothing = dict(nothing)
    export.remarks = [f"{what}: {count}" for what, count in remarks.items() if count]
    return export


def _stamp(holder: dict[str, Any]) -> str:
    """Returns the time of the last change, as text that sorts by time."""
    return str(holder.get("updated_at") or holder.get("created_at") or "")


def _chosen(same: list[Annotated], several: str) -> Annotated:
    if several != "union":
        return same[-1]
    shapes = tuple(shape for image in same for shape in image.shapes)
    tags = tuple(dict.fromkeys(tag for image in same for tag in image.tags))
    problem = next((image.problem for image in same if image.problem), "")
    return replace(same[-1], shapes=shapes, tags=tags, problem=problem)


def _task(task: dict[str, Any], where: str, choice: Choice, remarks: Counter[str], nothing: Counter[str]) -> Annotated:
    """Returns the image of a task, with the shapes of the annotations that count."""
    names = image_names(task["data"], choice.image_key)
    made = _listed(task, "annotations") or _listed(task, "completions")  # their name in old versions
    done = [one for one in made if not one.get("was_cancelled") and not one.get("skipped")]
    remarks["Annotations not read, as they were skipped (cancelled) in the tool"] += len(made) - len(done)
    if len(done) > 1 and choice.several == "error":
        raise ValueError(f"it has {len(done)} annotations. {CHOOSE}")
    if len(done) > 1 and choice.several == "latest":
        remarks[CHOSE] += len(done) - 1
        done = [max(done, key=lambda one: (one.get("ground_truth") is True, _stamp(one)))]
    guessed = _listed(task, "predictions")
    finished: bool | None = bool(done)
    if guessed and not made and choice.predictions:
        done, finished = guessed[-1:], None
        remarks["Tasks read by their prediction, as they have no annotation"] += 1
    elif guessed:
        remarks["Predictions not read (--predictions reads them for tasks without annotation)"] += len(guessed)
    results = [  # copies of an annotation share the numbers of its regions
        {**result, "id": f"{number}/{result['id']}"} if "id" in result else result
        for number, one in enumerate(done)
        for result in _listed(one, "result")
    ]
    return _annotated(where, names, results, [], finished, nothing, str(task.get("project") or ""))


def _minimal(task: dict[str, Any], where: str, choice: Choice, nothing: Counter[str]) -> Annotated:
    """Returns the image of an entry of JSON-MIN, which has one field per control.

    A single choice is a text there, like the input fields of the task: `choice_key` tells them apart. If it is not
    given and there are such texts, an image without a shape is not known to be normal.
    """
    names = image_names(task, choice.image_key)
    results: list[dict[str, Any]] = []
    tags: list[str] = []
    finished: bool | None = task.get("annotation_id") is not None
    for name, value in task.items():
        values = value if isinstance(value, list) else [value]
        if values and all(isinstance(one, dict) for one in values) and name not in MIN_FIELDS:
            results += [{"value": one, "type": kind_of(one), **_sizes(one)} for one in values]
        elif name in choice.choice_keys:
            tags += [one for one in values if isinstance(one, str)]
        elif isinstance(value, str) and name not in MIN_FIELDS and not is_image_name(_path(value)):
            finished = None if finished and not choice.choice_keys else finished
    return _annotated(where, names, results, tags, finished, nothing)


def _annotated(
    where: str,
    names: tuple[str, ...],
    results: list[dict[str, Any]],
    tags: list[str],
    finished: bool | None,
    nothing: Counter[str],
    project: str = "",
) -> Annotated:
    """Returns an image with its results, or with the problem of one of them."""
    try:
        size, shapes, more = _results(results, nothing)
    except ValueError as error:
        return Annotated(where, names, finished=finished, project=project, problem=f"{error}. {REMEDY}")
    return Annotated(where, names, size, tuple(shapes), tuple(dict.fromkeys(tags + more)), finished, project)


def _sizes(value: dict[str, Any]) -> dict[str, Any]:
    return {key: value[key] for key in ("original_width", "original_height") if key in value}


def kind_of(value: dict[str, Any]) -> str:
    """Returns the type of a result by its values, if the export does not state it; empty if it is not a shape."""
    marks = {"rle": "brush", "imageDataURL": "bitmask", "radiusX": "ellipse", "vertices": "vector", "points": "polygon"}
    if found := next((kind for name, kind in marks.items() if name in value), ""):
        return found
    return ("rectangle" if "height" in value else "keypoint") if "x" in value else ""


def _listed(holder: dict[str, Any], name: str) -> list[dict[str, Any]]:
    value = holder.get(name) or []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError(f"its {name} are not a list of objects")
    return value


def image_names(data: Any, key: str) -> tuple[str, ...]:
    """Returns the possible paths of the one image of a task.

    Raises:
        ValueError: The task names no image, or several.
    """
    if not isinstance(data, dict):
        raise ValueError("its data is not an object")
    if key:
        if not isinstance(data.get(key), str):
            raise ValueError(f"its data has no text {key!r} (--image_key)")
        found = [_path(data[key])]
    else:
        found = list(dict.fromkeys(_path(v) for v in data.values() if isinstance(v, str) and is_image_name(_path(v))))
    if len(found) != 1:
        what = "no image" if not found else f"several images ({', '.join(found[:3])})"
        raise ValueError(f"its data names {what}. Say which field does: --image_key KEY")
    return (found[0],)


def _path(url: str) -> str:
    """Returns the path in the address of an image, without storage names. For local files it follows `d=`."""
    if url.startswith("data:"):
        return ""
    parts = urlsplit(url) if re.match(r"[a-z0-9+.-]+://|/data/local-files", url) else None
    if parts is None:
        return url
    local = parse_qs(parts.query).get("d")
    return local[0] if local else unquote(parts.path)


def _results(
    results: list[dict[str, Any]], nothing: Counter[str]
) -> tuple[tuple[int, int] | None, list[Shape], list[str]]:
    """Returns the size of an image as stated in its results, its shapes, and the labels of the whole image.

    Results with the same id are one region. Each of them repeats its shape, and its labels are those of all of them.
    """
    regions: dict[str, list[dict[str, Any]]] = {}
    for number, result in enumerate(results):
        regions.setdefault(str(result.get("id", f"#{number}")), []).append(result)
    size: tuple[int, int] | None = None
    shapes, tags = [], []
    for region in regions.values():
        values = [result["value"] for result in region if isinstance(result.get("value"), dict)]
        kinds = [_bare(str(result.get("type") or "")) for result in region]
        labels = tuple(dict.fromkeys(label for value in values for label in _labels(value)))
        drawn = next((value for value in values if kind_of(value)), None)
        kind = next((kind for kind in kinds if kind not in (*TAGS, "labels", "")), "")
        if drawn is None and not labels:
            tags += [label for value in values for label in _tags(value)]
            nothing.update(kind or "something without a type" for kind in kinds if kind not in TAGS)
            continue
        if any(result.get("item_index") for result in region):
            raise ValueError("it has several images (valueList), and not only the first is annotated")
        own = _size(region)
        if own and size and own != size:
            raise ValueError(f"its shapes are of two sizes of the image, {size} and {own}")
        size = own or size
        kind = (kind_of(drawn) or kind) if drawn else kind or "labels without a shape"
        name, area = _area(kind, drawn, own) if drawn else (kind, None)
        shapes.append(Shape(name, labels, area))
    return size, shapes, tags


def _bare(kind: str) -> str:
    return kind.lower() if kind == "labels" else kind.lower().removesuffix("labels")


def _labels(value: dict[str, Any]) -> Iterator[str]:
    for name, labels in value.items():
        if name.endswith("labels") and isinstance(labels, list):
            yield from (label for label in labels if isinstance(label, str))


def _tags(value: dict[str, Any]) -> Iterator[str]:
    for kind in TAGS:
        chosen = value.get(kind)
        for one in chosen if isinstance(chosen, list) else [chosen]:
            if isinstance(one, str):
                yield one
            elif isinstance(one, list):  # a path in a taxonomy
                yield " / ".join(map(str, one))


def _size(region: list[dict[str, Any]]) -> tuple[int, int] | None:
    for result in region:
        width, height = result.get("original_width"), result.get("original_height")
        if type(width) is int and type(height) is int and width > 0 and height > 0:
            return width, height
    return None


def _area(kind: str, value: dict[str, Any], size: tuple[int, int] | None) -> tuple[str, Area | None]:
    """Returns the name of a shape's kind, and its area; `None` if the kind has none.

    Raises:
        ValueError: The shape is invalid for its kind.
    """
    maker = AREAS.get(kind)
    if maker is None:
        return kind, None
    if size is None:
        raise ValueError(f"a {kind} has no original_width and original_height")
    area = maker(value, size)
    turned = kind in ("rectangle", "ellipse") and bool(value.get("rotation"))
    return (f"turned {kind}" if turned else kind), area


def _numbers(value: dict[str, Any], size: tuple[int, int], *names: str) -> list[float]:
    """Returns fields of a shape in pixels. Their values are percentages of width and height, in turn (x, y, x, y …)."""
    found = []
    for number, name in enumerate(names):
        part = value.get(name)
        if isinstance(part, bool) or not isinstance(part, (int, float)) or not abs(part) < 1e6:
            raise ValueError(f"its {name} is not a number: {str(part)[:40]!r}")
        found.append(part * size[number % 2] / 100)
    return found


def _angle(value: dict[str, Any]) -> float:
    angle = value.get("rotation") or 0.0
    if isinstance(angle, bool) or not isinstance(angle, (int, float)):
        raise ValueError(f"its rotation is not a number: {str(angle)[:40]!r}")
    return float(angle)


def _rectangle(value: dict[str, Any], size: tuple[int, int]) -> Polygon:
    x, y, width, height = _numbers(value, size, "x", "y", "width", "height")
    return rectangle((x, y, width, height), _angle(value), pivot="corner")


def _ellipse(value: dict[str, Any], size: tuple[int, int]) -> Ellipse:
    x, y, a, b = _numbers(value, size, "x", "y", "radiusX", "radiusY")
    return Ellipse((x, y), (abs(a), abs(b)), _angle(value))


def _polygon(value: dict[str, Any], size: tuple[int, int]) -> Polygon:
    corners = value.get("points")
    if not isinstance(corners, list) or not corners or not all(isinstance(c, list) and len(c) == 2 for c in corners):
        raise ValueError("its points are not pairs of numbers")
    flat = [_numbers({"x": x, "y": y}, size, "x", "y") for x, y in corners]
    return Polygon((np.array(flat, np.float64),))


def _brush(value: dict[str, Any], size: tuple[int, int]) -> Bitmap:
    if value.get("format", "rle") != "rle":
        raise ValueError(f"its format is {str(value['format'])[:40]!r}, not rle")
    return Bitmap(partial(brush_to_mask, value.get("rle"), size[1], size[0]))


def _bitmask(value: dict[str, Any], size: tuple[int, int]) -> Bitmap:
    def decode() -> np.ndarray:
        mask = png_to_mask(value.get("imageDataURL"))
        if mask.shape != size[::-1]:
            raise ValueError(
                f"its picture is {mask.shape[1]}×{mask.shape[0]} pixels, and its image {size[0]}×{size[1]}"
            )
        return mask

    return Bitmap(decode)


AREAS: dict[str, Callable[[dict[str, Any], tuple[int, int]], Area]] = {
    "rectangle": _rectangle,
    "polygon": _polygon,
    "ellipse": _ellipse,
    "brush": _brush,
    "bitmask": _bitmask,
}
"""Converters of results by type without `labels`. Other types (keypoint, vector, video …) have no area."""
