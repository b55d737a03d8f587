"""Views of an image of any size in the frame of the backbone, and merging of their maps at the size of the image."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from afclip_runtime.errors import UserError
from afclip_runtime.types import Tiling
from afclip_runtime.views.frame import BLANK, Box, Frame, into_frame, place, repeat_border
from afclip_runtime.views.resizing import resize_map
from afclip_runtime.views.roi import Roi, clear_in_view

MAX_VIEWS = 4096


@dataclass(frozen=True)
class Axis:
    """Tiles along one side of an image, evenly spaced from end to end.

    Attributes:
        length: Length of the image side, in pixels.
        side: Length of a tile, in pixels, at most `length`.
        overlap: Minimum share of a tile that overlaps with the next tile.
    """

    length: int
    side: int
    overlap: float

    @cached_property
    def starts(self) -> list[int]:
        """Returns the first pixel of each tile."""
        steps = math.ceil((self.length - self.side) / max(1, math.floor(self.side * (1 - self.overlap))))
        return [round(i * (self.length - self.side) / steps) for i in range(steps + 1)] if steps else [0]

    @cached_property
    def _window(self) -> np.ndarray:
        """Returns the weights of the pixels of a tile before normalisation. They decrease towards the ends of the tile.

        Without overlap, all weights are equal.
        """
        from_end = np.minimum(np.arange(self.side), np.arange(self.side)[::-1]) + 0.5
        return np.minimum(from_end / max(0.5, self.overlap * self.side), 1.0)

    @cached_property
    def _total(self) -> np.ndarray:
        total = np.zeros(self.length)
        for start in self.starts:
            total[start : start + self.side] += self._window
        return total

    def weights(self, index: int) -> np.ndarray:
        """Returns the weights of the pixels of a tile, `[side]`, float32. Over all tiles, they sum to 1 per pixel."""
        start = self.starts[index]
        return (self._window / self._total[start : start + self.side]).astype(np.float32)


@dataclass(frozen=True)
class Level:
    """Equal tiles that cover an image.

    Attributes:
        rows: Tiles along the height.
        columns: Tiles along the width.
        inside: Box of a tile in the frame, in pixels of the frame. It differs from the whole frame if the frame is
            padded or cuts off a part of the tile.
    """

    rows: Axis
    columns: Axis
    inside: Box

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    def box(self, index: int) -> Box:
        """Returns the box of a tile in the image."""
        row, column = divmod(index, len(self.columns.starts))
        left, top = self.columns.starts[column], self.rows.starts[row]
        return left, top, left + self.columns.side, top + self.rows.side


class Layout:
    """The views of one image.

    Args:
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
        tiling: Tiling of the image.
        frame: Input frame of the backbone.
        roi: Region of interest. By default the whole image.
        name: Name of the image in messages.

    Attributes:
        inside: `[H, W]`, bool: which pixels are inspected. `None` for all.
        views: Numbers of the views that contain inspected pixels.

    Raises:
        UserError: More than `MAX_VIEWS` views would be needed, or the region of interest does not fit the image.
    """

    def __init__(
        self, height: int, width: int, tiling: Tiling, frame: Frame, roi: Roi | None = None, name: object = "the image"
    ) -> None:
        self.height, self.width, self.frame, self.roi = height, width, frame, roi
        self.inside = None if roi is None else roi.inside(height, width, name)
        tall, wide = frame.shape
        everything = (0, 0, wide, tall)
        largest = _largest(height, width, tall, wide)
        if tiling.fit == "tiles":
            self.levels = [_level(height, width, largest, tiling.overlap, everything)]
        else:
            inside = place("pad" if tiling.fit == "pad" else frame.rule, height, width, frame.image_size)
            self.levels = [_level(height, width, (height, width), 0.0, inside)]
        tile = tiling.tile(largest)
        if tile is not None and (tile != largest or tiling.fit != "tiles"):
            self.levels.append(_level(height, width, tile, tiling.overlap, everything))
        if len(self) > MAX_VIEWS:
            raise UserError(
                f"an image of {width}×{height} pixels would take {len(self)} tiles, and the limit is {MAX_VIEWS}: "
                "choose larger ones, or another fit."
            )
        self.views = [view for view in range(len(self)) if self._shows_something(view)]

    def _shows_something(self, view: int) -> bool:
        if self.inside is None:
            return True
        level, index = self._find(view)
        left, top, right, bottom = level.box(index)
        return bool(self.inside[top:bottom, left:right].any())

    def __len__(self) -> int:
        return sum(map(len, self.levels))

    def _find(self, view: int) -> tuple[Level, int]:
        for level in self.levels:
            if view < len(level):
                return level, view
            view -= len(level)
        raise IndexError(view)

    def cut(self, image: np.ndarray, view: int) -> np.ndarray:
        """Returns one view of the image `[H, W, 3]`, the input of the backbone, `[h, w, 3]`, uint8.

        Pixels that are not inspected, or that the filter mixes with such pixels, have the colour `BLANK`.
        """
        level, index = self._find(view)
        box = left, top, right, bottom = level.box(index)
        part, frame = image[top:bottom, left:right], self.frame
        seen = into_frame(part, level.inside, frame.image_size, frame.interpolation)
        if self.roi is not None:
            seen[~clear_in_view(self.roi, (self.height, self.width), box, level.inside, frame)] = BLANK
        return seen

    def add(self, anomaly_map: np.ndarray, view: int, seen: np.ndarray) -> None:
        """Adds the map of a view to the map of the image, in place. After all views, it is the merged map.

        Args:
            anomaly_map: Map of the image, `[H, W]`, float32, initially zeros.
            view: Number of the view.
            seen: Map of the view, `[h, w]`, float32.
        """
        level, index = self._find(view)
        left, top, right, bottom = level.box(index)
        part = resize_map(_out_of_frame(seen, level.inside), bottom - top, right - left)
        if len(self) == 1:
            anomaly_map[:] = part
            return
        row, column = divmod(index, len(level.columns.starts))
        part *= level.rows.weights(row)[:, None]
        part *= level.columns.weights(column) / len(self.levels)
        anomaly_map[top:bottom, left:right] += part


def _largest(height: int, width: int, tall: int, wide: int) -> tuple[int, int]:
    """Returns height and width of the largest part of an image with the aspect ratio of a frame."""
    if height * wide <= width * tall:
        return height, max(1, min(width, round(height * wide / tall)))
    return max(1, min(height, round(width * tall / wide))), width


def _out_of_frame(seen: np.ndarray, inside: Box) -> np.ndarray:
    """Returns the map of a box in the frame. Beyond the frame, the values of its border are repeated."""
    left, top, right, bottom = inside
    height, width = seen.shape
    part = seen[max(0, top) : bottom, max(0, left) : right]
    around = max(0, -top), max(0, bottom - height), max(0, -left), max(0, right - width)
    return repeat_border(part, *around)


def _level(height: int, width: int, tile: tuple[int, int], overlap: float, inside: Box) -> Level:
    return Level(Axis(height, tile[0], overlap), Axis(width, tile[1], overlap), inside)
