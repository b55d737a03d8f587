"""Draws pairs of pictures, flawless and defective, with exact masks and captions, from random numbers alone.

A scene is formula-driven: a texture or an object from one of `FAMILIES`, in random colours, lighting and pose. A defect
of one of `KINDS` changes it, and the same camera sees both, so that the twins are identical outside the mask.

Images are `[n, n, 3]`, float32, RGB in [0, 1] until the camera; coordinates run over [-1, 1] before the pose.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[Any]

VERSION = 2
VISIBLE = 7  # least change of any channel, in grey levels, that counts as a difference
AREA = (0.0008, 0.16)  # least and greatest share of the picture that a defect covers

COLOURS: dict[str, tuple[float, float, float]] = {
    "black": (0.08, 0.08, 0.09), "white": (0.92, 0.92, 0.9), "grey": (0.5, 0.5, 0.5), "red": (0.75, 0.14, 0.14),
    "green": (0.2, 0.58, 0.24), "blue": (0.16, 0.3, 0.72), "yellow": (0.88, 0.78, 0.2), "orange": (0.88, 0.5, 0.14),
    "brown": (0.42, 0.28, 0.17), "purple": (0.48, 0.24, 0.62), "pink": (0.9, 0.58, 0.68), "beige": (0.8, 0.72, 0.58),
    "cyan": (0.25, 0.7, 0.74), "olive": (0.42, 0.44, 0.2),
}  # fmt: skip
COLOUR_NAMES = tuple(COLOURS)


@dataclass(frozen=True)
class Scene:
    """A flawless picture before the camera.

    Attributes:
        image: `[n, n, 3]`.
        behind: `[n, n, 3]`, what is seen where the object is missing.
        coverage: `[n, n]` in [0, 1], the object's share of each pixel; 1 everywhere for a texture.
        colour: Index into `COLOUR_NAMES`.
    """

    image: Array
    behind: Array
    coverage: Array
    colour: int


@dataclass(frozen=True)
class Pair:
    """A flawless picture and its defective twin.

    Attributes:
        normal: `[n, n, 3]`, uint8, RGB.
        defective: The same with a defect.
        mask: `[n, n]`, bool, true where the twins differ.
        family: Index into `FAMILY_NAMES`.
        colour: Index into `COLOUR_NAMES`.
        kind: Index into `KIND_NAMES`.
    """

    normal: Array
    defective: Array
    mask: Array
    family: int
    colour: int
    kind: int


def draw_pair(seed: int, index: int, families: Sequence[str], size: int = 112) -> Pair:
    """Returns pair number `index` of a seed: the same arguments give the same bytes.

    Args:
        seed: Seed of the whole series.
        index: Number of the pair; its family is `families[index % len(families)]`.
        families: Names from `FAMILIES`.
        size: Side in pixels.
    """
    family = families[index % len(families)]
    for attempt in range(100):
        scene_rng, defect_rng, camera_rng = (
            np.random.default_rng(s) for s in np.random.SeedSequence([seed, index, attempt]).spawn(3)
        )
        scene = draw_scene(family, scene_rng, size)
        scene = replace(scene, image=np.clip(scene.image, 0, 1))  # or highlights would count as a difference
        kind = int(defect_rng.integers(len(KIND_NAMES)))
        changed = np.clip(KINDS[KIND_NAMES[kind]].draw(scene, defect_rng), 0, 1)
        state = camera_rng.bit_generator.state
        normal = _camera(scene.image, camera_rng)
        camera_rng.bit_generator.state = state
        defective = _camera(changed, camera_rng)
        difference = np.abs(normal.astype(np.int16) - defective).max(2)
        mask = cv2.medianBlur((difference >= VISIBLE).astype(np.uint8), 3)
        mask = mask if mask.sum() >= 6 else (difference >= VISIBLE).astype(np.uint8)
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)).astype(bool)
        enough = np.sort(difference[mask])[-8:].mean() if mask.sum() >= 8 else 0
        if AREA[0] <= mask.mean() <= AREA[1] and enough >= 20:
            break
    return Pair(
        normal, np.where(mask[..., None], defective, normal), mask, FAMILY_NAMES.index(family), scene.colour, kind
    )


def draw_scene(family: str, rng: Generator, size: int) -> Scene:
    """Returns a flawless scene of a family."""
    if family in TEXTURES:
        image, colour = _surface(family, rng, size, strength=rng.uniform(0.4, 1.0))
        image = _light(image, rng)
        behind = np.broadcast_to((image.mean((0, 1)) * rng.uniform(0.05, 0.5)).astype(np.float32), image.shape)
        return Scene(image, behind, np.ones((size, size), np.float32), colour)
    return _object_scene(family, rng, size)


# ---------------------------------------------------------------------------------------------------------- noise


def _fbm(rng: Generator, n: int, cells: float, octaves: int = 4, gain: float = 0.5, stretch: float = 1.0) -> Array:
    """Returns fractal value noise `[n, n]` in about [0, 1]; `stretch` lengthens it along x."""
    total, weight, amount = np.zeros((n, n), np.float32), 1.0, 0.0
    for octave in range(octaves):
        rows = min(max(2, round(cells * 2**octave)), n)
        columns = min(max(2, round(cells * 2**octave / stretch)), n)
        grid = rng.random((rows + 1, columns + 1), np.float32)
        total += weight * cv2.resize(grid, (n, n), interpolation=cv2.INTER_CUBIC)
        amount += weight
        weight *= gain
    return total / amount


def _coordinates(rng: Generator, n: int, turn: float = np.pi, shift: float = 1.0) -> tuple[Array, Array]:
    """Returns u, v `[n, n]` after a random rotation, shift and a mild perspective."""
    axis = np.linspace(-1, 1, n, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    if rng.random() < 0.3:
        tilt = rng.uniform(-0.15, 0.15, 2)
        w = 1 + tilt[0] * x + tilt[1] * y
        x, y = x / w, y / w
    angle = rng.uniform(-turn, turn) if rng.random() < 0.6 else rng.integers(4) * np.pi / 2 + rng.normal(0, 0.03)
    dx, dy = rng.uniform(-shift, shift, 2)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * x - s * y + np.float32(dx), s * x + c * y + np.float32(dy)


def _step(t: Array, soft: float) -> Array:
    """Returns a smooth step of `t` through 0, `soft` wide."""
    return np.clip(t / soft + 0.5, 0, 1)


def _worley(u: Array, v: Array, rng: Generator, jitter: float) -> tuple[Array, Array, Array]:
    """Returns distances to the nearest and second nearest of one point per unit cell, and the cell's random value."""
    table = rng.random((3, 64, 64), np.float32)
    first, second = np.full_like(u, 9), np.full_like(u, 9)
    value = np.zeros_like(u)
    iu, iv = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    for du in (-1, 0, 1):
        for dv in (-1, 0, 1):
            a, b = (iu + du) & 63, (iv + dv) & 63
            x = iu + du + 0.5 + jitter * (table[0, a, b] - 0.5) - u
            y = iv + dv + 0.5 + jitter * (table[1, a, b] - 0.5) - v
            d = np.sqrt(x * x + y * y)
            nearer = d < first
            second = np.where(nearer, first, np.minimum(second, d))
            value = np.where(nearer, table[2, a, b], value)
            first = np.where(nearer, d, first)
    return first, second, value


def _per_cell(i: Array, j: Array, rng: Generator) -> Array:
    """Returns a random value in [0, 1] for every integer cell."""
    table = rng.random((64, 64), np.float32)
    return table[i.astype(np.int32) & 63, j.astype(np.int32) & 63]


# ------------------------------------------------------------------------------------------------------- textures
# Each returns a pattern `[n, n]` in about [0, 1], of which colour and relief are made.


