"""The region of interest of a product: the part of its images that is inspected."""

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
MOST_GREY = 0.05  # maximum share of pixels that are neither black nor white, for soft edges
MOST_RUNS = 2**20
REMEDY = (
    'A region of interest is {"size": [width, height], "include": [[[x, y], …]], "ignore": [[[x, y], …]]} in pixels, '
    "a file of LabelMe, or a picture: white is inspected, black is ignored."
)


@dataclass(frozen=True)
class Roi:
    """The pixels of a product's images that are inspected. Pixels outside affect no score, no map and no verdict.

    A pixel is inspected if it is in an outline of `include` (or `include` is empty) and in no outline of `ignore`.
    Points are in pixels. The centre of the first pixel is (0.5, 0.5).

    Attributes:
        size: Width and height in pixels of the image on which the region was drawn.
        include: Outlines of the inspected part. Empty for the whole image.
        ignore: Outlines of ignored parts.
        runs: Run lengths of a mask, in place of outlines: alternating numbers of ignored and inspected pixels, row by
            row, ignored pixels first.
        source: File of the region, for messages.

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
            raise ValueError("both outlines and runs of a picture are given; only one is allowed")
        if self.runs and sum(self.runs) != width * height:
            raise ValueError(f"the runs cover {sum(self.runs)} pixels, but the size is {width}×{height}")
        if any(len(outline) < 3 for outline in (*self.include, *self.ignore)):
            raise ValueError("an outline has fewer than 3 points")
        if not _inside(self, height, width).any():
            raise ValueError("it leaves no pixel of the image to inspect")

    @cached_property
    def fingerprint(self) -> str:
        """Returns the identifier of the region in calibrations, 16 hexadecimal digits, independent of its file."""
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
        """Returns the name of the region in messages."""
        return self.source or "the region of interest"

    def inside(self, height: int, width: int, image: object = "the image") -> np.ndarray:
        """Returns which pixels of an image are inspected, `[H, W]`, bool, read-only.

        The size of the image may differ from `size`, but not its aspect ratio. A difference of 1 % of the ratio, or of
        1 pixel of the width due to rounding, is allowed.

        Args:
            height: Height of the image, in pixels.
            width: Width of the image, in pixels.
            image: Name of the image in messages.

        Raises:
            DatasetError: The image has another aspect ratio, or none of its pixels would be inspected.
        """
        wide, tall = self.size
        fits = abs(width * tall / (height * wide) - 1) <= SAME_SHAPE or abs(width - height * wide / tall) < 1
        if not fits:
            raise DatasetError(
                f"{image}: it has {width}×{height} pixels and {self.name} was drawn on {wide}×{tall}, which has "
                "another aspect ratio. Draw the region of interest on an image of this camera, and calibrate with that."
            )
        found = _inside(self, height, width)
        if not found.any():
            raise DatasetError(
                f"{image}: at {width}×{height} pixels {self.name} leaves nothing to inspect. Give larger images, or "
                "draw a larger region."
            )
        return found


@lru_cache(maxsize=8)  # one camera has one size: usually all images of a run share one entry
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
    """Returns which pixels of a view depend only on inspected pixels, bool, of the frame's shape, read-only.

    Args:
        roi: The region of interest.
        shape: Height and width of the image, in pixels.
        box: Part of the image in the view.
        place: Box of that part in the frame.
        frame: Input frame of the backbone.
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
    """The format of this project."""

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
    """A file of LabelMe. An embedded image is not read."""

    shapes: list[_Drawn]
    height: Side = msgspec.field(name="imageHeight")
    width: Side = msgspec.field(name="imageWidth")


def read_roi(path: Path) -> Roi:
    """Reads a region of interest from a file.

    - `.json`: outlines in pixels of an image of `size`. With `"relative": true`, in shares of its width and height. Or
      a file of LabelMe: polygons and rectangles labelled `ignore` are ignored, others are inspected.
    - A picture: white is inspected, black is ignored. If there are more than two values, as with soft edges, values
      above half of the range are inspected.

    Raises:
        DatasetError: The file cannot be read, has another format, or leaves nothing to inspect.
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
        raise ValueError("it has no outline")
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
        raise ValueError("it has no outline")
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
            raise ValueError(f"{grey:.0%} of its pixels are neither black nor white, so it is not a mask")
        inside = values > (low + high) / 2
    height, width = inside.shape
    flat = np.concatenate([[False], inside.ravel(), [not inside.ravel()[-1]]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(changes, prepend=0)
    if len(runs) > MOST_RUNS:
        raise ValueError(f"it has {len(runs):,} stretches of black and white: it is noise, not a mask")
    return Roi((width, height), runs=tuple(runs.tolist()), source=str(path))
