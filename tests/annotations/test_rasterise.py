"""Pixels of shapes: one rule, against plain loops, and below the size of a pixel."""

import math

import cv2
import numpy as np
import pytest

from afclip_runtime.images.rasterise import mark
from afclip_runtime.images.shapes import Bitmap, Ellipse, Line, Polygon, points_of, rectangle
from tests.reference import rasterise as reference

HEIGHT, WIDTH = 17, 23
SIZE = (HEIGHT, WIDTH)


def pixels(area: object, shape: tuple[int, int] = SIZE, line_width: float = 1.0) -> set[tuple[int, int]]:
    return {(int(r), int(c)) for r, c in np.argwhere(mark(area, shape, line_width).mask)}  # type: ignore[arg-type]


def polygon(*points: tuple[float, float]) -> Polygon:
    return Polygon((points_of(points),))


def parts(found: set[tuple[int, int]], shape: tuple[int, int] = SIZE) -> int:
    mask = np.zeros(shape, np.uint8)
    for place in found:
        mask[place] = 1
    return cv2.connectedComponents(mask, connectivity=8)[0] - 1


@pytest.mark.parametrize("seed", range(30))
def test_polygons_are_as_plain_loops_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-4, 26, (int(rng.integers(3, 9)), 2))  # crossing themselves, and the border
    ring = [(float(x), float(y)) for x, y in corners]
    wanted = reference.centres(ring, *SIZE) | reference.thin(ring, *SIZE)
    assert pixels(Polygon((corners,))) == wanted


@pytest.mark.parametrize("seed", range(20))
def test_corners_on_centres_and_borders_count_as_inside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 2 * HEIGHT, (int(rng.integers(3, 7)), 2)) / 2
    ring = [(float(x), float(y)) for x, y in corners]
    found = pixels(Polygon((corners,)))
    assert found >= reference.centres(ring, *SIZE)
    near = [(r, c) for r, c in found if not reference.inside(ring, c + 0.5, r + 0.5)]
    square = [(dx / 8, dy / 8) for dx in range(9) for dy in range(9)]
    for r, c in near:  # of a passage between centres: the shape passes through the pixel
        assert any(reference.inside(ring, c + dx, r + dy) for dx, dy in square)


def test_a_box_marks_as_many_pixels_as_it_is_large() -> None:
    assert pixels(rectangle((3, 2, 5, 4))) == {(r, c) for r in range(2, 6) for c in range(3, 8)}
    assert len(pixels(rectangle((3.3, 2.4, 5, 4)))) == 20
    assert len(pixels(rectangle((3.5, 2.5, 5, 4)))) == 30  # its sides run through centres, which count
    assert pixels(rectangle((3 + 3e-7, 2 - 3e-7, 5, 4))) == pixels(rectangle((3, 2, 5, 4)))  # rounding moves nothing
    assert pixels(rectangle((3.5 + 3e-7, 2.5 + 3e-7, 5, 4))) == pixels(rectangle((3.5, 2.5, 5, 4)))


@pytest.mark.parametrize("width", [1e-4, 0.05, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("angle", [0, 7, 33, 45, 58, 90, 121, 180])
@pytest.mark.parametrize("offset", [0.0, 0.13, 0.5, 0.77])
def test_a_crack_thinner_than_a_pixel_stays_one_line(width: float, angle: float, offset: float) -> None:
    x, y, length = 11 + offset, 8 + offset, 12.0
    found = pixels(rectangle((x - length / 2, y - width / 2, length, width), angle))
    assert parts(found) == 1
    across = length * max(abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle))))
    assert len(found) >= across - 2
    assert len(found) <= 3 * length


def test_a_wedge_keeps_its_thin_end() -> None:
    found = pixels(polygon((1, 5.1), (21, 9.6), (21, 14)))
    assert parts(found) == 1
    assert {c for _, c in found} >= set(range(2, 21))


@pytest.mark.parametrize(("x", "y"), [(5.1, 3.1), (5.9, 3.9), (5.6, 3.1), (0.1, 0.2), (22.7, 16.8)])
@pytest.mark.parametrize("size", [0.0, 1e-9, 0.1, 0.15])
def test_a_speck_marks_the_pixel_that_holds_it(x: float, y: float, size: float) -> None:
    place = {(int(y), int(x))}
    assert pixels(rectangle((x, y, size, size))) == place
    assert pixels(Ellipse((x, y), (size / 2, size / 2))) == place
    assert pixels(polygon((x, y), (x, y))) == pixels(polygon((x, y))) == place
    assert len(pixels(Line(points_of([x, y])))) >= 1


def test_a_speck_on_the_last_border_is_in_the_image() -> None:
    assert pixels(polygon((WIDTH, HEIGHT), (WIDTH, HEIGHT))) == {(HEIGHT - 1, WIDTH - 1)}
    assert pixels(polygon((0, 0))) == {(0, 0)}


def test_what_a_ring_surrounds_twice_is_outside() -> None:
    star = [(11 + 7 * math.sin(4 * math.pi * i / 5), 8 - 7 * math.cos(4 * math.pi * i / 5)) for i in range(5)]
    found = pixels(polygon(*star))
    assert (8, 11) not in found
    assert found == reference.centres(star, *SIZE) | reference.thin(star, *SIZE)