def _plain(u: Array, v: Array, rng: Generator) -> Array:
    return 0.5 + rng.uniform(0.0, 0.3) * (_fbm(rng, len(u), rng.uniform(8, 50), 2) - 0.5)


def _clouds(u: Array, v: Array, rng: Generator) -> Array:
    return _fbm(rng, len(u), rng.uniform(2, 24), 5, rng.uniform(0.4, 0.8))


def _marble(u: Array, v: Array, rng: Generator) -> Array:
    turbulence = _fbm(rng, len(u), rng.uniform(1.5, 5), 5)
    return (0.5 + 0.5 * np.sin(rng.uniform(3, 12) * u + rng.uniform(5, 16) * turbulence)) ** rng.uniform(0.4, 3)


def _plasma(u: Array, v: Array, rng: Generator) -> Array:
    total = np.zeros_like(u)
    for _ in range(5):
        fu, fv = rng.normal(0, 6, 2)
        total += np.sin(fu * u + fv * v + rng.uniform(0, 6.3), dtype=np.float32)
    return 0.5 + total / 7


def _pebbles(u: Array, v: Array, rng: Generator) -> Array:
    scale = rng.uniform(3, 14)
    first, second, value = _worley(u * scale, v * scale, rng, rng.uniform(0.3, 1))
    if rng.random() < 0.5:
        return np.clip((second - first) * rng.uniform(1.5, 4), 0, 1) * (0.6 + 0.4 * value)
    return np.clip(1 - first, 0, 1) * (0.7 + 0.3 * value)


def _streaks(u: Array, v: Array, rng: Generator) -> Array:
    n, angle = len(u), rng.uniform(0, 180)
    noise = _fbm(rng, 2 * n, rng.uniform(20, 100), 2, 0.6, stretch=rng.uniform(4, 40))
    turn = cv2.getRotationMatrix2D((float(n), float(n)), angle, 1.0)
    turned = cv2.warpAffine(noise, turn, (2 * n, 2 * n), borderMode=cv2.BORDER_REFLECT)
    return turned[n // 2 : n // 2 + n, n // 2 : n // 2 + n]


def _stripes(u: Array, v: Array, rng: Generator) -> Array:
    f = rng.uniform(2, 14)
    wave = np.sin(np.pi * f * u)
    if rng.random() < 0.4:
        wave = 0.6 * wave + 0.4 * np.sin(np.pi * f * rng.choice([0.25, 0.5, 2, 3]) * u + 1)
    return _step(wave + rng.uniform(-0.6, 0.6), rng.uniform(0.3, 2)) if rng.random() < 0.7 else 0.5 + 0.5 * wave


def _checker(u: Array, v: Array, rng: Generator) -> Array:
    f, g = rng.uniform(1.5, 9), rng.uniform(0.6, 1.6)
    return _step(np.sin(np.pi * f * u) * np.sin(np.pi * f * g * v), rng.uniform(0.1, 0.8))


def _dots(u: Array, v: Array, rng: Generator) -> Array:
    f = rng.uniform(2, 9)
    a, b = u * f, v * f
    if rng.random() < 0.5:
        b = b * 1.155
        a = a + 0.5 * (np.floor(b) % 2)
    d = np.hypot(a - np.floor(a) - 0.5, b - np.floor(b) - 0.5)
    r = rng.uniform(0.15, 0.45)
    dot = _step(r - d, 0.06 + 0.02 * f)
    return dot * np.sqrt(np.clip(1 - (d / r) ** 2, 0, 1)) if rng.random() < 0.4 else dot


def _bricks(u: Array, v: Array, rng: Generator) -> Array:
    f, ratio = rng.uniform(2, 7), rng.uniform(1.3, 3)
    j = np.floor(v * f)
    a = u * f / ratio + 0.5 * (j % 2)
    edge = np.minimum(np.abs(a - np.round(a)) * ratio, np.abs(v * f - np.round(v * f)))
    wide = rng.uniform(0.03, 0.1)
    return _step(edge - wide, 0.05 + 0.02 * f) * (0.65 + 0.35 * _per_cell(np.floor(a), j, rng))


def _tiles(u: Array, v: Array, rng: Generator) -> Array:
    f = rng.uniform(1.2, 6)
    edge = np.minimum(np.abs(u * f - np.round(u * f)), np.abs(v * f - np.round(v * f)))
    vary = rng.uniform(0, 0.4)
    tile = _step(edge - rng.uniform(0.02, 0.08), 0.03 + 0.02 * f)
    return tile * (1 - vary + vary * _per_cell(np.floor(u * f), np.floor(v * f), rng))


def _rings(u: Array, v: Array, rng: Generator) -> Array:
    r = np.hypot(u * 1.0, v * rng.uniform(0.7, 1.3))
    return _step(np.sin(np.pi * rng.uniform(3, 14) * r) + rng.uniform(-0.4, 0.4), rng.uniform(0.4, 2.5))


def _waves(u: Array, v: Array, rng: Generator) -> Array:
    f, g = rng.uniform(3, 10), rng.uniform(2, 10)
    bend = np.sin(np.pi * g * v)
    bend = np.arcsin(bend) if rng.random() < 0.5 else bend
    return _step(np.sin(np.pi * f * u + rng.uniform(0.3, 2) * bend), rng.uniform(0.4, 2.2))


def _grid(u: Array, v: Array, rng: Generator) -> Array:
    f = rng.uniform(3, 12)
    wide, soft = rng.uniform(0.1, 0.3), 0.08 + 0.02 * f
    a, b = np.abs(u * f - np.round(u * f)), np.abs(v * f * rng.uniform(0.6, 1.4) % 1 - 0.5)
    return np.maximum(_step(wide - a, soft), _step(wide - b, soft))


def _honeycomb(u: Array, v: Array, rng: Generator) -> Array:
    f = rng.uniform(3, 9)
    b = v * f / 0.866
    first, second, _ = _worley(u * f + 0.5 * (np.floor(b) % 2), b, rng, 0.0)
    # a row's neighbours are shifted by half a cell: compare with both
    other, _, _ = _worley(u * f + 0.5 * (np.floor(b) % 2) + 0.5, b, rng, 0.0)
    return _step(np.minimum(second - first, np.abs(other - first) + 0.1) - rng.uniform(0.1, 0.25), 0.2)


def _grains(u: Array, v: Array, rng: Generator) -> Array:
    scale, t = rng.uniform(4, 16), np.zeros_like(u)
    for level in range(3):
        first, _, value = _worley(u * scale * 1.6**level + 7 * level, v * scale * 1.6**level, rng, 1.0)
        t = np.where(first < 0.15 + 0.3 * value, value, t)
    return t


def _maze(u: Array, v: Array, rng: Generator) -> Array:
    f = rng.uniform(2, 8)
    i, j = np.floor(u * f), np.floor(v * f)
    a, b = u * f - i, v * f - j
    a = np.where(_per_cell(i, j, rng) < 0.5, a, 1 - a)
    arc = np.minimum(np.abs(np.hypot(a, b) - 0.5), np.abs(np.hypot(1 - a, 1 - b) - 0.5))
    return _step(rng.uniform(0.08, 0.2) - arc, 0.05 + 0.02 * f)


def _quilt(u: Array, v: Array, rng: Generator) -> Array:
    f = rng.uniform(2, 9)
    return np.abs(np.sin(np.pi * f * u) * np.sin(np.pi * f * v)) ** rng.uniform(0.3, 1.5)


def _gabor(u: Array, v: Array, rng: Generator) -> Array:
    f, spread = rng.uniform(8, 26), rng.uniform(0.5, 3)
    angle = 2 * spread * (_fbm(rng, len(u), rng.uniform(1, 4), 2) - 0.5)
    return 0.5 + 0.5 * np.sin(f * (np.cos(angle) * u + np.sin(angle) * v)) * _fbm(rng, len(u), 6, 3)


def _pinwheel(u: Array, v: Array, rng: Generator) -> Array:
    u, v = 0.4 * u, 0.4 * v
    return _step(np.sin(rng.integers(3, 14) * np.arctan2(v, u) + rng.uniform(-8, 8) * np.hypot(u, v)), 0.6)


def _keys(u: Array, v: Array, rng: Generator) -> Array:
    f = rng.uniform(1.5, 5)
    i, j = np.floor(u * f), np.floor(v * f)
    a, b = (u * f - i) * 2 - 1, (v * f - j) * 2 - 1
    key = _step(0.72 - np.maximum(np.abs(a), np.abs(b)), 0.08 + 0.03 * f)
    bars = _per_cell(i, j, rng)
    mark = _step(0.12 - np.abs(np.where(bars < 0.5, a, b) - (bars % 0.5 - 0.25)), 0.2) * _step(
        0.45 - np.hypot(a, b), 0.2
    )
    return key * (0.7 - 0.5 * mark)


def _mosaic(u: Array, v: Array, rng: Generator) -> Array:
    """Fields of two patterns, divided by cells, bands or one straight seam."""
    choice, f = rng.random(), rng.uniform(0.6, 2)
    if choice < 0.4:
        where = _worley(u * f + 20, v * f + 20, rng, 1.0)[2] < 0.5
    elif choice < 0.7:
        where = np.sin(np.pi * f * u) > rng.uniform(-0.5, 0.5)
    else:
        where = u > rng.uniform(-0.3, 0.3)
    first, second = (TEXTURES[str(name)](u, v, rng) for name in rng.choice(FIELDS, 2))
    level = rng.uniform(0.3, 1)
    return np.where(where, first, level * second + rng.uniform(0, 1 - level))


FIELDS = ("plain", "clouds", "streaks", "stripes", "dots", "checker", "grains", "grid", "quilt", "pebbles", "waves")

Texture = Callable[[Array, Array, Generator], Array]
TEXTURES: dict[str, Texture] = {
    "plain": _plain, "clouds": _clouds, "marble": _marble, "plasma": _plasma, "pebbles": _pebbles,
    "streaks": _streaks, "stripes": _stripes, "checker": _checker, "dots": _dots, "bricks": _bricks, "tiles": _tiles,
    "rings": _rings, "waves": _waves, "grid": _grid, "honeycomb": _honeycomb, "grains": _grains, "maze": _maze,
    "quilt": _quilt, "gabor": _gabor, "pinwheel": _pinwheel, "keys": _keys,
    "mosaic": _mosaic,
}  # fmt: skip


def _colour(rng: Generator) -> tuple[Array, int]:
    index = int(rng.integers(len(COLOUR_NAMES)))
    colour = np.clip(np.array(COLOURS[COLOUR_NAMES[index]]) + rng.normal(0, 0.05, 3), 0.03, 0.97)
    return colour.astype(np.float32), index


def _relief(height: Array, rng: Generator, depth: float) -> tuple[Array, Array]:
    """Returns diffuse light around 1 and highlight in [0, 1] of a height map under a random lamp."""
    dx = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3) * np.float32(depth)
    dy = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3) * np.float32(depth)
    angle, up = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.5)
    lamp = np.array([np.cos(angle), np.sin(angle), up]) / np.hypot(1, up)
    norm = 1 / np.sqrt(dx * dx + dy * dy + 1)
    diffuse = np.clip((-dx * lamp[0] - dy * lamp[1] + lamp[2]) * norm, 0, None)
    half = lamp + np.array([0, 0, 1])
    half /= np.linalg.norm(half)
    shine = np.clip((-dx * half[0] - dy * half[1] + half[2]) * norm, 0, 1) ** rng.uniform(8, 60)
    flat = half[2] ** 20
    return (0.35 + 0.65 * diffuse / lamp[2]).astype(np.float32), np.clip(shine - flat, 0, 1).astype(np.float32)


