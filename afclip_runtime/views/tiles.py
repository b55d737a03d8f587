"""From an image of any size to the frames that a backbone takes, and from their maps back to the image's own size."""

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
    """Tiles along one side of an image, evenly spread from its one end to the other.

    Attributes:
        length: Of the image, in pixels.
        side: Of a tile, in pixels, not above `length`.
        overlap: Share of a tile that it has in common with the next, at least.
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
        """Returns how much the pixels of a tile count before they are normalised: less and less towards its ends.

        Where no overlap is asked for they count alike.
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
        """Returns how much the pixels of a tile count, `[side]`, float32; over all tiles it is 1 for each pixel."""
        start = self.starts[index]
        return (self._window / self._total[start : start + self.side]).astype(np.float32)


@dataclass(frozen=True)
class Level:
    """Equal tiles that cover an image.

    Attributes:
        rows: Along its height.
        columns: Along its width.
        inside: Where a tile lies in the frame that the backbone sees, in its pixels; all of it, unless the frame is
            larger than what it shows, or shows a part.
    """

    rows: Axis
    columns: Axis
    inside: Box

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    def box(self, index: int) -> Box:
        """Returns where a tile lies in the image."""
        row, column = divmod(index, len(self.columns.starts))
        left, top = self.columns.starts[column], self.rows.starts[row]
        return left, top, left + self.columns.side, top + self.rows.side


class Layout:
    """The views of one image.

    Args:
        height: Of the image, in pixels.
        width: Likewise.
        tiling: How it is seen.
        frame: What the backbone takes, and how it sees a whole.
        roi: Which part of the image is inspected; all of it by default.
        name: What messages call the image.

    Attributes:
        inside: `[H, W]`, bool: which pixels are inspected; `None` for all.
        views: Numbers of the views that show something of them.

    Raises:
        UserError: It would take more than `MAX_VIEWS` views, or the region of interest does not fit the image.
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
        """Returns what the backbone sees of the image `[H, W, 3]` in one view, `[h, w, 3]`, uint8.

        Pixels that are not inspected, or that the filter mixes with such, have the colour `BLANK`.
        """
        level, index = self._find(view)
        box = left, top, right, bottom = level.box(index)
        part, frame = image[top:bottom, left:right], self.frame
        seen = into_frame(part, level.inside, frame.image_size, frame.interpolation)
        if self.roi is not None:
            seen[~clear_in_view(self.roi, (self.height, self.width), box, level.inside, frame)] = BLANK
        return seen

    def add(self, anomaly_map: np.ndarray, view: int, seen: np.ndarray) -> None:
        """Adds the map of a view to the map of the image, in place; after all views that is the merged map.

        Args:
            anomaly_map: `[H, W]`, float32; zeros at first.
            view: Which view.
            seen: `[h, w]`, float32, the view's map.
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
    """Returns height and width of the largest part of an image that has the shape of a frame."""
    if height * wide <= width * tall:
        return height, max(1, min(width, round(height * wide / tall)))
    return max(1, min(height, round(width * tall / wide))), width


def _out_of_frame(seen: np.ndarray, inside: Box) -> np.ndarray:
    """Returns the map of what lies at a place in the frame; where it reaches beyond, the border's values go on."""
    left, top, right, bottom = inside
    height, width = seen.shape
    part = seen[max(0, top) : bottom, max(0, left) : right]
    around = max(0, -top), max(0, bottom - height), max(0, -left), max(0, right - width)
    return repeat_border(part, *around)


def _level(height: int, width: int, tile: tuple[int, int], overlap: float, inside: Box) -> Level:
    return Level(Axis(height, tile[0], overlap), Axis(width, tile[1], overlap), inside)
