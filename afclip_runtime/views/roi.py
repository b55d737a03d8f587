"""The region of interest of a product: which part of its images is inspected."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from afclip_runtime.errors import DatasetError
from afclip_runtime.files import read_json
from afclip_runtime.images.find import IMAGE_SUFFIXES
from afclip_runtime.images.limits import check_size
from afclip_runtime.images.rasterise import mark
from afclip_runtime.images.reader import read as read_picture
from afclip_runtime.images.shapes import Polygon, points_of
from afclip_runtime.views.frame import Box, Frame, clear_in_frame

Corner = tuple[float, float]
Outline = tuple[Corner, ...]
Side = Annotated[int, msgspec.Meta(ge=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]

SUFFIXES = frozenset({".json"}) | IMAGE_SUFFIXES
SAME_SHAPE = 0.01  # largest relative difference of aspect ratios that counts as the same shape
MOST_GREY = 0.05  # share of a picture that may be neither black nor white: softened edges
MOST_RUNS = 2**20
REMEDY = (
    'A region of interest is {"size": [width, height], "include": [[[x, y], …]], "ignore": [[[x, y], …]]} in pixels, '
    "a file of LabelMe, or a picture: white is inspected, black is ignored."
)


@dataclass(frozen=True)
class Roi:
    """Which pixels of a product's images are inspected. What lies outside changes no score, no map and no verdict.

    A pixel is inspected if it lies in an outline of `include`, or there is none, and in no outline of `ignore`. Points
    are in pixels; the centre of the first pixel is (0.5, 0.5).

    Attributes:
        size: Width and height of the image that it was drawn on, in pixels.
        include: Outlines of what is inspected; without one, the whole image.
        ignore: Outlines of what is not.
        runs: In place of outlines, what a picture says: numbers of pixels, row after row, that are ignored and
            inspected in turns, ignored ones first.
        source: File that it was read from, for messages.

    Raises:
        ValueError: No pixel is inspected, an outline has fewer than 3 points, or the runs do not fit the size.
    """

    size: tuple[Side, Side]
    include: tuple[Outline, ...] = ()
    ignore: tuple[Outline, ...] = ()
    runs: tuple[Count, ...] = ()
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        width, height = self.size
        try:
            check_size("size", width, height)
        except DatasetError as error:
            raise ValueError(str(error)) from error
        if self.runs and (self.include or self.ignore):
            raise ValueError("there are both outlines and runs of a picture, and only one of them may be")
        if self.runs and sum(self.runs) != width * height:
            raise ValueError(f"the runs are {sum(self.runs)} pixels, and the size is {width}×{height}")
        if any(len(outline) < 3 for outline in (*self.include, *self.ignore)):
            raise ValueError("an outline has fewer than 3 points")
        if not _inside(self, height, width).any():
            raise ValueError("it leaves no pixel of the image to inspect")

    @cached_property
    def fingerprint(self) -> str:
        """Returns what the region is known by in a calibration, 16 hexadecimal digits; the file's name is no part."""
        outlines = [[[[float(x), float(y)] for x, y in one] for one in part] for part in (self.include, self.ignore)]
        content = json.dumps([self.size, outlines, self.runs])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def share(self) -> float:
        """Returns the share of the image that is inspected, above 0 and at most 1."""
        width, height = self.size
        return float(self.inside(height, width).mean())

    @property
    def name(self) -> str:
        """Returns what messages call it."""
        return self.source or "the region of interest"

    def inside(self, height: int, width: int, image: object = "the image") -> np.ndarray:
        """Returns which pixels of an image are inspected, `[H, W]`, bool, read-only.

        An image of another size than `size` must have the same shape: its aspect ratio may differ by 1 %, or its width
        by the pixel that rounding costs.

        Args:
            height: Of the image, in pixels.
            width: Likewise.
            image: What messages call it.

        Raises:
            DatasetError: The image has another shape, or none of its pixels would be inspected.
        """
        wide, tall = self.size
        fits = abs(width * tall / (height * wide) - 1) <= SAME_SHAPE or abs(width - height * wide / tall) < 1
        if not fits:
            raise DatasetError(
                f"{image}: it has {width}×{height} pixels and {self.name} was drawn on {wide}×{tall}, which is another "
                "shape. Draw the region of interest on an image of this camera, and calibrate with that."
            )
        found = _inside(self, height, width)
        if not found.any():
            raise DatasetError(
                f"{image}: at {width}×{height} pixels {self.name} leaves nothing to inspect. Give larger images, or "
                "draw a larger region."
            )
        return found


@lru_cache(maxsize=8)  # one camera, one size: as a rule all images of a run share one entry
def _inside(roi: Roi, height: int, width: int) -> np.ndarray:
    wide, tall = roi.size
    if roi.runs:
        drawn = np.repeat(np.arange(len(roi.runs)) % 2 == 1, roi.runs).reshape(tall, wide)
        rows, columns = (
            ((np.arange(count) + 0.5) * side / count).astype(np.intp) for count, side in ((height, tall), (width, wide))
        )
        inside = drawn if (height, width) == (tall, wide) else drawn[np.ix_(rows, columns)]
    else:
        scale = width / wide, height / tall
        inside = _drawn(roi.include, (height, width), scale) if roi.include else np.ones((height, width), bool)
        if roi.ignore:
            inside &= ~_drawn(roi.ignore, (height, width), scale)
    inside.flags.writeable = False
    return inside