def _surface(
    family: str, rng: Generator, n: int, strength: float, base: Array | None = None, zoom: float = 1.0
) -> tuple[Array, int]:
    """Returns a coloured texture `[n, n, 3]` and the index of its main colour."""
    u, v = _coordinates(rng, n)
    u, v = u * np.float32(zoom), v * np.float32(zoom)
    if rng.random() < 0.5:  # nothing natural is quite regular
        bend = np.float32(rng.uniform(0.0, 0.12))
        cells = rng.uniform(1, 6)
        u, v = u + bend * (_fbm(rng, n, cells, 2) - 0.5), v + bend * (_fbm(rng, n, cells, 2) - 0.5)
    t = np.clip(TEXTURES[family](u, v, rng), 0, 1).astype(np.float32)
    first, index = _colour(rng)
    if base is not None:
        first = base
    other = _colour(rng)[0] if rng.random() < 0.4 else np.clip(first * rng.uniform(0.3, 1.5), 0, 1)
    main = t if t.mean() > 0.5 else 1 - t  # the colour that is named covers most
    image = first + strength * (1 - main)[..., None] * (other - first)
    diffuse, shine = _relief(t, rng, rng.uniform(0, 1.2) * (rng.random() < 0.7))
    image = image * diffuse[..., None] + (rng.uniform(0, 0.4) * (rng.random() < 0.4)) * shine[..., None]
    if rng.random() < 0.7:
        image = image * (1 + rng.uniform(0, 0.25) * (_fbm(rng, n, rng.uniform(2, 40), 3) - 0.5))[..., None]
    return image.astype(np.float32), index


def _light(image: Array, rng: Generator) -> Array:
    """Returns an image under uneven light: a gradient and, at times, a vignette."""
    n = len(image)
    axis = np.linspace(-1, 1, n, dtype=np.float32)
    gx, gy = rng.normal(0, 0.1, 2)
    field = 1 + gx * axis[None] + gy * axis[:, None]
    if rng.random() < 0.3:
        field = field * (1 - rng.uniform(0, 0.25) * (axis[None] ** 2 + axis[:, None] ** 2) / 2)
    return (image * field[..., None]).astype(np.float32)


# -------------------------------------------------------------------------------------------------------- objects
# Each returns a signed distance `[n, n]`, negative inside, of a shape of radius about 1.


def _polygon(x: Array, y: Array, sides: int) -> Array:
    angle = np.arctan2(y, x)
    sector = 2 * np.pi / sides
    return np.hypot(x, y) * np.cos((angle + 20 * np.pi) % sector - sector / 2) - 0.85


def _radial(x: Array, y: Array, rng: Generator, orders: Sequence[int], size: float) -> Array:
    angle, radius = np.arctan2(y, x), np.ones_like(x)
    for order in orders:
        radius += rng.uniform(0.3, 1) * size * np.cos(order * angle + rng.uniform(0, 6.3))
    return np.hypot(x, y) - 0.8 * radius


def _box(x: Array, y: Array, w: float, h: float, corner: float) -> Array:
    dx, dy = np.abs(x) - (w - corner), np.abs(y) - (h - corner)
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - corner


def _star(x: Array, y: Array, rng: Generator) -> Array:
    k = int(rng.integers(4, 10))
    angle = np.arctan2(y, x)
    tooth = np.abs((k * angle / np.pi + 20 * k) % 2 - 1)
    return np.hypot(x, y) - (1 - rng.uniform(0.3, 0.6) * tooth)


def _leaf(x: Array, y: Array, rng: Generator) -> Array:
    d = rng.uniform(0.4, 0.8)
    return np.maximum(np.hypot(x - d, y), np.hypot(x + d, y)) - np.hypot(1, d)


