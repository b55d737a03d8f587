"""Draws products and their defects from random numbers: the pictures of the `Synthetic` dataset.

A picture is made in three steps, each with a random stream of its own: `render` draws a flawless product, `draw_defect`
changes it, `expose` adds what the camera adds. Exposure works pixel by pixel, so that the picture with the defect and
the one without are identical outside the mask.

Up to exposure an image is `[3, H, W]`, float32, RGB in [0, 1]: planes first, so that a map `[H, W]` applies to all
three by broadcasting. Lengths are in units of the image side; heights rise towards the viewer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]  # float32 unless stated otherwise; NumPy's stubs do not keep the type
Mask = NDArray[np.bool_]
Colour = tuple[float, float, float]

VERSION = 1  # raise it when any picture changes: data on disk made by another version is refused
VISIBLE = 4 / 255  # a smaller change in every channel is invisible under the camera's noise
AREA = (0.001, 0.15)  # least and greatest share of the image that a defect covers

_LIGHT = (-0.5, -0.6, 0.625)  # unit vector towards the lamp: from the upper left
_HALFWAY = (-0.277, -0.333, 0.901)  # unit vector half way between the lamp and the viewer, who looks from above


@dataclass(frozen=True)
class Product:
    """A category of products.

    Attributes:
        draw: Returns the flawless picture `[3, n, n]` and the product's coverage `[n, n]` in [0, 1], from n and a
            random stream.
        defects: Kinds of defect that the product can have.
        texture: Whether the product fills the picture.
    """

    draw: Callable[[int, Generator], tuple[Array, Array]]
    defects: tuple[str, ...]
    texture: bool


def picture(category: str, kind: str | None, entropy: Sequence[int], size: int) -> tuple[NDArray[np.uint8], Mask]:
    """Returns the picture `[size, size, 3]`, uint8, RGB, and its mask `[size, size]`, bool, true = anomalous.

    The same `entropy` gives the same product under the same camera whatever the `kind`, so that `kind=None` is the
    flawless twin of a picture.

    Args:
        category: One of `CATEGORIES`.
        kind: One of `DEFECTS`, or `None` for a flawless product.
        entropy: Non-negative integers that all random numbers derive from.
        size: Side in pixels.
    """
    product, defect, camera = (np.random.default_rng(s) for s in np.random.SeedSequence(list(entropy)).spawn(3))
    image, foreground = render(category, product, size)
    mask = np.zeros((size, size), bool)
    if kind is not None:
        image, mask = draw_defect(kind, image, foreground, defect, strength=defect.uniform())
    return expose(image, camera), mask


def render(category: str, rng: Generator, size: int) -> tuple[Array, Mask]:
    """Returns a flawless product `[3, size, size]`, float32 in [0, 1], and where it is `[size, size]`, bool."""
    image, coverage = CATEGORIES[category].draw(size * 3 // 2, rng)  # drawn finer, then averaged: no jagged edges
    red, green, blue, coverage = (_resize(plane, size) for plane in (*image, coverage))
    return np.stack([red, green, blue]).clip(0, 1), coverage > 0.5


def draw_defect(kind: str, image: Array, foreground: Mask, rng: Generator, strength: float) -> tuple[Array, Mask]:
    """Returns the image with a defect, float32 in [0, 1], and the mask of the pixels that the defect changed.

    A pixel is in the mask where the defect changed a channel by more than `VISIBLE`; specks and pinholes of the mask
    are removed. Outside the mask the image is returned as it came. A draw whose area is not within `AREA` is repeated.

    Args:
        kind: One of `DEFECTS`.
        image: `[3, H, W]`, float32 in [0, 1].
        foreground: `[H, W]`, bool, where the product is.
        rng: Random stream.
        strength: Strength from 0, faint and small, to 1, strong and large.

    Raises:
        RuntimeError: No draw had an area within `AREA`.
    """
    for _ in range(60):
        changed = DEFECTS[kind](image, foreground, rng, strength).astype(np.float32).clip(0, 1)
        if kind not in _OVERHANGING:
            changed = np.where(foreground, changed, image)
        mask = _tidy(np.abs(changed - image).max(axis=0) > VISIBLE)
        area = mask.mean()
        if AREA[0] <= area <= AREA[1]:
            return np.where(mask, changed, image), mask
        strength = min(strength + 0.1, 1.0) if area < AREA[0] else strength * 0.8
    raise RuntimeError(f"no {kind} of a permitted area could be drawn")


def expose(image: Array, rng: Generator) -> NDArray[np.uint8]:
    """Returns the image as from a camera, `[H, W, 3]`, uint8: with uneven light, white balance and noise per pixel."""
    x, y = _pose(image.shape[-1], rng, turn=np.pi, shift=0.1)
    light = rng.uniform(0.92, 1.06) * (1 + rng.uniform(0.0, 0.2) * x - 0.2 * (x * x + y * y))
    image = image * light * _rgb(rng.uniform(0.98, 1.02, 3))
    image = image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0.006, 0.012))
    return np.ascontiguousarray(np.rint(image.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))


# --- shared primitives ------------------------------------------------------------------------------------------------


def _pose(n: int, rng: Generator, turn: float, shift: float = 0.03, zoom: float = 0.04) -> tuple[Array, Array]:
    """Returns coordinates x, y `[n, n]` from the centre of a product that is turned, shifted and zoomed at random."""
    axis = (np.arange(n, dtype=np.float32) + 0.5) / n - 0.5
    x, y = np.meshgrid(axis, axis)
    angle, scale = rng.uniform(-turn, turn), 1 + rng.uniform(-zoom, zoom)
    cos, sin = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
    dx, dy = rng.uniform(-shift, shift, 2).astype(np.float32)
    return cos * (x - dx) + sin * (y - dy), cos * (y - dy) - sin * (x - dx)


def _noise(n: int, rng: Generator, cells: float | tuple[float, float], octaves: int = 4) -> Array:
    """Returns fractal value noise `[n, n]` about -1 to 1; `cells` is the coarsest octave's (rows, columns)."""
    rows, columns = cells if isinstance(cells, tuple) else (cells, cells)
    total = np.zeros((n, n), np.float32)
    for octave in range(octaves):
        shape = [max(2, min(round(c * 2**octave), n)) for c in (rows, columns)]
        lattice = rng.uniform(-1, 1, shape).astype(np.float32)
        total += cv2.resize(lattice, (n, n), interpolation=cv2.INTER_CUBIC) * np.float32(0.6**octave)
    return total


