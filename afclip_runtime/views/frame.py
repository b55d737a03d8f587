"""The input frame of a backbone, and how an image is placed in it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from afclip_runtime.types import ImageSize, height_and_width

Resize = Literal["squash", "crop", "trim"]
Interpolation = Literal["bicubic", "bilinear"]
Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom are exclusive
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
REACH = {"bicubic": 2.0, "bilinear": 1.0}  # of the filters, in pixels of the image or the frame, whichever are larger
BLANK = (123, 117, 104)  # mean colour of CLIP's training images; about 0 after normalisation


def place(rule: Resize | Literal["pad"], height: int, width: int, size: ImageSize) -> Box:
    """Returns the box of the resized image in pixels of the backbone's frame. Parts outside the frame are cut off.

    Args:
        rule: `squash` ignores the aspect ratio. `crop` and `trim` keep it and fit the shorter side. `crop` cuts off
            both ends, as CLIP's transform does; `trim` cuts off the right or the bottom, as AnomalyDINO's code does.
            `pad` keeps the aspect ratio and fits the longer side.
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
        size: Size of the frame.
    """
    tall, wide = height_and_width(size)
    if rule == "squash":
        return 0, 0, wide, tall
    if rule == "pad":
        scale = min(tall / height, wide / width)
        high, long = max(1, round(height * scale)), max(1, round(width * scale))
        left, top = (wide - long) // 2, (tall - high) // 2
        return left, top, left + long, top + high
    if tall * width >= wide * height:  # the height fits; torchvision's rule for the other side, rounded down
        high, long = tall, max(wide, tall * width // height)
    else:
        high, long = max(tall, wide * height // width), wide
    left, top = (round((wide - long) / 2), round((tall - high) / 2)) if rule == "crop" else (0, 0)
    return left, top, left + long, top + high


def into_frame(image: np.ndarray, box: Box, size: ImageSize, interpolation: Interpolation) -> np.ndarray:
    """Resizes an image `[H, W]` or `[H, W, 3]`, uint8, to a box in the frame, and returns the frame.

    The filter is Pillow's, with antialiasing, as in the code of the papers. OpenCV's has no antialiasing and gives
    other pixels. Where the frame is larger than the image, the border pixels of the image are repeated.
    """
    left, top, right, bottom = box
    height, width = height_and_width(size)
    resized = np.array(Image.fromarray(image).resize((right - left, bottom - top), FILTERS[interpolation]))
    if box == (0, 0, width, height):
        return resized
    part = resized[max(0, -top) : height - top, max(0, -left) : width - left]
    around = max(0, top), max(0, height - bottom), max(0, left), max(0, width - right)
    return repeat_border(part, *around)


def repeat_border(pixels: np.ndarray, above: int, below: int, left: int, right: int) -> np.ndarray:
    """Extends an image or a map, `[H, W]` or `[H, W, 3]`, by repeated border pixels on each side."""
    return np.pad(pixels, ((above, below), (left, right), *[(0, 0)] * (pixels.ndim - 2)), mode="edge")


def clear_in_frame(inside: np.ndarray, box: Box, size: ImageSize, interpolation: Interpolation) -> np.ndarray:
    """Returns which pixels of the frame depend only on inspected pixels of the image, bool, of the frame's shape.

    Pixels at the border of the inspected part, which the filter mixes with pixels outside, are not included.

    Args:
        inside: `[H, W]`, bool: which pixels of the image are inspected.
        box: See `into_frame`.
        size: See `into_frame`.
        interpolation: See `into_frame`.
    """
    left, top, right, bottom = box
    outside = ~inside
    for axis, length in enumerate((bottom - top, right - left)):
        first, last = _sources(outside.shape[axis], length, REACH[interpolation])
        before = np.zeros((outside.shape[axis] + 1, outside.shape[1 - axis]), np.int32)
        np.cumsum(outside if axis == 0 else outside.T, axis=0, out=before[1:])
        found = before[last] > before[first]
        outside = found if axis == 0 else found.T
    height, width = height_and_width(size)
    part = ~outside[max(0, -top) : height - top, max(0, -left) : width - left]
    around = max(0, top), max(0, height - bottom), max(0, left), max(0, width - right)
    return repeat_border(part, *around)


def _sources(length: int, resized: int, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the range of source pixels per resized pixel along a side (end exclusive), as Pillow computes it."""
    if length == resized:
        return np.arange(length), np.arange(length) + 1
    scale = length / resized
    centre, support = (np.arange(resized) + 0.5) * scale, reach * max(scale, 1.0)
    first, last = (np.trunc(centre + sign * support + 0.5).astype(np.intp) for sign in (-1, 1))
    return first.clip(0, length), last.clip(0, length)


@dataclass(frozen=True)
class Frame:
    """The input frame of a backbone.

    Attributes:
        image_size: Size in pixels: the side of a square, or height and width.
        rule: How an image is resized to the frame. See `place`.
        interpolation: Filter of resizing.
    """

    image_size: ImageSize
    rule: Resize = "squash"
    interpolation: Interpolation = "bicubic"

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        return height_and_width(self.image_size)