@lru_cache(maxsize=256)
def clear_in_view(roi: Roi, shape: tuple[int, int], box: Box, place: Box, frame: Frame) -> np.ndarray:
    """Returns which pixels of a view are made of inspected pixels only, bool, of the frame's shape, read-only.

    Args:
        roi: The region of interest.
        shape: Height and width of the image, in pixels.
        box: Part of the image that the view shows.
        place: Where that part lies in the frame.
        frame: What the backbone takes.
    """
    left, top, right, bottom = box
    inside = roi.inside(*shape)[top:bottom, left:right]
    clear = clear_in_frame(inside, place, frame.image_size, frame.interpolation)
    clear.flags.writeable = False
    return clear


def _drawn(outlines: Sequence[Outline], shape: tuple[int, int], scale: tuple[float, float]) -> np.ndarray:
    parts = tuple(points_of([list(corner) for corner in outline]) * scale for outline in outlines)
    return mark(Polygon(parts), shape).mask


# --- files


class _Outlines(msgspec.Struct, forbid_unknown_fields=True):
    """The project's own form."""

    size: tuple[Side, Side]
    include: list[Outline] = []
    ignore: list[Outline] = []
    relative: bool = False


class _Drawn(msgspec.Struct):
    """A shape of LabelMe."""

    label: str
    points: list[Corner]
    shape_type: str | None = "polygon"


class _LabelMe(msgspec.Struct):
    """A file of LabelMe; the picture that it may hold is not read."""

    shapes: list[_Drawn]
    height: Side = msgspec.field(name="imageHeight")
    width: Side = msgspec.field(name="imageWidth")


def read_roi(path: Path) -> Roi:
    """Returns the region of interest that a file holds.

    - `.json`: outlines, in pixels of an image of `size`; or, with `"relative": true`, in shares of its width and
      height. Or a file of LabelMe: polygons and rectangles labelled `ignore` are ignored, others inspected.
    - A picture: white is inspected, black is ignored. Where there are more than two values, as of softened edges, half
      of the range divides them.

    Raises:
        DatasetError: It cannot be read, is of another form, or leaves nothing to inspect.
    """
    try:
        found = _from_json(path) if path.suffix.lower() == ".json" else _from_picture(path)
    except ValueError as error:
        raise DatasetError(f"{path}: {error}. {REMEDY}") from error
    return found


def _from_json(path: Path) -> Roi:
    content = read_json(path, dict, remedy=REMEDY, error=DatasetError)
    if "shapes" in content:
        return _from_labelme(path)
    given = read_json(path, _Outlines, remedy=REMEDY, error=DatasetError)
    if not given.include and not given.ignore:
        raise ValueError("there is no outline in it")
    scale = given.size if given.relative else (1, 1)
    include, ignore = (
        tuple(tuple((x * scale[0], y * scale[1]) for x, y in outline) for outline in outlines)
        for outlines in (given.include, given.ignore)
    )
    return Roi(given.size, include, ignore, source=str(path))


def _from_labelme(path: Path) -> Roi:
    given = read_json(path, _LabelMe, remedy=REMEDY, error=DatasetError)
    outlines: dict[bool, list[Outline]] = {True: [], False: []}
    for shape in given.shapes:
        points = tuple(shape.points)
        if shape.shape_type == "rectangle" and len(points) == 2:
            (left, top), (right, bottom) = points
            points = (left, top), (right, top), (right, bottom), (left, bottom)
        elif shape.shape_type not in ("polygon", None):
            raise ValueError(f"a shape is a {shape.shape_type}, and only polygons and rectangles are read here")
        outlines[shape.label == "ignore"].append(points)
    if not given.shapes:
        raise ValueError("there is no outline in it")
    return Roi((given.width, given.height), tuple(outlines[False]), tuple(outlines[True]), source=str(path))


def _from_picture(path: Path) -> Roi:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError("it is neither a .json file nor a picture")
    picture = read_picture(path, stored=True)
    values = picture.grey()
    levels = np.unique(values)
    if len(levels) <= 2:
        inside = values > 0 if len(levels) == 1 else values == levels[-1]
    else:
        low, high = float(levels[0]), float(levels[-1])
        grey = float(((values > low + 0.1 * (high - low)) & (values < high - 0.1 * (high - low))).mean())
        if grey > MOST_GREY:
            raise ValueError(f"{grey:.0%} of its pixels are neither black nor white, so it is no mask")
        inside = values > (low + high) / 2
    height, width = inside.shape
    flat = np.concatenate([[False], inside.ravel(), [not inside.ravel()[-1]]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(changes, prepend=0)
    if len(runs) > MOST_RUNS:
        raise ValueError(f"it has {len(runs):,} stretches of black and white: it is no mask but speckle")
    return Roi((width, height), runs=tuple(runs.tolist()), source=str(path))