def _cells(n: int, rng: Generator, across: int) -> tuple[Array, Array]:
    """Returns an irregular tiling about `across` cells wide: cell numbers `[n, n]` and distance to the cell's edge."""
    corners = np.stack(np.meshgrid(np.arange(across), np.arange(across)), -1).reshape(-1, 2)
    columns, rows = np.minimum((corners + rng.random(corners.shape)) * n / across, n - 1).astype(int).T
    away = np.ones((n, n), np.uint8)
    away[rows, columns] = 0
    labels = np.asarray(cv2.distanceTransformWithLabels(away, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)[1])
    inner = np.ones((n, n), np.uint8)
    inner[:, 1:] &= labels[:, 1:] == labels[:, :-1]
    inner[1:] &= labels[1:] == labels[:-1]
    return labels, cv2.distanceTransform(inner, cv2.DIST_L2, 5) / np.float32(n)


def _rgb(colour: ArrayLike) -> Array:
    return np.asarray(colour, np.float32).reshape(3, 1, 1)


def _tint(rng: Generator, colour: Colour, spread: float = 0.05) -> Array:
    """Returns a random colour near this one, `[3, 1, 1]`, so that products vary."""
    return _rgb(colour) * _rgb(1 + rng.uniform(-spread, spread) + rng.uniform(-spread, spread, 3) / 2)


def _smooth(t: Array) -> Array:
    """Returns a soft step: 0 below 0, 1 above 1."""
    t = np.clip(t, 0, 1)
    step: Array = t * t * (3 - 2 * t)
    return step


def _cover(distance: Array) -> Array:
    """Returns the antialiased coverage of a shape from the signed distance to its border, negative inside."""
    covered: Array = np.clip(0.5 - distance * len(distance), 0, 1)
    return covered


def _box(x: Array, y: Array, width: float, height: float, corner: float) -> Array:
    """Returns the signed distance to a rounded box of half sizes `width`, `height` about the origin."""
    dx, dy = np.abs(x) - width + corner, np.abs(y) - height + corner
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - corner


def _mix(below: Array, above: Array, alpha: Array) -> Array:
    mixed: Array = below + (above - below) * alpha
    return mixed


def _resize(plane: Array, size: int) -> Array:
    return cv2.resize(plane.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)


def _blur(plane: Array, sigma: float) -> Array:
    return cv2.GaussianBlur(plane, (0, 0), max(sigma * len(plane), 0.3), borderType=cv2.BORDER_REFLECT)


def _shift(plane: Array, by: float) -> Array:
    """Returns the plane moved to the lower right, away from the lamp, by whole pixels and at least one."""
    step = max(1, round(by * len(plane)))
    return cv2.copyMakeBorder(plane, step, 0, step, 0, cv2.BORDER_REPLICATE)[:-step, :-step]


def _relief(height: Array) -> tuple[Array, Array]:
    """Returns the light that a surface reflects: diffuse (1 = flat surface), and as a highlight in [0, 1]."""
    dy, dx = np.gradient(height * height.shape[0])
    upright = 1 / np.sqrt(1 + dx * dx + dy * dy)
    diffuse = (_LIGHT[2] - _LIGHT[0] * dx - _LIGHT[1] * dy) * upright / _LIGHT[2]
    highlight = (_HALFWAY[2] - _HALFWAY[0] * dx - _HALFWAY[1] * dy) * upright
    return np.clip(diffuse, 0, 1.6), np.clip(highlight, 0, 1)


def _shade(albedo: Array, height: Array, gloss: float = 0.0, power: int = 24) -> Array:
    diffuse, highlight = _relief(height)
    return albedo * (0.35 + 0.65 * diffuse) + gloss * highlight**power


