"""Areas of an image in one form, whatever drew them: polygons, ellipses, lines, bitmaps.

Coordinates are pixels of the image, x to the right and y down; the pixel in column c and row r covers x from c to c + 1
and y from r to r + 1, so its centre is (c + 0.5, r + 0.5). Readers of tools that count otherwise convert to that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

FURTHEST = 1e9  # pixels from the image: no shape is drawn that far off

Points: TypeAlias = np.ndarray
"""`[n, 2]`, float64, x and y."""


@dataclass(frozen=True, eq=False)
class Polygon:
    """Closed outlines.

    Attributes:
        parts: Outlines, which need not be closed by their first point again. Within each, what it surrounds an even
            number of times is outside; together they mark what any of them marks.
        holes: Outlines of what is taken away.
    """

    parts: tuple[Points, ...]
    holes: tuple[Points, ...] = ()


@dataclass(frozen=True)
class Ellipse:
    """An ellipse.

    Attributes:
        centre: x and y.
        radii: Half of the width and half of the height, before it is turned.
        angle: By how much it is turned, in degrees, clockwise as one sees the image.
    """

    centre: tuple[float, float]
    radii: tuple[float, float]
    angle: float = 0.0


@dataclass(frozen=True, eq=False)
class Line:
    """An open line with round ends, through points.

    Attributes:
        points: `[n, 2]`, n of at least 1.
        width: In pixels, at least 1; `None` for the width that the user gives.
    """

    points: Points
    width: float | None = None


@dataclass(frozen=True, eq=False)
class Bitmap:
    """Pixels.

    Attributes:
        decode: Returns them, `[h, w]`, bool; raises `ValueError` where they cannot be decoded.
        left: Column of the image that the first column lies on.
        top: Row of the image that the first row lies on.
    """

    decode: Callable[[], np.ndarray]
    left: int = 0
    top: int = 0


Area: TypeAlias = Polygon | Ellipse | Line | Bitmap


def points_of(numbers: Sequence[float] | Sequence[Sequence[float]]) -> Points:
    """Returns points `[n, 2]` of pairs, or of numbers that are x and y in turns.

    Raises:
        ValueError: There is none, a coordinate has no partner, or one is not finite.
    """
    if not isinstance(numbers, (list, tuple, np.ndarray)):
        raise ValueError("its points are no pairs of numbers")
    try:
        flat = np.asarray(numbers, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("its points are no pairs of numbers") from error
    if not flat.size or flat.size % 2:
        raise ValueError(f"its points are {flat.size} numbers, and must be pairs")
    if not np.isfinite(flat).all():
        raise ValueError("its points are not finite")
    if abs(flat).max() > FURTHEST:
        raise ValueError("its points lie more than a billion pixels off")
    return flat.reshape(-1, 2)


def rectangle(box: Sequence[float], angle: float = 0.0, pivot: Literal["centre", "corner"] = "centre") -> Polygon:
    """Returns a rectangle as a polygon.

    Args:
        box: Left side, upper side, width and height in pixels, before it is turned.
        angle: By how much it is turned, in degrees, clockwise as one sees the image.
        pivot: What it is turned about: its `centre`, or its first `corner`, the upper left one.

    Raises:
        ValueError: A number is not finite, or far too large.
    """
    x, y, width, height = box
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    about = np.array([width / 2, height / 2]) if pivot == "centre" else np.zeros(2)
    if not abs(angle) <= FURTHEST:  # nor not a number
        raise ValueError(f"it is turned by {angle} degrees")
    turn = np.deg2rad(angle % 360)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return Polygon((points_of((corners - about) @ matrix + about + (x, y)),))