def test_parts_are_united_and_holes_taken_away() -> None:
    one, two = rectangle((2, 2, 6, 6)).parts[0], rectangle((5, 5, 6, 6)).parts[0]
    assert pixels(Polygon((one, two))) == pixels(Polygon((one,))) | pixels(Polygon((two,)))
    hole = rectangle((4, 4, 3, 2)).parts[0]
    assert pixels(Polygon((one,), (hole,))) == pixels(Polygon((one,))) - pixels(Polygon((hole,)))
    on_centres = rectangle((4.5, 4.5, 2, 1)).parts[0]  # its outline runs through centres: they are of the hole
    assert pixels(Polygon((one,), (on_centres,))) == pixels(Polygon((one,), (hole,)))
    between = rectangle((4.6, 4.6, 0.8, 0.8)).parts[0]
    assert pixels(Polygon((one,), (between,))) == pixels(Polygon((one,)))  # no centre lies in it


@pytest.mark.parametrize("seed", range(20))
def test_ellipses_are_as_plain_loops_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, a, b, angle = *rng.uniform(-2, 24, 2), *rng.uniform(1, 11, 2), rng.uniform(-360, 360)
    wanted = reference.ellipse(x, y, a, b, angle, *SIZE)
    outline = [
        (
            x + a * math.cos(t) * math.cos(math.radians(angle)) - b * math.sin(t) * math.sin(math.radians(angle)),
            y + a * math.cos(t) * math.sin(math.radians(angle)) + b * math.sin(t) * math.cos(math.radians(angle)),
        )
        for t in np.linspace(0, 2 * math.pi, 4001)[:-1]
    ]
    found = pixels(Ellipse((x, y), (a, b), angle))
    assert found == wanted | reference.thin(outline, *SIZE)


@pytest.mark.parametrize("angle", [0, 20, 45, 90, 135, 160])
def test_a_flat_ellipse_stays_one_line(angle: float) -> None:
    found = pixels(Ellipse((11.2, 8.3), (7, 0.02), angle))
    assert parts(found) == 1
    assert len(found) >= 9


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("width", [1.0, 2.5, 10.0])
def test_lines_are_the_pixels_within_half_of_their_width(seed: int, width: float) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(-3, 24, (int(rng.integers(1, 5)), 2))
    wanted = reference.line([(float(x), float(y)) for x, y in points], width, *SIZE)
    if not wanted:
        points, wanted = points_of([4.2, 4.2, 9.1, 12.7]), reference.line([(4.2, 4.2), (9.1, 12.7)], width, *SIZE)
    assert pixels(Line(points), line_width=width) == wanted
    assert pixels(Line(points, width)) == wanted  # its own width comes first
    assert parts(wanted) == 1 or points.min() < 0 or points.max() > 17


def test_a_line_is_at_least_a_pixel_wide() -> None:
    line = points_of([2.3, 3.1, 20.2, 9.9])
    assert pixels(Line(line, 0.01)) == pixels(Line(line, 1))


def test_parts_outside_are_cut_off_and_reported() -> None:
    inside = mark(rectangle((0, 0, WIDTH, HEIGHT)), SIZE)
    assert inside.mask.all()
    assert not inside.clipped
    beyond = mark(rectangle((-5, -5, 8, 8)), SIZE)
    assert beyond.clipped
    assert beyond.mask.sum() == 9
    for area in (
        rectangle((30, 3, 5, 5)),
        Ellipse((-9, 5), (3, 3)),
        Line(points_of([30, 30, 40, 40])),
        polygon((99, 3)),
    ):
        outside = mark(area, SIZE)
        assert outside.clipped
        assert not outside.mask.any()


def test_bitmaps_are_put_in_their_place() -> None:
    block = np.ones((3, 4), bool)
    block[0, 0] = False
    wanted = {(5 + r, 7 + c) for r in range(3) for c in range(4)} - {(5, 7)}
    assert pixels(Bitmap(lambda: block, 7, 5)) == wanted
    for left, top, count in (
        (-2, -1, 4),
        (WIDTH - 1, HEIGHT - 1, 0),
        (-9, 0, 0),
        (0, 99, 0),
        (-99, -99, 0),
        (21, 15, 3),
    ):
        marked = mark(Bitmap(lambda: block, left, top), SIZE)
        assert marked.mask.sum() == count
        assert marked.clipped
    blank = mark(Bitmap(lambda: np.zeros((3, 4), bool)), SIZE)
    assert not blank.mask.any()
    assert not blank.clipped


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="a billion pixels away"):
        mark(rectangle((0, 0, 1e12, 4)), SIZE)
    with pytest.raises(ValueError, match="far too many rows"):
        mark(Polygon((np.tile([[1, -9e8], [2, 9e8]], (400_000, 1)).astype(float),)), (200, 5))
    for bad in ([], [1], [1, 2, 3], [1, float("nan")], ["a", 2], [[1, 2], [3]], [1, 10**400]):
        with pytest.raises(ValueError, match="its points"):
            points_of(bad)  # type: ignore[arg-type]


def test_rectangles_are_turned_clockwise() -> None:
    about_centre = rectangle((4, 4, 8, 2), 90).parts[0]
    assert np.allclose(about_centre.min(0), (7, 1))
    assert np.allclose(about_centre.max(0), (9, 9))
    about_corner = rectangle((4, 4, 8, 2), 90, pivot="corner").parts[0]
    assert np.allclose(about_corner, [(4, 4), (4, 12), (2, 12), (2, 4)])
    assert np.allclose(rectangle((4, 4, 8, 2), 30, "corner").parts[0][1], (4 + 8 * math.sqrt(3) / 2, 4 + 4))