def _weave(u: Array, v: Array, width: float) -> tuple[Array, Array, Array]:
    """Returns a plain weave of threads: height, coverage, and whether the thread on top runs along v."""
    bumps, slack = [], []
    for across, along, sign in ((u, v, 1), (v, u, -1)):
        number = np.floor(across)
        offset = (across - number - 0.5) / (width / 2)
        bumps.append(np.sqrt(np.clip(1 - offset * offset, 0, 1)))
        slack.append(sign * (1 - 2 * (number % 2)) * np.sin(np.pi * along))
    first, second = (np.where(b > 0, 1 + b + 0.7 * s, 0) for b, s in zip(bumps, slack, strict=True))
    return np.maximum(first, second) * width / 2, (np.maximum(*bumps) > 0).astype(np.float32), first > second


def _on_table(n: int, rng: Generator, table: Colour, product: Array, coverage: Array) -> tuple[Array, Array]:
    """Returns the product on a table of one colour, with its shadow, and its coverage."""
    ground = _tint(rng, table) * (1 + 0.025 * _noise(n, rng, 3))
    shadow = _blur(_shift(coverage, 0.015), 0.014)
    return _mix(ground * (1 - 0.5 * shadow), product, coverage), coverage


# --- textures ---------------------------------------------------------------------------------------------------------


def _cloth(n: int, rng: Generator) -> tuple[Array, Array]:
    x, y = _pose(n, rng, turn=0.06, shift=0.5)
    u, v = (24 * c + 0.14 * _noise(n, rng, 4, 3) + 40 for c in (x, y))
    height, _, lengthwise = _weave(u, v, width=0.96)
    yarn = rng.normal(1, 0.05, (2, 90)).astype(np.float32)  # no two yarns are dyed alike
    tone = np.where(lengthwise, yarn[0, u.astype(int)], yarn[1, v.astype(int)]) * (1 + 0.05 * _noise(n, rng, 60, 2))
    warp, weft = _tint(rng, (0.25, 0.37, 0.56)), _tint(rng, (0.66, 0.68, 0.68))
    return _shade(np.where(lengthwise, warp, weft) * tone, height / 34), np.ones((n, n), np.float32)


def _wood(n: int, rng: Generator) -> tuple[Array, Array]:
    x, y = _pose(n, rng, turn=0.03, shift=0.2)
    u = 3.3 * x + 10
    plank = np.floor(u)
    own = rng.random((3, 20), dtype=np.float32)[:, plank.astype(int)]  # a plank's place in the trunk and tone
    across = u - plank - 0.5
    arch = 2.5 * (y + own[1] - 0.5) ** 2 * np.sign(own[0] - 0.5)
    rings = 5 * across + 9 * own[0] + arch + 0.5 * _noise(n, rng, (2, 8))
    late = _smooth(np.abs((rings % 1) * 2 - 1)) ** 2
    fibre = _noise(n, rng, (8, n / 3), 2)
    albedo = _tint(rng, (0.73, 0.52, 0.32)) * ((0.88 + 0.24 * own[2]) * (1 - 0.25 * late) * (1 + 0.07 * fibre))
    gap = _smooth((np.abs(across) - 0.475) / 0.025)
    return _shade(albedo * (1 - 0.6 * gap), -0.006 * gap), np.ones((n, n), np.float32)


def _terrazzo(n: int, rng: Generator) -> tuple[Array, Array]:
    image = _tint(rng, (0.83, 0.81, 0.77), 0.02) * (1 + 0.02 * _noise(n, rng, 40, 3))
    stones = np.array(
        [[0.45, 0.33, 0.27], [0.27, 0.29, 0.31], [0.78, 0.60, 0.45], [0.58, 0.60, 0.57], [0.95, 0.93, 0.90]], np.float32
    ).T
    for across in (30, 11):  # small chips, then large ones over them
        cell, edge = _cells(n, rng, across)
        count = across**2 + 1
        colour = stones[:, rng.integers(5, size=count)] * rng.normal(1, 0.05, count).astype(np.float32)
        margin = rng.choice(np.array([0.12, 0.18, 0.25, 9.0], np.float32), count, p=[0.2, 0.2, 0.1, 0.5])[cell] / across
        speckle = 1 + 0.05 * _noise(n, rng, 30)
        image = _mix(image, colour[:, cell] * speckle, _cover(margin + 0.003 * _noise(n, rng, 40, 2) - edge))
    return image, np.ones((n, n), np.float32)


def _metal(n: int, rng: Generator) -> tuple[Array, Array]:
    x, _ = _pose(n, rng, turn=0.08, shift=0.35)
    sheen = np.exp(-((x / 0.35) ** 2))
    grain = _noise(n, rng, (n / 2, 3), 2) + 0.6 * _noise(n, rng, (n / 6, 2), 2)
    return _tint(rng, (0.56, 0.58, 0.61)) * (0.86 + 0.32 * sheen + 0.075 * grain), np.ones((n, n), np.float32)


