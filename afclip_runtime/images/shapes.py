"""Shapes of annotations in a common form for all tools: polygons, ellipses, lines, bitmaps.

Coordinates are pixels of the image, x to the right and y down. The pixel in column c and row r covers x from c to c + 1
and y from r to r + 1, so its centre is (c + 0.5, r + 0.5). Readers of tools with other coordinates convert to these.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

FURTHEST = 1e9  # pixels; no real shape is that far from the image

Points: TypeAlias = np.ndarray
"""`[n, 2]`, float64, x and y."""


@dataclass(frozen=True, eq=False)
class Polygon:
    """Closed outlines.

    Attributes:
        parts: Outlines, whose last point need not repeat the first. Within an outline, the even-odd rule applies. The
            polygon is the union of the outlines.
        holes: Outlines of holes.
    """

    parts: tuple[Points, ...]
    holes: tuple[Points, ...] = ()


@dataclass(frozen=True)
class Ellipse:
    """An ellipse.

    Attributes:
        centre: x and y.
        radii: Half of the width and half of the height, before the rotation.
        angle: Rotation in degrees, clockwise on the screen.
    """

    centre: tuple[float, float]
    radii: tuple[float, float]
    angle: float = 0.0


@dataclass(frozen=True, eq=False)
class Line:
    """An open polyline with round ends.

    Attributes:
        points: `[n, 2]`, n >= 1.
        width: Width in pixels, at least 1. `None` for the width that the user gives.
    """

    points: Points
    width: float | None = None


@dataclass(frozen=True, eq=False)
class Bitmap:
    """A shape of single pixels.

    Attributes:
        decode: Function that returns the pixels, `[h, w]`, bool. It raises `ValueError` if they cannot be decoded.
        left: Column of the image at which the first column is placed.
        top: Row of the image at which the first row is placed.
    """

    decode: Callable[[], np.ndarray]
    left: int = 0
    top: int = 0


Area: TypeAlias = Polygon | Ellipse | Line | Bitmap


def points_of(numbers: Sequence[float] | Sequence[Sequence[float]]) -> Points:
    """Returns points `[n, 2]` from pairs, or from alternating x and y.

    Raises:
        ValueError: There is no point, the count of numbers is odd, or a number is not finite.
    """
    if not isinstance(numbers, (list, tuple, np.ndarray)):
        raise ValueError("its points are not pairs of numbers")
    try:
        flat = np.asarray(numbers, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("its points are not pairs of numbers") from error
    if not flat.size or flat.size % 2:
        raise ValueError(f"its points are {flat.size} numbers, and must be pairs")
    if not np.isfinite(flat).all():
        raise ValueError("its points are not finite")
    if abs(flat).max() > FURTHEST:
        raise ValueError("its points are more than a billion pixels away")
    return flat.reshape(-1, 2)


def rectangle(box: Sequence[float], angle: float = 0.0, pivot: Literal["centre", "corner"] = "centre") -> Polygon:
    """Returns a rectangle as a polygon.

    Args:
        box: Left side, upper side, width and height in pixels, before the rotation.
        angle: Rotation in degrees, clockwise on the screen.
        pivot: Centre of rotation: the `centre` of the rectangle, or its upper left `corner`.

    Raises:
        ValueError: A number is not finite, or far too large.
    """
    x, y, width, height = box
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    about = np.array([width / 2, height / 2]) if pivot == "centre" else np.zeros(2)
    if not abs(angle) <= FURTHEST:  # false for NaN, too
        raise ValueError(f"it is turned by {angle} degrees")
    turn = np.deg2rad(angle % 360)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return Polygon((points_of((corners - about) @ matrix + about + (x, y)),))
