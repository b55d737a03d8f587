"""Rasterisation of shapes, with the same rules for the annotation tools of all kinds.

1. A pixel is marked if its centre is in the shape or on its outline.
2. A thin shape may pass between two neighbouring centres of a row or column. Then the pixel at the middle of this
   section is marked. A crack narrower than a pixel stays one connected line.
3. A shape that still marks no pixel, a speck, marks the pixel at its middle.

Lines follow rule 1 (pixels within half of the line width) and rule 3. A hole removes the pixels whose centre is in it
or on its outline. Coordinates are rounded to a millionth of a pixel. Parts outside the image are clipped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from afclip_runtime.images.shapes import FURTHEST, Area, Bitmap, Ellipse, Line, Points, Polygon

STEP = 1e-6  # pixels: resolution of coordinates, so that rounding moves no point off a centre
MOST_CROSSINGS = 2**26  # crossings of outlines with rows of centres; more would need gigabytes of memory
SMALLEST_RADIUS = 1e-3

Spans = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Rows, and start and end of the shape in each row, in pixels."""


@dataclass(frozen=True, eq=False)
class Marked:
    """The pixels of an image that a shape marks.

    Attributes:
        mask: `[H, W]`, bool.
        clipped: Whether part of the shape is outside the image.
    """

    mask: np.ndarray
    clipped: bool


def mark(area: Area, shape: tuple[int, int], line_width: float = 1.0) -> Marked:
    """Returns the pixels that a shape marks. There are none only if it is outside the image, or is an empty bitmap.

    Args:
        area: The shape.
        shape: Height and width of the image, in pixels.
        line_width: Width of lines without a width, in pixels, at least 1.

    Raises:
        ValueError: A bitmap cannot be decoded, or the shape has far too many corners, or is too far away.
    """
    mask = np.zeros(shape, bool)
    if isinstance(area, Bitmap):
        return Marked(mask, _place(mask, area))
    with np.errstate(all="ignore"):  # numbers that overflow are rejected below
        low, high = _bounds(area, line_width)
    if not max(abs(low).max(), abs(high).max()) <= FURTHEST:  # false for NaN, too
        raise ValueError("it is more than a billion pixels away")
    if isinstance(area, Polygon):
        for part in area.parts:
            _fill(mask, _crossings([part], shape), _crossings([part[:, ::-1]], shape[::-1]))
    elif isinstance(area, Ellipse):
        _fill(mask, _spans_of(area, shape), _spans_of(_transposed(area), shape[::-1]))
    else:
        for stroke in _strokes(area, max(area.width or line_width, 1.0)):
            _fill(mask, _spans_of(stroke, shape), _spans_of(_transposed(stroke), shape[::-1]), thin=False)
    size = np.array(shape[::-1])
    middle = np.floor((low + high) / 2 + STEP)
    if not mask.any() and (middle >= 0).all() and ((low + high) / 2 <= size).all():
        column, row = np.minimum(middle, size - 1).astype(int)
        mask[row, column] = True
    if isinstance(area, Polygon):
        _dig(mask, area.holes)
    return Marked(mask, bool((low < -STEP).any() or (high > size + STEP).any()))