def _ring(x: Array, y: Array, rng: Generator) -> Array:
    w = rng.uniform(0.12, 0.35)
    return np.abs(np.hypot(x, y) - (1 - w)) - w


def _crescent(x: Array, y: Array, rng: Generator) -> Array:
    return np.maximum(np.hypot(x, y) - 0.95, rng.uniform(0.6, 0.8) - np.hypot(x - rng.uniform(0.35, 0.6), y))


def _heart(x: Array, y: Array, rng: Generator) -> Array:
    x, y = np.abs(x), -y + 0.1
    return np.maximum(np.hypot(x - 0.35, np.maximum(y - 0.2, 0)) - 0.45, (x - y * 0.75) / 1.25 - 0.68)


def _cross(x: Array, y: Array, rng: Generator) -> Array:
    w = rng.uniform(0.2, 0.4)
    return np.minimum(_box(x, y, 0.95, w, 0.08), _box(x, y, w, 0.95, 0.08))


def _glyph(x: Array, y: Array, rng: Generator) -> Array:
    canvas = np.zeros((64, 64), np.uint8)
    text = chr(rng.choice([*range(65, 91), *range(48, 58)]))
    font = int(rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX]))
    cv2.putText(canvas, text, (12, 53), font, 2.0, 255, int(rng.integers(4, 9)), cv2.LINE_AA)
    return _stamp(canvas, x * 28 + 32, y * 28 + 32, 28)


def _stamp(canvas: Array, column: Array, row: Array, scale: float) -> Array:
    """Returns the signed distance to the bright parts of a canvas at these pixels; `scale` pixels are a unit."""
    inside = cv2.distanceTransform((canvas > 127).astype(np.uint8), cv2.DIST_L2, 3)
    outside = cv2.distanceTransform((canvas <= 127).astype(np.uint8), cv2.DIST_L2, 3)
    table = ((outside - inside) / scale).astype(np.float32)
    return cv2.remap(table, column.astype(np.float32), row.astype(np.float32), cv2.INTER_LINEAR,
                     borderMode=cv2.BORDER_CONSTANT, borderValue=1.0)  # fmt: skip


def _fern(x: Array, y: Array, rng: Generator) -> Array:
    """An iterated function system: the union of its maps' images of one point, grown level by level."""
    k = int(rng.integers(3, 5))
    angle, scale = rng.uniform(-0.9, 0.9, k), rng.uniform(0.45, 0.68, k)
    shift = rng.uniform(-0.6, 0.6, (k, 2))
    points = np.zeros((1, 2))
    turn = np.stack([np.stack([np.cos(angle), -np.sin(angle)], 1), np.stack([np.sin(angle), np.cos(angle)], 1)], 1)
    for _ in range(6):
        points = (np.einsum("kij,pj->kpi", turn * scale[:, None, None], points) + shift[:, None]).reshape(-1, 2)
        points = points[rng.permutation(len(points))[:1500]]
    points = (points - points.mean(0)) / np.maximum(np.abs(points - points.mean(0)).max(), 1e-3)
    canvas = np.ones((96, 96), np.uint8)
    at = np.clip(points * 42 + 48, 0, 95).astype(np.int32)
    canvas[at[:, 1], at[:, 0]] = 0
    table = cv2.distanceTransform(canvas, cv2.DIST_L2, 3).astype(np.float32) / 42 - 0.045
    return cv2.remap(table, (x * 42 + 48).astype(np.float32), (y * 42 + 48).astype(np.float32), cv2.INTER_LINEAR,
                     borderMode=cv2.BORDER_CONSTANT, borderValue=1.0)  # fmt: skip


def _comb(x: Array, y: Array, rng: Generator) -> Array:
    k, w = rng.integers(4, 10), rng.uniform(0.2, 0.35)
    teeth = np.maximum(np.abs((x * k / 2) % 1 - 0.5) - w, _box(x, y - 0.2, 0.95, 0.6, 0.02) * 4) / k
    return np.minimum(teeth, _box(x, y + 0.5, 0.97, 0.2, 0.05))


Shape = Callable[[Array, Array, Generator], Array]
SHAPES: dict[str, Shape] = {
    "disc": lambda x, y, rng: np.hypot(x, y) - 0.95,
    "polygon": lambda x, y, rng: _polygon(x, y, int(rng.integers(3, 9))),
    "star": _star,
    "flower": lambda x, y, rng: _radial(x, y, rng, [int(rng.integers(4, 9))], 0.3),
    "stone": lambda x, y, rng: _radial(x, y, rng, (2, 3, 5), 0.12),
    "washer": _ring,
    "box": lambda x, y, rng: _box(x, y, 0.95, rng.uniform(0.4, 0.95), rng.uniform(0, 0.3)),
    "ball": lambda x, y, rng: np.hypot(x, y * rng.uniform(1, 1.4)) - 0.95,
    "fern": _fern,
    "letter": _glyph,
    "cross": _cross,
    "crescent": _crescent,
    "leaf": _leaf,
    "rod": lambda x, y, rng: _box(x, y, 1.0, rng.uniform(0.1, 0.3), 0.08),
    "heart": _heart,
    "comb": _comb,
    "plate": lambda x, y, rng: np.hypot(x, y) - 0.97,
}


def _object_scene(family: str, rng: Generator, n: int) -> Scene:
    plain = rng.random() < 0.5
    ground = "plain" if plain else str(rng.choice(BACKGROUNDS))
    behind, _ = _surface(ground, rng, n, strength=rng.uniform(0.1, 0.6))
    behind = behind * np.float32(rng.choice([0.4, 1.0]))
    turn = np.pi if rng.random() < 0.5 else 0.15
    x, y = _coordinates(rng, n, turn=turn, shift=0.15)
    if family == "beads":
        scale = rng.uniform(1.6, 4.5)
        a, b = x * scale, y * scale
        if rng.random() < 0.5:
            a = a + 0.5 * (np.floor(b) % 2)
        shape = SHAPES[str(rng.choice(("disc", "polygon", "star", "flower", "ball", "cross", "heart")))]
        d = shape((a - np.floor(a) - 0.5) * 2.3, (b - np.floor(b) - 0.5) * 2.3, rng) / (2.3 * scale)
        parts = [(d, 0.25 / scale)]
    elif family in COMPOSED:
        parts = COMPOSED[family](x, y, rng)
    else:
        size = rng.uniform(0.5, 1.1)
        aspect = rng.uniform(0.8, 1.25) if rng.random() < 0.5 else 1.0
        parts = [(SHAPES[family](x / np.float32(size), y / np.float32(size * aspect), rng) * size, size)]
    image, coverage = behind, np.zeros((n, n), np.float32)
    colour = 0
    shadow = rng.uniform(0, 0.6) * (rng.random() < 0.6)
    offset = rng.uniform(-4, 4, 2)
    for index, (d, thickness) in enumerate(parts):
        cover = np.clip(0.5 - d * n / 2, 0, 1).astype(np.float32)
        fill, name = _fill(d, thickness, rng, n)
        if index == 0:
            colour = name
            if shadow:
                move = np.array([[1, 0, offset[0]], [0, 1, offset[1]]], np.float32)
                dark = cv2.GaussianBlur(cv2.warpAffine(cover, move, (n, n)), (0, 0), 2.5)
                behind = behind * (1 - shadow * dark[..., None])
                image = behind
        image = image + cover[..., None] * (fill - image)
        coverage = np.maximum(coverage, cover)
    state = rng.bit_generator.state
    image = _light(image, rng)
    rng.bit_generator.state = state
    return Scene(image.astype(np.float32), _light(behind, rng), coverage, colour)