def _mesh(n: int, rng: Generator) -> tuple[Array, Array]:
    x, y = _pose(n, rng, turn=0.05, shift=0.5)
    u, v = (11 * c + 0.06 * _noise(n, rng, 3, 2) + 40 for c in (x + y, x - y))
    height, wire, _ = _weave(u, v, width=0.3)
    steel = _tint(rng, (0.70, 0.68, 0.63)) * (1 + 0.06 * _noise(n, rng, 30, 3))
    dark = _tint(rng, (0.13, 0.14, 0.17)) * (1 + 0.15 * _noise(n, rng, 3))
    gap = _blur(_shift(wire, 0.016), 0.006)  # the shadow on what lies behind
    return _mix(dark * (1 - 0.5 * gap), _shade(steel, height / 16, 0.3), wire), np.ones((n, n), np.float32)


def _leather(n: int, rng: Generator) -> tuple[Array, Array]:
    _, edge = _cells(n, rng, 34)
    pebbles = np.sqrt(np.clip(_blur(edge, 0.0025) * 70, 0, 1))
    height = 0.0055 * pebbles + 0.004 * _noise(n, rng, 5, 3)
    tone = (0.72 + 0.28 * pebbles) * (1 + 0.07 * _noise(n, rng, 4, 3))
    return _shade(_tint(rng, (0.47, 0.24, 0.14)) * tone, height, 0.1, 12), np.ones((n, n), np.float32)


# --- objects ----------------------------------------------------------------------------------------------------------


def _gear(n: int, rng: Generator) -> tuple[Array, Array]:
    x, y = _pose(n, rng, turn=np.pi)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    outline = (radius - 0.37 - 0.04 * np.clip(1.9 * np.cos(18 * angle), -1, 1)) * 0.8
    spokes = np.abs((angle / (2 * np.pi) * 5) % 1 - 0.5) * 2 * np.pi / 5 * radius  # distance from the nearest spoke
    windows = np.maximum(np.abs(radius - 0.215) - 0.065, spokes - radius * 0.42)
    bore = np.minimum(radius - 0.065, _box(x, y - 0.065, 0.017, 0.03, 0.0))
    inside = np.maximum(outline, np.maximum(-windows, -bore))
    height = 0.016 * _smooth(-inside / 0.014) + 0.012 * _smooth((0.125 - radius) / 0.012)
    turned = rng.normal(0, 0.05, 99).astype(np.float32)[(radius * 99).astype(int)]  # the marks of the lathe
    sheen = 0.16 * np.cos(2 * angle + rng.uniform(0, 6)) + turned
    steel = _tint(rng, (0.60, 0.62, 0.65)) * (1 + sheen + 0.02 * _noise(n, rng, 20))
    return _on_table(n, rng, (0.20, 0.27, 0.36), _shade(steel, height, 0.25), _cover(inside))


def _biscuit(n: int, rng: Generator) -> tuple[Array, Array]:
    x, y = _pose(n, rng, turn=np.pi)
    along = np.where(np.abs(x) - 0.364 > np.abs(y) - 0.26, y, x)  # both sides are whole waves: corners meet
    inside = _box(x, y, 0.364, 0.26, 0.03) - 0.009 * np.cos(along * (2 * np.pi / 0.052)) + 0.003 * _noise(n, rng, 8)
    px, py = (np.clip(np.rint(c / 0.095), -k, k) * 0.095 - c for c, k in ((x, 3), (y, 2)))
    docking = _smooth((0.017 - np.hypot(px, py)) / 0.008)  # the holes that let the steam out
    crumb = _noise(n, rng, 28, 4)
    height = 0.035 * _smooth(-inside / 0.07) + 0.0022 * crumb - 0.02 * docking
    bake = _smooth(1 + inside / 0.07) * 0.55 + 0.12 * _noise(n, rng, 4)
    albedo = _tint(rng, (0.88, 0.68, 0.40)) * (1 - bake * _rgb([0.35, 0.55, 0.75])) * (1 + 0.04 * crumb)
    albedo = albedo * (1 - 0.45 * docking)
    return _on_table(n, rng, (0.86, 0.87, 0.88), _shade(albedo, height), _cover(inside))


