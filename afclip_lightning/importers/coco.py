"""coco: COCO's instances as JSON: polygons of several parts, run lengths, crowds, boxes."""

import argparse
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from afclip_lightning.annotations.importing import add_options as add_options
from afclip_lightning.annotations.importing import convert as make
from afclip_lightning.annotations.reading import EXPORT_LIMIT, export_file, refusing
from afclip_lightning.annotations.rle import coco_to_mask
from afclip_lightning.annotations.shapes import Annotated, Export, Shape
from afclip_runtime.files import read_json
from afclip_runtime.images.shapes import Area, Bitmap, Polygon, points_of, rectangle

REMEDY = "Export it again as COCO."


class Category(msgspec.Struct):
    """A label, by its number."""

    id: int
    name: str


class Image(msgspec.Struct):
    """An image. No shape needs its size."""

    id: int | str
    file_name: str
    width: int | None = None
    height: int | None = None


class Annotation(msgspec.Struct):
    """A shape of an image. A box of CVAT may be rotated: `attributes.rotation`, in degrees, about its centre."""

    image_id: int | str
    category_id: int | None = None
    segmentation: Any = None
    bbox: list[float] | None = None
    keypoints: list[Any] | None = None
    attributes: dict[str, Any] = {}


class Instances(msgspec.Struct):
    """The part of COCO's format that is read."""

    images: list[Image]
    annotations: list[Annotation] = []
    categories: list[Category] = []


def convert(options: argparse.Namespace) -> int:
    """Converts the export to a set, and returns the exit code."""
    return make(options, lambda options: read(options.file))


def read(path: Path) -> Export:
    """Returns the contents of a file of COCO's instances.

    COCO does not say whether somebody looked at an image without a shape.

    Raises:
        UserError: The file has another format, or a shape is invalid.
    """
    content = read_json(export_file(path, ".json"), Instances, remedy=REMEDY, limit=EXPORT_LIMIT)
    names = {category.id: category.name for category in content.categories}
    by_image: dict[int | str, list[Shape]] = {image.id: [] for image in content.images}
    if len(by_image) < len(content.images):
        twice = next(i for i, count in Counter(image.id for image in content.images).items() if count > 1)
        raise refusing(f"{path}: two images have the number {twice!r}", REMEDY)
    sizes = {image.id: (image.height, image.width) for image in content.images}
    problems: dict[int | str, str] = {}
    for number, annotation in enumerate(content.annotations, 1):
        where = f"{path}, annotation {number}"
        if annotation.image_id not in by_image:
            raise refusing(f"{where}: there is no image {annotation.image_id!r}", REMEDY)
        if annotation.category_id is not None and annotation.category_id not in names:
            raise refusing(f"{where}: there is no category {annotation.category_id}", REMEDY)
        labels = () if annotation.category_id is None else (names[annotation.category_id],)
        try:
            kind, area = _area(annotation, sizes[annotation.image_id])
        except ValueError as error:
            problems.setdefault(annotation.image_id, f"annotation {number}: {error}. {REMEDY}")
            continue
        by_image[annotation.image_id].append(Shape(kind, labels, area))
    images = [
        Annotated(
            f"{path}, image {image.file_name}",
            (image.file_name,),
            (image.width, image.height) if image.width and image.height else None,
            tuple(by_image[image.id]),
            problem=problems.get(image.id, ""),
        )
        for image in content.images
    ]
    return Export(images, labels=list(names.values()))


def _area(annotation: Annotation, size: tuple[int | None, int | None]) -> tuple[str, Area | None]:
    """Returns the kind of an annotation's shape, and its area.

    Raises:
        ValueError: The shape is invalid.
    """
    drawn = annotation.segmentation
    if isinstance(drawn, list) and drawn:
        parts = drawn if isinstance(drawn[0], list) else [drawn]
        return "polygon", Polygon(tuple(points_of(part) for part in parts))
    if isinstance(drawn, dict):
        height, width = size
        if not height or not width:
            raise ValueError("it has run lengths, and its image has no size")
        kind = "run lengths" if isinstance(drawn.get("counts"), str) else "uncompressed run lengths"
        return kind, Bitmap(partial(coco_to_mask, drawn, (height, width)))
    if drawn not in (None, [], {}):
        raise ValueError(f"its segmentation is neither polygons nor run lengths: {str(drawn)[:60]!r}")
    if annotation.bbox:
        if len(annotation.bbox) != 4 or min(annotation.bbox[2:]) < 0:
            raise ValueError(f"its bbox is not x, y, width, height: {annotation.bbox}")
        angle = annotation.attributes.get("rotation", 0.0)
        return "box", rectangle(annotation.bbox, angle if isinstance(angle, (int, float)) else 0.0)
    return ("keypoints" if annotation.keypoints else "annotation without a shape"), None