def _fill(d: Array, thickness: float, rng: Generator, n: int) -> tuple[Array, int]:
    """Returns the shaded surface of a part `[n, n, 3]` and its colour."""
    base, name = _colour(rng)
    kind = str(rng.choice(INSIDES)) if rng.random() < 0.5 else "plain"
    fill, _ = _surface(kind, rng, n, rng.uniform(0.1, 0.8), base=base, zoom=rng.uniform(1, 2))
    depth = np.clip(-d / thickness, 0, 1).astype(np.float32)
    profile = rng.random()
    if profile < 0.4:  # dome
        height = np.sqrt(depth * (2 - depth)) * thickness
    elif profile < 0.75:  # flat with a bevel
        height = np.clip(depth * rng.uniform(3, 10), 0, 1) * 0.15 * thickness
    else:  # steps, like the rim of a lid
        height = 0.1 * thickness * (0.5 + 0.5 * np.sin(rng.uniform(6, 25) * depth))
    diffuse, shine = _relief(cv2.GaussianBlur(height.astype(np.float32), (0, 0), 1.0), rng, n / 8)
    if rng.random() < 0.25:  # a printed band along the contour
        at, wide = rng.uniform(0.1, 0.7), rng.uniform(0.04, 0.2)
        band = _step(wide - np.abs(depth - at), 0.06)[..., None]
        fill = fill + band * (_colour(rng)[0] - fill)
    gloss = rng.uniform(0, 0.8) * (rng.random() < 0.5)
    return (fill * diffuse[..., None] + gloss * shine[..., None]).astype(np.float32), name


def _gadget(x: Array, y: Array, rng: Generator) -> list[tuple[Array, float]]:
    """A body with parts, often mirrored: boxes, discs and rods in random places."""
    w, h = rng.uniform(0.35, 0.85), rng.uniform(0.35, 0.85)
    parts = [(_box(x, y, w, h, rng.uniform(0, 0.3) * min(w, h)), min(w, h))]
    if rng.random() < 0.4:  # a neck or a handle
        a, b = rng.uniform(0.1, 0.3), rng.uniform(0.1, 0.25)
        parts.append((_box(x, y + h + b - 0.03, a, b, 0.03), a))
    for _ in range(int(rng.integers(1, 5))):
        px, py = rng.uniform(0, 0.75) * w, rng.uniform(-0.75, 0.75) * h
        size = rng.uniform(0.06, 0.3) * min(w, h) + 0.03
        mirror = np.abs(x) if rng.random() < 0.6 else x
        if rng.random() < 0.5:
            parts.append((np.hypot(mirror - px, y - py) - size, size))
        else:
            parts.append((_box(mirror - px, y - py, size, size * rng.uniform(0.3, 1.5), 0.1 * size), 0.3 * size))
    return parts


def _assembly(x: Array, y: Array, rng: Generator) -> list[tuple[Array, float]]:
    """A body with nested parts and small ones repeated around its centre or in rows: castings, wheels, panels."""
    size = float(rng.uniform(0.7, 1.0))
    body = SHAPES[str(rng.choice(("disc", "polygon", "box", "flower", "plate", "ball")))]
    parts = [(body(x / size, y / size, rng) * size, size)]
    inner = size
    for _ in range(int(rng.integers(0, 4))):
        inner *= rng.uniform(0.45, 0.85)
        if rng.random() < 0.5:
            wide = rng.uniform(0.04, 0.12)
            parts.append((np.abs(np.hypot(x, y) - inner) - wide, wide))
        else:
            nested = SHAPES[str(rng.choice(("disc", "polygon", "box")))]
            parts.append((nested(x / inner, y / inner, rng) * inner, inner))
    if rng.random() < 0.5:
        radius, sector = size * rng.uniform(0.35, 0.75), 2 * np.pi / rng.integers(2, 11)
        angle = (np.arctan2(y, x) + rng.uniform(0, 6.3)) % sector - sector / 2
        a, b = np.hypot(x, y) * np.cos(angle) - radius, np.hypot(x, y) * np.sin(angle)
        small = min(0.9 * radius * np.sin(min(sector / 2, 1.5)), 0.35 * size) * rng.uniform(0.3, 1)
    else:
        pitch, rows, columns = size * rng.uniform(0.2, 0.45), rng.integers(0, 3), rng.integers(1, 3)
        a = x - pitch * np.clip(np.round(x / pitch), -columns, columns)
        b = y - pitch * np.clip(np.round(y / pitch), -rows, rows)
        small = 0.45 * pitch * rng.uniform(0.4, 1)
    shape = SHAPES[str(rng.choice(("disc", "polygon", "star", "box", "cross", "ball", "rod")))]
    return [*parts, (shape(a / small, b / small, rng) * small, float(small))]