def _circuit(n: int, rng: Generator) -> tuple[Array, Array]:
    design = np.random.default_rng(11)  # one board design: all boards have the same tracks and parts
    board = np.empty((n, n, 3), np.float32)
    board[:] = _tint(rng, (0.06, 0.36, 0.20)).ravel()
    height: Array = np.zeros((n, n), np.float32)
    gold, solder, black = (
        _tint(rng, c).ravel().tolist() for c in ((0.83, 0.68, 0.36), (0.74, 0.75, 0.76), (0.13, 0.13, 0.14))
    )

    def at(*point: float) -> list[int]:
        return [round(c * n) for c in point]

    def part(x: float, y: float, w: float, h: float, colour: Sequence[float], rise: float) -> None:
        for canvas, value in ((board, colour), (height, rise)):
            cv2.rectangle(canvas, at(x - w / 2, y - h / 2), at(x + w / 2, y + h / 2), value, -1)

    for _ in range(34):
        (x, y), (run, bend) = design.integers(4, 29, 2) / 32, design.integers((3, 1), (9, 4)) / 32
        right, down = design.choice([-1, 1], 2)
        corners = ((x, y), (x + right * run, y), (x + right * (run + bend), y + down * bend))
        points = np.array([at(*corner) for corner in corners], np.int32).clip(round(0.13 * n), round(0.87 * n))
        cv2.polylines(board, [points], False, [0.14, 0.52, 0.30], round(0.009 * n), cv2.LINE_AA)
        for end in (points[0], points[-1]):
            cv2.circle(board, end.tolist(), round(0.013 * n), gold, -1, cv2.LINE_AA)
            cv2.circle(board, end.tolist(), round(0.006 * n), [0.05, 0.08, 0.06], -1, cv2.LINE_AA)
    for x, y, w, h, pins in ((0.34, 0.36, 0.20, 0.20, 7), (0.68, 0.68, 0.15, 0.22, 8), (0.70, 0.30, 0.13, 0.12, 4)):
        for pin in range(pins):
            part(x, y + h * ((pin + 0.5) / pins - 0.5), w + 0.06, h / pins * 0.45, solder, 0.006)
        part(x, y, w, h, black, 0.02)
        cv2.circle(board, at(x - w * 0.35, y - h * 0.38), round(0.01 * n), [0.4, 0.4, 0.4], -1, cv2.LINE_AA)
    for index in range(6):
        x, y = 0.22 + 0.075 * index, 0.80 - 0.09 * (index % 2)
        part(x, y, 0.034, 0.066, solder, 0.008)
        part(x, y, 0.034, 0.036, ((0.62, 0.48, 0.32), (0.1, 0.1, 0.11))[index % 2], 0.011)
    for x, y in ((0.22, 0.58), (0.36, 0.58)):
        cv2.circle(board, at(x, y), round(0.05 * n), solder, -1, cv2.LINE_AA)
        cv2.ellipse(board, at(x, y), at(0.05, 0.05), 0, 120, 240, [0.12, 0.12, 0.16], -1, cv2.LINE_AA)
        cv2.circle(height, at(x, y), round(0.05 * n), 0.03, -1, cv2.LINE_AA)
    x, y = _pose(n, rng, turn=0.0, shift=0.0, zoom=0.0)
    drilled = np.hypot(np.abs(x) - 0.35, np.abs(y) - 0.35)
    planes = _mix(board.transpose(2, 0, 1), _rgb(gold), _cover(drilled - 0.032))
    coverage = _cover(np.maximum(_box(x, y, 0.41, 0.41, 0.03), 0.018 - drilled))
    turn = np.asarray(cv2.getRotationMatrix2D((n / 2, n / 2), rng.uniform(-9, 9), rng.uniform(0.96, 1.03)), float)
    turn[:, 2] += rng.uniform(-0.03, 0.03, 2) * n
    *colours, height, coverage = (cv2.warpAffine(plane, turn, (n, n)) for plane in (*planes, height, coverage))
    return _on_table(n, rng, (0.80, 0.80, 0.78), _shade(np.stack(colours), _blur(height, 0.003), 0.12, 40), coverage)


def _capsule(n: int, rng: Generator) -> tuple[Array, Array]:
    x, y = _pose(n, rng, turn=0.7, shift=0.04)
    cap = _smooth((x - 0.03) / 0.006)
    axis = np.hypot(np.maximum(np.abs(x) - 0.25, 0), y)
    radius = 0.155 + 0.009 * cap
    height = np.sqrt(np.clip(radius**2 - axis**2, 0, None))
    red, ivory = _tint(rng, (0.78, 0.16, 0.13)), _tint(rng, (0.86, 0.81, 0.68))
    albedo = _mix(ivory, red, cap) * (1 + 0.02 * _noise(n, rng, 6))
    ring = np.exp(-(((x - 0.075) / 0.006) ** 2))  # the groove that locks the two halves
    shaded = _shade(albedo, height * 0.85 - 0.004 * ring, 0.7, 60)
    return _on_table(n, rng, (0.47, 0.55, 0.60), shaded, _cover(axis - radius))


def _bottle(n: int, rng: Generator) -> tuple[Array, Array]:
    x, y = _pose(n, rng, turn=np.pi)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    at = [0.0, 0.135, 0.15, 0.165, 0.19, 0.2, 0.215, 0.235, 0.25, 0.34, 0.41, 0.44]
    height, glass = (
        np.interp(radius, at, profile).astype(np.float32)
        for profile in (
            [0.0, 0.0, 0.17, 0.18, 0.175, 0.13, 0.13, 0.14, 0.115, 0.1, 0.05, 0.0],
            [0.16, 0.2, 1.2, 1.5, 1.3, 0.7, 0.9, 1.3, 0.8, 1.0, 0.75, 0.5],
        )
    )
    albedo = _tint(rng, (0.16, 0.42, 0.24)) * (glass * (1 + 0.02 * _noise(n, rng, 6)))
    glint = np.clip(np.cos(2 * angle + rng.uniform(0, 6)), 0, 1) ** 6 * np.exp(-(((radius - 0.31) / 0.025) ** 2))
    shaded = _shade(albedo, _blur(height, 0.006), 0.55, 30) + 0.25 * glint
    image, coverage = _on_table(n, rng, (0.84, 0.85, 0.83), shaded, _cover(radius - 0.44))
    return image, coverage * _cover(0.145 - radius)  # there is nothing in the opening that could have a defect