def _place(mask: np.ndarray, bitmap: Bitmap) -> bool:
    """Draws the pixels of a bitmap on a mask. Returns whether some are outside."""
    pixels = bitmap.decode()
    top, left = max(bitmap.top, 0), max(bitmap.left, 0)
    rows = slice(top - bitmap.top, max(mask.shape[0] - bitmap.top, 0))
    columns = slice(left - bitmap.left, max(mask.shape[1] - bitmap.left, 0))
    inside = pixels[rows, columns]
    mask[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return int(np.count_nonzero(pixels)) > int(np.count_nonzero(inside))


def _bounds(area: Polygon | Ellipse | Line, line_width: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the smallest and the largest x and y of a shape."""
    if isinstance(area, Ellipse):
        turn = np.deg2rad(area.angle)
        a, b = area.radii
        reach = np.hypot([a * np.cos(turn), a * np.sin(turn)], [b * np.sin(turn), b * np.cos(turn)])
        return np.array(area.centre) - reach, np.array(area.centre) + reach
    points = np.concatenate(area.parts) if isinstance(area, Polygon) else area.points
    half = max(area.width or line_width, 1.0) / 2 if isinstance(area, Line) else 0.0
    return points.min(0) - half, points.max(0) + half


def _dig(mask: np.ndarray, holes: Sequence[Points]) -> None:
    for hole in holes:
        taken = np.zeros_like(mask)
        shape = (mask.shape[0], mask.shape[1])
        _fill(taken, _crossings([hole], shape), _crossings([hole[:, ::-1]], shape[::-1]), thin=False)
        mask &= ~taken


def _strokes(line: Line, width: float) -> Iterator[Polygon | Ellipse]:
    """Yields the discs and the bars of a line."""
    for x, y in line.points:
        yield Ellipse((x, y), (width / 2, width / 2))
    for start, end in zip(line.points, line.points[1:], strict=False):
        length = float(np.hypot(*(end - start)))
        if length > STEP:
            across = (end - start)[::-1] * (-1, 1) * (width / 2 / length)
            yield Polygon((np.stack([start + across, end + across, end - across, start - across]),))


def _spans_of(stroke: Polygon | Ellipse, shape: tuple[int, int]) -> list[Spans]:
    return _chords(stroke, shape) if isinstance(stroke, Ellipse) else _crossings(list(stroke.parts), shape)


def _transposed(area: Polygon | Ellipse) -> Polygon | Ellipse:
    """Returns a shape with x and y exchanged."""
    if isinstance(area, Polygon):
        return Polygon(tuple(part[:, ::-1] for part in area.parts))
    return Ellipse((area.centre[1], area.centre[0]), area.radii, 90 - area.angle)


def _crossings(rings: Sequence[Points], shape: tuple[int, int]) -> list[Spans]:
    """Returns the sections of the rows of centres that are in outlines. The ends of a section count as inside.

    The first pass includes the upper end of each edge but not the lower, the second pass the lower but not the upper.
    Both together make the outline part of the shape.
    """
    starts = np.concatenate(list(rings))
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    starts, ends = (np.round(points / STEP) * STEP for points in (starts, ends))
    found = []
    for lower_included in (False, True):
        upper, lower = np.minimum(starts[:, 1], ends[:, 1]) - 0.5, np.maximum(starts[:, 1], ends[:, 1]) - 0.5
        tiny = STEP / 4  # coordinates are multiples of `STEP`, up to rounding
        if lower_included:
            first, last = np.floor(upper + tiny) + 1, np.floor(lower + tiny)
        else:
            first, last = np.ceil(upper - tiny), np.ceil(lower - tiny) - 1
        first, last = np.maximum(first, 0), np.minimum(last, shape[0] - 1)
        counts = np.maximum(last - first + 1, 0).astype(np.int64)
        if counts.sum() > MOST_CROSSINGS:
            raise ValueError(f"its outline has {len(starts):,} corners, which cross far too many rows")
        edge = np.repeat(np.arange(len(starts)), counts)
        row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
        share = (row + 0.5 - starts[edge, 1]) / (ends[edge, 1] - starts[edge, 1])
        x = starts[edge, 0] + share * (ends[edge, 0] - starts[edge, 0])
        order = np.lexsort((x, row))
        row, x = row[order].astype(np.int64), x[order]
        found.append((row[::2], x[::2], x[1::2]))
    return found


def _chords(ellipse: Ellipse, shape: tuple[int, int]) -> list[Spans]:
    """Returns the sections of the rows of centres that are in an ellipse.

    In the axes of the ellipse, (dx cos + dy sin)² / a² + (dy cos - dx sin)² / b² ≤ 1, a quadratic inequality in dx.
    """
    turn = np.deg2rad(ellipse.angle)
    cos, sin = np.cos(turn), np.sin(turn)
    a, b = (max(radius, SMALLEST_RADIUS) ** -2.0 for radius in ellipse.radii)
    square, mixed, rest = a * cos**2 + b * sin**2, (a - b) * cos * sin, a * sin**2 + b * cos**2
    row = np.arange(shape[0])
    dy = row + 0.5 - ellipse.centre[1]
    root = mixed**2 * dy**2 - square * (rest * dy**2 - 1)
    row, dy, root = (values[root >= -STEP * square] for values in (row, dy, root))
    half = np.sqrt(np.maximum(root, 0))
    middle = ellipse.centre[0] - mixed * dy / square
    return [(row, middle - half / square, middle + half / square)]


def _fill(mask: np.ndarray, rows: list[Spans], columns: list[Spans], thin: bool = True) -> None:
    """Marks the pixels in sections of the rows and of the columns. If `thin`, rule 2 applies, too."""
    for canvas, spans in ((mask, rows), (mask.T, columns)):
        for row, start, end in spans:
            first = np.ceil(start - 0.5 - STEP).astype(np.int64)
            last = np.floor(end - 0.5 + STEP).astype(np.int64)
            if thin:
                between = last < first
                first[between] = last[between] = np.floor((start + end)[between] / 2 + STEP).astype(np.int64)
            first, last = np.maximum(first, 0), np.minimum(last, canvas.shape[1] - 1)
            for line, begin, stop in zip(row.tolist(), first.tolist(), (last + 1).tolist(), strict=True):
                if begin < stop:
                    canvas[line, begin:stop] = True