def _print(x: Array, y: Array, rng: Generator) -> list[tuple[Array, float]]:
    """A flat body with lines of writing and bars on it: labels, cards, packages."""
    w, h = rng.uniform(0.6, 1.0), rng.uniform(0.4, 1.0)
    side = 160
    canvas = np.zeros((side, side), np.uint8)
    top = int(rng.integers(10, 50))
    while top < side - 20:
        height = int(rng.integers(8, 34))
        left = int(rng.integers(6, 50))
        if rng.random() < 0.7:
            word = "".join(chr(c) for c in rng.choice([*range(48, 58), *range(65, 91), 32, 32], rng.integers(2, 12)))
            wide = int(rng.integers(1, 2 + height // 8))
            font = int(rng.integers(0, 5))
            cv2.putText(canvas, word, (left, top + height), font, height / 22, 255, wide, cv2.LINE_AA)
        else:
            right = min(left + int(rng.integers(20, 110)), side - 6)
            cv2.rectangle(canvas, (left, top), (right, top + height // 3), 255, -1 if rng.random() < 0.5 else 2)
        top += height + int(rng.integers(4, 24))
    scale = side / 2
    ink = _stamp(canvas, (x / w * 0.95 + 1) * scale, (y / h * 0.95 + 1) * scale, scale)
    return [(_box(x, y, w, h, rng.uniform(0, 0.2)), min(w, h)), (ink * min(w, h), 0.5)]


Parts = Callable[[Array, Array, Generator], list[tuple[Array, float]]]
COMPOSED: dict[str, Parts] = {"gadget": _gadget, "assembly": _assembly, "print": _print}
BACKGROUNDS = ("plain", "clouds", "streaks", "marble", "tiles", "stripes", "grains", "plasma")
INSIDES = ("clouds", "marble", "streaks", "stripes", "dots", "checker", "grains", "plasma", "grid", "quilt", "gabor")
OBJECTS = (*SHAPES, "beads", *COMPOSED)
FAMILIES = (*TEXTURES, *OBJECTS)
FAMILY_NAMES = FAMILIES
HELD_OUT = ("bricks", "pinwheel", "washer", "leaf")
"""Families that never train: the pretraining's own measure of unseen looks."""
# objects and the richest families are drawn more often than the simple textures
TRAINED = (*(f for f in FAMILIES if f not in HELD_OUT), *(o for o in OBJECTS if o not in HELD_OUT), "gadget", "beads",
           "gadget", "assembly", "assembly", "print", "plain", "clouds", "streaks")  # fmt: skip


# -------------------------------------------------------------------------------------------------------- defects
# Each returns the changed image `[n, n, 3]` of a scene.


def _somewhere(scene: Scene, rng: Generator, edge: bool = False) -> Array:
    """Returns x, y in pixels of a place on the object, or on its contour."""
    inside = scene.coverage > 0.9
    if edge and not inside.all():
        thin = inside & ~cv2.erode(inside.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        inside = thin if thin.any() else inside
    places = np.flatnonzero(inside)
    if not len(places):
        return rng.uniform(0.2, 0.8, 2) * len(inside)
    y, x = divmod(int(rng.choice(places)), inside.shape[1])
    return np.array([x, y], float)


def _size(rng: Generator, n: int, low: float = 0.002, high: float = 0.06) -> float:
    """Returns the radius in pixels of an area drawn evenly on a logarithmic scale of the picture's share."""
    return float(n * np.sqrt(np.exp(rng.uniform(np.log(low), np.log(high))) / np.pi))


def _patch(rng: Generator, n: int, centre: Array, radius: float, soft: float = 1.0, rough: float = 0.3) -> Array:
    """Returns the coverage `[n, n]` of an irregular blob."""
    axis = np.arange(n, dtype=np.float32)
    x, y = axis[None] - np.float32(centre[0]), axis[:, None] - np.float32(centre[1])
    stretch, turn = rng.uniform(0.6, 1.0), rng.uniform(0, np.pi)
    a = np.cos(turn) * x + np.sin(turn) * y
    b = (-np.sin(turn) * x + np.cos(turn) * y) / stretch
    angle = np.arctan2(b, a)
    edge = np.ones_like(angle)
    for order in range(2, 7):
        edge += rough * rng.normal() / order * np.cos(order * angle + rng.uniform(0, 6.3))
    return np.clip((radius * np.clip(edge, 0.3, 2) - np.hypot(a, b)) / soft + 0.5, 0, 1).astype(np.float32)


def _path(rng: Generator, n: int, start: Array, length: float, bend: float, jag: float) -> Array:
    """Returns the points `[k, 2]` of a wandering line."""
    steps = max(int(length / 2), 3)
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, jag, steps) + bend)
    moves = 2.0 * np.stack([np.cos(heading), np.sin(heading)], 1)
    points = np.cumsum(moves, 0)
    return start + points - points[rng.integers(len(points))]


def _line(n: int, points: Array, width: float) -> Array:
    """Returns the antialiased coverage `[n, n]` of a line."""
    canvas = np.zeros((4 * n, 4 * n), np.uint8)
    cv2.polylines(canvas, [np.round(points * 4).astype(np.int32)], False, 255, max(1, round(4 * width)))
    return cv2.resize(canvas, (n, n), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _paint(image: Array, alpha: Array, colour: Array) -> Array:
    return image + alpha[..., None] * (colour - image)


def _contrast(scene: Scene, alpha: Array, rng: Generator, least: float = 0.12) -> Array:
    """Returns a colour that differs from the surface under `alpha`."""
    under = (scene.image * alpha[..., None]).sum((0, 1)) / max(float(alpha.sum()), 1e-3)
    if rng.random() < 0.7:
        sign = 1.0 if under.mean() < rng.uniform(0.2, 0.8) else -1.0
        colour = under + sign * rng.uniform(least, 0.6) * (1 + rng.normal(0, 0.15, 3))
    else:
        colour = _colour(rng)[0]
    return np.clip(colour, 0.02, 0.98).astype(np.float32)


def _on(scene: Scene, alpha: Array) -> Array:
    return alpha * scene.coverage


def _scratch(scene: Scene, rng: Generator) -> Array:
    n, alpha = len(scene.image), np.zeros(scene.coverage.shape, np.float32)
    start = _somewhere(scene, rng)
    for _ in range(int(rng.choice([1, 1, 2, 4]))):
        points = _path(rng, n, start + rng.normal(0, 4, 2), rng.uniform(0.1, 0.7) * n, rng.normal(0, 0.03), 0.03)
        alpha = np.maximum(alpha, _line(n, points, rng.uniform(0.6, 2.2)))
    alpha = _on(scene, alpha)
    return _paint(scene.image, alpha * rng.uniform(0.5, 1), _contrast(scene, alpha, rng, 0.2))


def _crack(scene: Scene, rng: Generator) -> Array:
    n = len(scene.image)
    start = _somewhere(scene, rng, edge=rng.random() < 0.5)
    points = _path(rng, n, start, rng.uniform(0.15, 0.7) * n, 0.0, rng.uniform(0.3, 0.6))
    alpha = _line(n, points, rng.uniform(0.8, 2.5))
    for _ in range(int(rng.integers(0, 4))):
        fork = _path(rng, n, points[rng.integers(len(points))], rng.uniform(0.05, 0.25) * n, 0.0, 0.4)
        alpha = np.maximum(alpha, _line(n, fork, rng.uniform(0.6, 1.5)))
    alpha = _on(scene, alpha)
    dark = scene.image * rng.uniform(0.05, 0.4) if rng.random() < 0.8 else scene.image * 0.3 + 0.6
    return scene.image + alpha[..., None] * (dark - scene.image)


def _stain(scene: Scene, rng: Generator) -> Array:
    n = len(scene.image)
    radius = _size(rng, n, 0.004, 0.09)
    alpha = _patch(rng, n, _somewhere(scene, rng), radius, rng.uniform(1, 0.8 * radius + 1), 0.5)
    alpha = _on(scene, alpha * (0.7 + 0.6 * (_fbm(rng, n, 12, 3) - 0.5)))
    tint = _colour(rng)[0]
    wet = scene.image * (0.4 + 0.6 * tint) * rng.uniform(0.4, 0.9)
    return scene.image + (alpha * rng.uniform(0.5, 1.0))[..., None] * (wet - scene.image)


def _hole(scene: Scene, rng: Generator) -> Array:
    n = len(scene.image)
    radius = _size(rng, n, 0.002, 0.05)
    centre = _somewhere(scene, rng)
    state = rng.bit_generator.state
    alpha = _on(scene, _patch(rng, n, centre, radius, 1.2, 0.2))
    rng.bit_generator.state = state
    rim = _on(scene, _patch(rng, n, centre, radius * 1.2 + 0.7, 1.5, 0.2))
    through = scene.behind * rng.uniform(0.3, 1) if rng.random() < 0.6 else np.full_like(scene.image, 0.03)
    image = scene.image * (1 + (rim * rng.uniform(-0.4, 0.4))[..., None])
    return image + alpha[..., None] * (through - image)


def _dent(scene: Scene, rng: Generator) -> Array:
    n, radius, centre = len(scene.image), _size(rng, len(scene.image), 0.005, 0.08), _somewhere(scene, rng)
    bump = cv2.GaussianBlur(_patch(rng, n, centre, radius, 2, 0.2), (0, 0), max(radius / 3, 0.7))
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * cv2.Sobel(bump, cv2.CV_32F, 1, 0) + np.sin(angle) * cv2.Sobel(bump, cv2.CV_32F, 0, 1)
    slope = slope / max(float(np.abs(slope).max()), 1e-3)
    light = _on(scene, np.clip(rng.uniform(0.3, 0.9) * slope - rng.uniform(0, 0.2) * bump, -0.8, 0.9))
    return scene.image * (1 + light)[..., None] + 0.15 * np.clip(light, 0, 1)[..., None]


def _fibre(scene: Scene, rng: Generator) -> Array:
    n = len(scene.image)
    points = _path(rng, n, _somewhere(scene, rng), rng.uniform(0.15, 0.8) * n, rng.normal(0, 0.12), 0.15)
    alpha = _line(n, points, rng.uniform(0.8, 2.0))
    return _paint(scene.image, alpha * rng.uniform(0.6, 1), _contrast(scene, alpha, rng, 0.25))


def _specks(scene: Scene, rng: Generator) -> Array:
    n, centre, spread = len(scene.image), _somewhere(scene, rng), rng.uniform(2, 16)
    alpha = np.zeros((n, n), np.float32)
    for _ in range(int(rng.integers(3, 25))):
        place = centre + rng.normal(0, spread, 2)
        canvas = _line(n, np.stack([place, place + rng.normal(0, 0.4, 2)]), rng.uniform(0.8, 3))
        alpha = np.maximum(alpha, canvas)
    alpha = _on(scene, alpha)
    return _paint(scene.image, alpha, _contrast(scene, alpha, rng, 0.25))


def _discolouration(scene: Scene, rng: Generator) -> Array:
    n = len(scene.image)
    radius = _size(rng, n, 0.01, 0.13)
    alpha = _on(scene, _patch(rng, n, _somewhere(scene, rng), radius, rng.uniform(1.5, radius), 0.3))
    if rng.random() < 0.5:
        gain = 1 + rng.normal(0, 0.45, 3)
    else:
        gain = np.full(3, rng.choice([rng.uniform(0.4, 0.75), rng.uniform(1.3, 1.9)]))
    changed = scene.image * gain.astype(np.float32)
    if rng.random() < 0.3:
        changed = 0.3 * changed + 0.7 * scene.image.mean(2, keepdims=True)
    return scene.image + alpha[..., None] * (changed - scene.image)


def _chip(scene: Scene, rng: Generator) -> Array:
    n = len(scene.image)
    alpha = _patch(rng, n, _somewhere(scene, rng, edge=True), _size(rng, n, 0.003, 0.09), 1.0, 0.5)
    alpha = _on(scene, alpha)
    under = scene.behind
    if (scene.coverage > 0.9).all() or rng.random() < 0.25:  # broken off, but not through
        under = scene.image.mean((0, 1)) * rng.uniform(0.4, 1.5) * (1 + 0.4 * (_fbm(rng, n, 20, 3) - 0.5))[..., None]
    return scene.image + alpha[..., None] * (under - scene.image)


def _bend(scene: Scene, rng: Generator) -> Array:
    n = len(scene.image)
    radius = _size(rng, n, 0.02, 0.12)
    window = cv2.GaussianBlur(
        _patch(rng, n, _somewhere(scene, rng, edge=True), radius, 1, 0.1), (0, 0), max(radius / 4, 0.7)
    )
    angle, by = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.9) * radius
    axis = np.arange(n, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    sx, sy = x + by * np.cos(angle) * window, y + by * np.sin(angle) * window
    return cv2.remap(
        scene.image, sx.astype(np.float32), sy.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )


def _cut(scene: Scene, rng: Generator) -> Array:
    n = len(scene.image)
    points = _path(rng, n, _somewhere(scene, rng, edge=rng.random() < 0.6), rng.uniform(0.1, 0.5) * n, 0.0, 0.02)
    alpha = _on(scene, _line(n, points, rng.uniform(1.5, 5)))
    under = scene.behind if rng.random() < 0.6 else scene.image * rng.uniform(0.05, 0.4)
    return scene.image + alpha[..., None] * (under - scene.image)


def _foreign(scene: Scene, rng: Generator) -> Array:
    n = len(scene.image)
    alpha = _patch(rng, n, _somewhere(scene, rng), _size(rng, n, 0.002, 0.06), 1.0, 0.25)
    surface, _ = _surface(str(rng.choice((*INSIDES, "plain"))), rng, n, rng.uniform(0.2, 0.8))
    surface = 0.5 * surface + 0.5 * _contrast(scene, alpha, rng)
    if rng.random() < 0.5:
        diffuse, _ = _relief(cv2.GaussianBlur(alpha, (0, 0), 2), rng, 1.5)
        surface = surface * diffuse[..., None]
    return scene.image + alpha[..., None] * (surface - scene.image)


def _misplaced(scene: Scene, rng: Generator) -> Array:
    n, radius = len(scene.image), _size(rng, len(scene.image), 0.006, 0.08)
    centre = _somewhere(scene, rng, edge=rng.random() < 0.3)
    source = _somewhere(scene, rng)
    turn = cv2.getRotationMatrix2D((float(source[0]), float(source[1])), rng.uniform(20, 340), rng.uniform(0.7, 1.4))
    turn[:, 2] += centre - source
    moved = cv2.warpAffine(scene.image, turn, (n, n), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    shape = _patch(rng, n, centre, radius, 1.0, 0.15)
    return scene.image + shape[..., None] * (moved * rng.uniform(0.85, 1.15) - scene.image)


def _worn(scene: Scene, rng: Generator) -> Array:
    n, radius = len(scene.image), _size(rng, len(scene.image), 0.01, 0.12)
    alpha = _patch(rng, n, _somewhere(scene, rng), radius, rng.uniform(1, 4), 0.4)
    blurred = cv2.GaussianBlur(scene.image, (0, 0), rng.uniform(2, 6))
    blurred = blurred * rng.uniform(0.8, 1.25)
    alpha = _on(scene, alpha)
    return scene.image + alpha[..., None] * (blurred - scene.image)


def _burn(scene: Scene, rng: Generator) -> Array:
    n, radius = len(scene.image), _size(rng, len(scene.image), 0.004, 0.08)
    core = _patch(rng, n, _somewhere(scene, rng, edge=rng.random() < 0.3), radius, radius, 0.4)
    core = _on(scene, np.clip(core * (1 + 0.8 * (_fbm(rng, n, 14, 3) - 0.5)), 0, 1))
    toned = scene.image * np.array([0.5, 0.32, 0.2], np.float32) * rng.uniform(0.3, 1.2)
    return scene.image + (core * rng.uniform(0.7, 1))[..., None] * (toned - scene.image)


@dataclass(frozen=True)
class Kind:
    """A kind of defect.

    Attributes:
        draw: Returns the changed image of a scene.
        adjectives: Words that go before the noun.
        nouns: Words that go after `with`.
    """

    draw: Callable[[Scene, Generator], Array]
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]


KINDS: dict[str, Kind] = {
    "scratch": Kind(_scratch, ("scratched",), ("a scratch", "scratches")),
    "crack": Kind(_crack, ("cracked",), ("a crack", "cracks")),
    "stain": Kind(_stain, ("stained", "spotted"), ("a stain", "a spot")),
    "hole": Kind(_hole, ("punctured",), ("a hole", "holes")),
    "dent": Kind(_dent, ("dented",), ("a dent", "a bump")),
    "fibre": Kind(_fibre, ("contaminated",), ("a thread", "a hair", "contamination")),
    "specks": Kind(_specks, ("dirty", "contaminated"), ("specks", "dirt", "contamination")),
    "discolouration": Kind(_discolouration, ("discolored", "faded"), ("a color error", "a discoloration")),
    "chip": Kind(_chip, ("chipped", "incomplete"), ("a missing part", "a chip")),
    "bend": Kind(_bend, ("bent", "deformed"), ("a deformation", "a bent part")),
    "cut": Kind(_cut, ("cut", "torn"), ("a cut", "a tear")),
    "foreign": Kind(_foreign, ("contaminated",), ("a foreign object", "contamination")),
    "misplaced": Kind(_misplaced, ("misplaced",), ("a misplaced part", "a print error")),
    "worn": Kind(_worn, ("worn", "rubbed"), ("a missing part", "wear")),
    "burn": Kind(_burn, ("burnt",), ("a burn",)),
}
KIND_NAMES = tuple(KINDS)


def _camera(image: Array, rng: Generator) -> Array:
    """Returns an image as seen by a camera: exposure, colour cast, blur and noise; uint8."""
    n = len(image)
    gain = rng.uniform(0.75, 1.2) * (1 + rng.normal(0, 0.03, 3))
    grey = image.mean(2, keepdims=True)
    image = grey + np.float32(rng.uniform(0.2, 1.1)) * (image - grey)
    seen = np.clip(image * gain.astype(np.float32), 0, 1) ** np.float32(rng.uniform(0.75, 1.25))
    if rng.random() < 0.6:
        seen = cv2.GaussianBlur(seen, (0, 0), rng.uniform(0.3, 0.9))
    noise = rng.uniform(0, 0.03) * (rng.random() < 0.6)
    grain = rng.standard_normal((n, n, 3 if rng.random() < 0.5 else 1), np.float32)
    return (np.clip(seen + noise * grain, 0, 1) * 255 + 0.5).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------- captions

FAMILY_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("smooth surface", "plastic sheet"), "clouds": ("stone", "concrete surface"), "marble": ("marble slab",),
    "plasma": ("plasma pattern", "glass"), "pebbles": ("pebbles", "cell pattern"), "streaks": ("fur", "hair pattern"),
    "stripes": ("striped pattern", "stripes"), "checker": ("checkerboard", "chess pattern"),
    "dots": ("dotted pattern", "polka dots"), "bricks": ("brick wall", "bricks"), "tiles": ("tile", "tiled floor"),
    "rings": ("ring pattern", "target"), "waves": ("wave pattern", "zigzag pattern"), "grid": ("lattice", "grid"),
    "honeycomb": ("honeycomb", "hexagon pattern"), "grains": ("gravel", "granite"), "maze": ("maze", "labyrinth"),
    "quilt": ("quilt", "pillow"), "gabor": ("fingerprint", "ripple pattern"), "pinwheel": ("pinwheel", "spiral"),
    "keys": ("keyboard", "keys"), "disc": ("coin", "disc"), "polygon": ("badge", "polygon"), "star": ("star",),
    "flower": ("flower",), "stone": ("rock", "potato"), "washer": ("washer", "ring"), "box": ("box", "card"),
    "ball": ("ball", "egg"), "fern": ("fern", "fractal"), "letter": ("letter", "sign"), "cross": ("cross",),
    "crescent": ("crescent", "moon"), "leaf": ("leaf", "lens"), "rod": ("rod", "stick"), "heart": ("heart",),
    "comb": ("comb", "fork"), "plate": ("plate", "lid"), "beads": ("beads", "buttons"), "gadget": ("device", "toy"),
    "assembly": ("casting", "panel"), "print": ("label", "poster"), "mosaic": ("mosaic", "patchwork"),
}  # fmt: skip
ANY_WORDS = ("object", "product", "item", "part", "surface", "texture")
UNKNOWN_WORDS = ("zebra", "zebra zebra")
"""Stand-ins for words that no caption holds; not in the vocabulary, so that they train its row for unknown words."""

NORMAL_BEFORE = ("flawless", "perfect", "unblemished", "normal", "intact", "undamaged", "good", "pristine")
NORMAL_AFTER = ("without defect", "without flaw", "without damage", "without defects", "without blemish",
                "without anomaly", "with no defect", "in good condition")  # fmt: skip
ABNORMAL_BEFORE = ("damaged", "broken", "defective", "flawed", "imperfect", "abnormal", "anomalous", "bad", "faulty",
                   "blemished")  # fmt: skip
ABNORMAL_AFTER = ("with defect", "with flaw", "with damage", "with defects", "with blemish", "with anomaly",
                  "with a defect", "in bad condition")  # fmt: skip
TEMPLATES = (
    "{}", "{}.", "a photo of a {}.", "a photo of the {}.", "a photo of a {}", "a close-up photo of a {}.",
    "a close-up photo of the {}.", "a cropped photo of the {}.", "a cropped photo of a {}.", "a photo of one {}.",
    "a bright photo of a {}.", "a dark photo of the {}.", "a blurry photo of the {}.", "a photo of a small {}.",
    "a photo of a large {}.", "a photo of my {}.", "there is a {} in the scene.", "this is a {} in the scene.",
    "a low resolution photo of a {}.", "a jpeg corrupted photo of a {}.", "a black and white photo of the {}.",
    "a photo of the {} for visual inspection.", "a photo of the {} for anomaly detection.", "a picture of a {}.",
    "an image of a {}.", "a photo of an {}.",
)  # fmt: skip


@dataclass(frozen=True)
class Caption:
    """A caption and its facts, which decide for which pictures it is true.

    Attributes:
        text: The words.
        state: 0 flawless, 1 defective, -1 not said.
        kind: Index into `KIND_NAMES`, -1 not said.
        family: Index into `FAMILY_NAMES`, -1 not said.
        colour: Index into `COLOUR_NAMES`, -1 not said.
    """

    text: str
    state: int
    kind: int
    family: int
    colour: int


def draw_caption(family: int, colour: int, kind: int, rng: Generator) -> Caption:
    """Returns a random caption that is true of a picture.

    Args:
        family: Index into `FAMILY_NAMES`.
        colour: Index into `COLOUR_NAMES`.
        kind: Index into `KIND_NAMES`; -1 for a flawless picture.
        rng: Source of the choice.
    """
    state = int(kind >= 0)
    if rng.random() < 0.12:  # the bare state
        words = ABNORMAL_AFTER if state else NORMAL_AFTER
        return Caption(f"{rng.choice(words)}.", state, -1, -1, -1)
    choice = rng.random()
    if choice < 0.2:
        noun, family = str(rng.choice(ANY_WORDS)), -1
    elif choice < 0.35:
        noun, family = str(rng.choice(UNKNOWN_WORDS)), -1
    else:
        noun = str(rng.choice(FAMILY_WORDS[FAMILY_NAMES[family]]))
    if rng.random() < 0.35:
        noun = f"{COLOUR_NAMES[colour]} {noun}"
    else:
        colour = -1
    said = -1
    if rng.random() < 0.08:
        return Caption(str(rng.choice(TEMPLATES)).format(noun), -1, -1, family, colour)
    before = rng.random() < 0.5
    if state and rng.random() < 0.4:
        said, named = kind, KINDS[KIND_NAMES[kind]]
        noun = f"{rng.choice(named.adjectives)} {noun}" if before else f"{noun} with {rng.choice(named.nouns)}"
    elif before:
        noun = f"{rng.choice(ABNORMAL_BEFORE if state else NORMAL_BEFORE)} {noun}"
    else:
        noun = f"{noun} {rng.choice(ABNORMAL_AFTER if state else NORMAL_AFTER)}"
    return Caption(str(rng.choice(TEMPLATES)).format(noun), state, said, family, colour)


def draw_state_prompts(rng: Generator) -> tuple[str, str]:
    """Returns a pair of prompts that differ only in the state: normal, abnormal."""
    template = str(rng.choice(TEMPLATES))
    names = FAMILY_WORDS[str(rng.choice(FAMILY_NAMES))] if rng.random() < 0.4 else ANY_WORDS + UNKNOWN_WORDS
    noun = str(rng.choice(names))
    if rng.random() < 0.5:
        normal, abnormal = f"{rng.choice(NORMAL_BEFORE)} {noun}", f"{rng.choice(ABNORMAL_BEFORE)} {noun}"
    else:
        normal, abnormal = f"{noun} {rng.choice(NORMAL_AFTER)}", f"{noun} {rng.choice(ABNORMAL_AFTER)}"
    return template.format(normal), template.format(abnormal)


def vocabulary() -> list[str]:
    """Returns all the phrases that captions are put together from; unknown words are not among them."""
    phrases = [*COLOUR_NAMES, *ANY_WORDS, *NORMAL_BEFORE, *NORMAL_AFTER, *ABNORMAL_BEFORE, *ABNORMAL_AFTER]
    phrases += [template.format("") for template in TEMPLATES]
    phrases += [word for words in FAMILY_WORDS.values() for word in words]
    for kind in KINDS.values():
        phrases += [*kind.adjectives, *kind.nouns]
    return phrases