def _toothbrush(n: int, rng: Generator) -> tuple[Array, Array]:
    x, y = _pose(n, rng, turn=0.14, shift=0.04)
    neck = 0.05 + 0.05 * _smooth((y - 0.25) / 0.25)
    inside = np.minimum(_box(x, y + 0.1, 0.16, 0.32, 0.13), np.maximum(np.abs(x) - neck, 0.1 - y))
    plastic = _tint(rng, (0.12, 0.50, 0.62))
    body = _shade(plastic, 0.05 * np.sqrt(np.clip(-inside / 0.06, 0, 1)), 0.5, 40)
    row, column = np.clip(np.rint((y + 0.1) / 0.058), -4, 4), np.clip(np.rint(x / 0.062 + 0.5), -1, 2) - 0.5
    tuft = np.hypot(x - 0.062 * column, y + 0.1 - 0.058 * row) - 0.027
    tip = _shade(
        np.where(row % 3 == 0, _tint(rng, (0.25, 0.45, 0.85)), _tint(rng, (0.93, 0.93, 0.9))),
        0.03 * _smooth(-tuft / 0.02) + 0.0035 * _noise(n, rng, 110, 2),
    )
    shadow = _blur(_shift(_cover(tuft), 0.011), 0.006)
    body = _mix(body * (1 - 0.55 * shadow), tip, _cover(tuft))
    return _on_table(n, rng, (0.87, 0.84, 0.80), body, _cover(inside))


# --- defects ----------------------------------------------------------------------------------------------------------


def _tidy(mask: Mask) -> Mask:
    """Returns the mask without specks and pinholes."""
    n = mask.shape[0]
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    for value, least in ((0, n * n // 1500), (1, 2)):
        _, labels, stats, _ = cv2.connectedComponentsWithStats((closed == value).astype(np.uint8), connectivity=4)
        small = stats[:, cv2.CC_STAT_AREA] <= least
        small[0] = False  # label 0 is the pixels of the other value
        closed[small[labels]] = 1 - value
    return closed.astype(bool)


def _somewhere(foreground: Mask, rng: Generator, margin: float) -> Array:
    """Returns a point x, y on the product, in pixels, at least `margin` inside its border if possible."""
    depth = cv2.distanceTransform(np.pad(foreground, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    rows, columns = np.nonzero(depth >= min(margin * len(foreground), 0.7 * depth.max()))
    pick = rng.integers(len(rows))
    return np.array([columns[pick], rows[pick]], np.float32)


def _blob(n: int, rng: Generator, centre: Array, radius: float, edge: float, rough: float = 0.35) -> Array:
    """Returns an irregular spot `[n, n]`, 1 inside and 0 outside, that fades over the share `edge` of its radius."""
    axis = np.arange(n, dtype=np.float32)
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.5)
    dx, dy = np.meshgrid(axis - centre[0], axis - centre[1])
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    distance = np.hypot(along / stretch, across * stretch) / (radius * n)
    distance = distance * (1 + rough * _noise(n, rng, min(0.8 / radius, n / 4), 3))
    return _smooth((1 - distance) / edge + 0.5)


def _line(n: int, rng: Generator, heading: float, length: float, bend: float, jag: float, steps: int) -> Array:
    """Returns points `[steps + 1, 2]`, in pixels, of a line from the origin; it curves (`bend`) and zigzags (`jag`)."""
    headings = heading + np.cumsum(rng.normal(0, bend, steps)) + rng.normal(0, jag, steps)
    moves = np.stack([np.cos(headings), np.sin(headings)], 1) * length * n / steps
    return np.concatenate([np.zeros((1, 2)), np.cumsum(moves, 0)]).astype(np.float32)


def _stroke(n: int, points: Array, widths: Array) -> Array:
    """Returns the coverage `[n, n]` of a line whose segments have these widths, in pixels."""
    fine = 4
    canvas = np.zeros((n * fine, n * fine), np.uint8)
    corners = np.rint(points * fine).astype(int).tolist()
    for first, second, width in zip(corners, corners[1:], widths, strict=False):
        cv2.line(canvas, first, second, 255, max(1, round(float(width) * fine)))
    return cv2.resize(canvas, (n, n), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _contrast(image: Array, alpha: Array) -> float:
    """Returns 1 if the surface under `alpha` is dark, so that a flaw on it looks light, else -1."""
    return 1.0 if (image.mean(0) * alpha).sum() < 0.5 * alpha.sum() else -1.0


def _scratch(image: Array, foreground: Mask, rng: Generator, strength: float) -> Array:
    n = image.shape[-1]
    heading = rng.uniform(0, np.pi)
    for _ in range(rng.integers(1, 4)):
        length, width = rng.uniform(0.15, 0.25 + 0.3 * strength), n * rng.uniform(0.005, 0.006 + 0.005 * strength)
        points = _line(n, rng, heading + rng.normal(0, 0.15), length, bend=0.03, jag=0.0, steps=14)
        points += _somewhere(foreground, rng, 0.04) - points[7]
        line = _stroke(n, points, width * np.sin(np.linspace(0.3, np.pi - 0.2, 14)))
        lip = _shift(line, 0.004) * (1 - line)  # the raised side of the groove, on the other side of the light
        depth = (0.12 + 0.38 * strength) * _contrast(image, line * foreground)
        image = image + line * depth - lip * depth * 0.5
    return image


def _crack(image: Array, foreground: Mask, rng: Generator, strength: float) -> Array:
    n = image.shape[-1]
    heading, width = rng.uniform(0, 2 * np.pi), n * (0.005 + 0.009 * strength)
    trunk = _line(n, rng, heading, rng.uniform(0.2, 0.3 + 0.3 * strength), bend=0.12, jag=0.5, steps=18)
    trunk += _somewhere(foreground, rng, 0.03) - trunk[9]
    gap = _stroke(n, trunk, width * np.linspace(1, 0.35, 18))
    for _ in range(rng.integers(1, 4)):
        side = heading + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
        branch = _line(n, rng, side, rng.uniform(0.06, 0.16), bend=0.12, jag=0.5, steps=8)
        gap = np.maximum(gap, _stroke(n, branch + trunk[rng.integers(3, 14)], width * np.linspace(0.6, 0.25, 8)))
    lit = _shift(gap, 0.004) * (1 - gap)
    cracked: Array = image * (1 - (0.35 + 0.55 * strength) * gap) + (0.05 + 0.1 * strength) * lit
    return cracked


def _stain(image: Array, foreground: Mask, rng: Generator, strength: float) -> Array:
    n, radius = image.shape[-1], rng.uniform(0.04, 0.07 + 0.07 * strength)
    spot = _blob(n, rng, _somewhere(foreground, rng, 0.5 * radius), radius, 0.25)
    dried = spot * (0.7 + 0.5 * (1 - np.abs(2 * spot - 1))) * (1 + 0.15 * _noise(n, rng, 12, 3))  # darkest at the rim
    dyes = ((0.45, 0.68, 0.90), (0.75, 0.72, 0.35), (0.62, 0.68, 0.66))  # what coffee, ink and oil take away
    dye = _rgb(dyes[rng.integers(3)])
    stained: Array = image * (1 - (0.18 + 0.72 * strength) * dye * dried.clip(0, 1.2))
    return stained


def _hole(image: Array, foreground: Mask, rng: Generator, strength: float) -> Array:
    n, radius = image.shape[-1], 0.022 + 0.05 * strength * rng.uniform(0.6, 1)
    spot = _blob(n, rng, _somewhere(foreground, rng, 1.5 * radius), radius, 0.25, 0.25)
    diffuse, _ = _relief(-0.02 * _blur(spot, 0.008))
    depth = _rgb([0.07, 0.065, 0.06]) * (1 + 0.3 * _noise(n, rng, 20, 2))
    return _mix(image * diffuse, depth, spot * (0.6 + 0.4 * strength))


def _dent(image: Array, foreground: Mask, rng: Generator, strength: float) -> Array:
    n, radius = image.shape[-1], rng.uniform(0.05, 0.07 + 0.05 * strength)
    spot = _blob(n, rng, _somewhere(foreground, rng, radius), radius, 1.0, 0.1)
    diffuse, highlight = _relief((-0.12 - 0.3 * strength) * radius * _blur(spot, radius / 5))
    light = diffuse * (1 - (0.04 + 0.08 * strength) * spot)  # less of it reaches the bottom
    dented: Array = image * light + 0.3 * np.clip(highlight**12 - _HALFWAY[2] ** 12, 0, 1)
    return dented


def _fibre(image: Array, foreground: Mask, rng: Generator, strength: float) -> Array:
    n = image.shape[-1]
    points = _line(n, rng, rng.uniform(0, 6.3), rng.uniform(0.2, 0.3 + 0.35 * strength), bend=0.3, jag=0.0, steps=30)
    points += _somewhere(foreground, rng, 0.08) - points[15]
    thread = _stroke(n, points, np.full(30, n * (0.005 + 0.006 * strength)))
    colours: dict[float, tuple[Colour, ...]] = {
        1.0: ((0.95, 0.93, 0.88), (0.90, 0.75, 0.25), (0.85, 0.35, 0.30)),
        -1.0: ((0.08, 0.08, 0.10), (0.35, 0.12, 0.10), (0.10, 0.15, 0.40)),
    }
    colour = _rgb(colours[_contrast(image, thread)][rng.integers(3)])
    shadow = _blur(_shift(thread, 0.012), 0.005)
    return _mix(image * (1 - 0.3 * shadow), colour, thread * (0.4 + 0.6 * strength))


def _specks(image: Array, foreground: Mask, rng: Generator, strength: float) -> Array:
    n = image.shape[-1]
    centre = _somewhere(foreground, rng, 0.1)
    colours: tuple[Colour, ...] = ((0.10, 0.09, 0.08), (0.90, 0.89, 0.86), (0.42, 0.28, 0.16))
    colour = _rgb(colours[rng.integers(3)])
    spots = np.zeros((n, n), np.float32)
    for _ in range(rng.integers(4, 9 + round(8 * strength))):
        point, radius = centre + rng.normal(0, 0.06 * n, 2), rng.uniform(0.008, 0.012 + 0.014 * strength)
        spots = np.maximum(spots, _blob(n, rng, point, radius, 0.4))
    diffuse, _ = _relief(0.012 * spots)
    return _mix(image, colour * diffuse, spots * (0.35 + 0.6 * strength))


def _colour(image: Array, foreground: Mask, rng: Generator, strength: float) -> Array:
    n, radius = image.shape[-1], rng.uniform(0.06, 0.09 + 0.07 * strength)
    spot = _blob(n, rng, _somewhere(foreground, rng, 0.6 * radius), radius, 0.5)
    dyes = ((0.95, 0.45, 0.20), (0.30, 0.75, 0.35), (0.35, 0.45, 0.95), (0.95, 0.90, 0.55), (0.75, 0.35, 0.75))
    dyed = image.mean(0) * _rgb(dyes[rng.integers(5)]) * 1.7
    return _mix(image, dyed, spot * (0.15 + 0.7 * strength))


def _chip(image: Array, foreground: Mask, rng: Generator, strength: float) -> Array:
    n, radius = image.shape[-1], 0.035 + 0.07 * strength * rng.uniform(0.6, 1)
    contours, _ = cv2.findContours(foreground.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    border = max(contours, key=len)[:, 0].astype(np.float32)
    centre = border[rng.integers(len(border))]
    beyond_shadow = cv2.erode((~foreground).astype(np.uint8), np.ones((n // 24 + 2,) * 2, np.uint8))
    far = beyond_shadow.astype(np.float32)
    table = np.stack([_blur(plane, 0.08) for plane in image * far]) / (_blur(far, 0.08) + 1e-6)
    lost = _blob(n, rng, centre, radius, 0.15, 0.2)
    solid = _blur(foreground.astype(np.float32), 0.003)
    shadow = _blur(_shift(solid * (1 - lost), 0.015), 0.014)
    fracture = _blob(n, rng, centre, radius * 1.15, 0.3, 0.2) * solid
    broken = image * 0.6 + 0.1 * _noise(n, rng, 40, 2)
    return _mix(_mix(image, broken, fracture * 0.8), table * (1 - 0.5 * shadow), lost)


def _warp(image: Array, foreground: Mask, rng: Generator, strength: float) -> Array:
    n, radius = image.shape[-1], rng.uniform(0.07, 0.1 + 0.06 * strength)
    centre = _somewhere(foreground, rng, 0.05)
    axis = np.arange(n, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    fade = _smooth(1 - np.hypot(x - centre[0], y - centre[1]) / (1.5 * radius * n)).astype(np.float32)
    heading, push = rng.uniform(0, 2 * np.pi), n * radius * (0.15 + 0.45 * strength)
    shift_x, shift_y = np.float32(push * np.cos(heading)), np.float32(push * np.sin(heading))
    x, y = x - fade * shift_x, y - fade * shift_y
    return np.stack([cv2.remap(plane, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT) for plane in image])


_OVERHANGING = frozenset({"chip", "fibre", "warp"})  # kinds that can change the picture beside the product

DEFECTS: dict[str, Callable[[Array, Mask, Generator, float], Array]] = {
    "scratch": _scratch,
    "crack": _crack,
    "stain": _stain,
    "hole": _hole,
    "dent": _dent,
    "fibre": _fibre,
    "specks": _specks,
    "colour": _colour,
    "chip": _chip,
    "warp": _warp,
}

CATEGORIES: dict[str, Product] = {
    "cloth": Product(_cloth, ("hole", "stain", "fibre", "warp", "colour"), texture=True),
    "wood": Product(_wood, ("scratch", "crack", "hole", "stain", "colour"), texture=True),
    "terrazzo": Product(_terrazzo, ("crack", "stain", "scratch", "fibre", "hole"), texture=True),
    "gear": Product(_gear, ("chip", "scratch", "stain", "crack", "specks"), texture=False),
    "biscuit": Product(_biscuit, ("chip", "crack", "stain", "hole", "fibre"), texture=False),
    "circuit_board": Product(_circuit, ("scratch", "stain", "specks", "chip", "fibre", "colour"), texture=False),
    "metal": Product(_metal, ("scratch", "dent", "stain", "specks"), texture=True),
    "mesh": Product(_mesh, ("warp", "hole", "fibre", "colour", "specks"), texture=True),
    "leather": Product(_leather, ("scratch", "hole", "dent", "stain", "colour"), texture=True),
    "capsule": Product(_capsule, ("dent", "crack", "scratch", "stain", "specks"), texture=False),
    "bottle": Product(_bottle, ("chip", "crack", "specks", "stain"), texture=False),
    "toothbrush": Product(_toothbrush, ("warp", "stain", "fibre", "colour", "specks"), texture=False),
}
