"""Breaks drawn objects: missing, split or crumbled parts, and the patches that are recognisably anomalous.

Where a part is gone, the ground is seen: a patch in the midst of it looks like any other ground, so that nothing is to
be learnt from it. The target calls anomalous what lies near the fracture, and the rest of what is missing unclear.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[Any]

NEAR = 0.045  # of the picture's side: how far from the fracture the ground still counts as anomalous
ANOMALOUS, UNCLEAR = 1, 2


def plain_ground(n: int, rng: Generator) -> Array:
    """Returns a ground of one colour, mostly grey, white or black, with uneven light and grain, `[n, n, 3]`."""
    level = rng.choice([rng.uniform(0.0, 0.12), rng.uniform(0.85, 1.0), rng.uniform(0.1, 0.9)])
    colour = np.full(3, level) if rng.random() < 0.6 else np.clip(level + rng.normal(0, 0.15, 3), 0, 1)
    small = rng.normal(0, rng.uniform(0, 0.03), (5, 5)).astype(np.float32)
    cloud = cv2.resize(small, (n, n), interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0, rng.uniform(0, 0.02), (n, n)).astype(np.float32)
    return (colour + (cloud + grain)[..., None]).astype(np.float32)


def wavy(n: int, rng: Generator, rough: float) -> Array:
    """Returns noise `[n, n]` of about -1 to 1 with fine detail, in units of `rough`."""
    total = np.zeros((n, n), np.float32)
    for octave, cells in enumerate((4, 9, 20, 45)):
        grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        total += cv2.resize(grid, (n, n), interpolation=cv2.INTER_CUBIC) * np.float32(0.55**octave)
    return total * np.float32(rough)


def _side(coverage: Array, rng: Generator, keep: tuple[float, float]) -> Array:
    """Returns the part of an object beyond a rough line, bool `[n, n]`; a share within `keep` of it stays."""
    n = len(coverage)
    axis = np.linspace(-1, 1, n, dtype=np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * axis[None] + np.sin(angle) * axis[:, None] + wavy(n, rng, rng.uniform(0.01, 0.12))
    inside = coverage > 0.5
    return along > np.quantile(along[inside], rng.uniform(*keep))


def _remove(image: Array, ground: Array, coverage: Array, lost: Array, rng: Generator) -> tuple[Array, Array]:
    """Returns the image without a part, with the face of the fracture, and the target."""
    n = len(image)
    missing = lost & (coverage > 0.5)
    alpha = cv2.GaussianBlur(lost.astype(np.float32), (0, 0), 0.7) * coverage
    rest = ((coverage > 0.5) & ~lost).astype(np.uint8)
    away = cv2.distanceTransform(1 - rest, cv2.DIST_L2, 5) / n  # from what is left
    depth = cv2.distanceTransform((~lost).astype(np.uint8), cv2.DIST_L2, 5) / n  # into what is left
    face = np.zeros((n, n), np.float32)
    if rng.random() < 0.7:  # the broken face: of another tone and rougher than the surface
        wide = rng.uniform(0.008, 0.05)
        face = np.clip((wide * (1 + wavy(n, rng, 0.6)) - depth) / 0.01, 0, 1) * rest
        inner = (
            image.mean((0, 1)) if rng.random() < 0.3 else image[rest > 0].mean(0) if rest.any() else image.mean((0, 1))
        )
        tone = inner * rng.uniform(0.5, 1.6) * (1 + wavy(n, rng, rng.uniform(0.05, 0.4)))[..., None]
        image = image + face[..., None] * (np.clip(tone, 0, 1) - image)
    changed = image + alpha[..., None] * (ground - image)
    target = np.where(missing, UNCLEAR, 0).astype(np.uint8)
    target[missing & (away < NEAR)] = ANOMALOUS
    target[
        (face > 0.3) | ((depth < 0.012) & (rest > 0) & (cv2.dilate(missing.astype(np.uint8), np.ones((9, 9))) > 0))
    ] = ANOMALOUS
    return changed, target


def _half(image: Array, ground: Array, coverage: Array, rng: Generator) -> tuple[Array, Array]:
    return _remove(image, ground, coverage, _side(coverage, rng, (0.3, 0.93)), rng)


def _bite(image: Array, ground: Array, coverage: Array, rng: Generator) -> tuple[Array, Array]:
    n = len(image)
    inside = (coverage > 0.5).astype(np.uint8)
    contour = inside - cv2.erode(inside, np.ones((3, 3), np.uint8))
    rows, columns = np.nonzero(contour)
    if not len(rows):
        return image, np.zeros((n, n), np.uint8)
    pick = rng.integers(len(rows))
    axis = np.arange(n, dtype=np.float32)
    distance = np.hypot(axis[None] - columns[pick], axis[:, None] - rows[pick]) / np.sqrt(inside.sum())
    lost = distance + wavy(n, rng, rng.uniform(0.02, 0.12)) < rng.uniform(0.12, 0.5)
    return _remove(image, ground, coverage, lost, rng)


def _piece(image: Array, ground: Array, coverage: Array, rng: Generator) -> tuple[Array, Array]:
    """One of several parts that lie apart is broken in two or cut off; of a single object, two bites are taken."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((coverage > 0.5).astype(np.uint8))
    large = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] > 0.003 * coverage.size]
    if len(large) < 2:
        first, one = _bite(image, ground, coverage, rng)
        second, two = _bite(first, ground, coverage * (one == 0), rng)
        return second, np.where(two > 0, two, one).astype(np.uint8)
    own = np.where(labels == int(rng.choice(large)), coverage, 0).astype(np.float32)
    return _remove(image, ground, own, _side(own, rng, (0.2, 0.8)), rng)


def _split(image: Array, ground: Array, coverage: Array, rng: Generator) -> tuple[Array, Array]:
    """The object is in two parts; one part has moved a little."""
    n = len(image)
    lost = _side(coverage, rng, (0.25, 0.75))
    turn = cv2.getRotationMatrix2D((n / 2, n / 2), float(rng.normal(0, 6)), 1.0)
    turn[:, 2] += rng.normal(0, 0.03 * n, 2)
    part = coverage * lost
    moved = cv2.warpAffine(part.astype(np.float32), turn, (n, n))[..., None]
    seen = cv2.warpAffine(image, turn, (n, n), borderMode=cv2.BORDER_REFLECT)
    stays = (coverage * ~lost)[..., None]
    changed = ground + stays * (image - ground)
    changed = changed + moved * (seen - changed)
    edge = cv2.morphologyEx(lost.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    edge = edge & (cv2.dilate((coverage > 0.5).astype(np.uint8), np.ones((3, 3))) > 0)
    moved_edge = cv2.warpAffine(edge.astype(np.uint8), turn, (n, n), flags=cv2.INTER_NEAREST)
    wide = np.ones((max(3, n // 40),) * 2, np.uint8)
    near = cv2.morphologyEx(
        edge.astype(np.uint8) | moved_edge, cv2.MORPH_CLOSE, np.ones((max(3, n // 14),) * 2, np.uint8)
    )
    near = cv2.dilate(near, wide)
    difference = np.abs(changed - image).max(2) > 0.03
    return changed, np.where(near > 0, ANOMALOUS, np.where(difference, UNCLEAR, 0)).astype(np.uint8)


def _crumbs(image: Array, ground: Array, coverage: Array, rng: Generator) -> tuple[Array, Array]:
    """A bite is missing, and crumbs of the object lie beside it."""
    n = len(image)
    changed, target = _bite(image, ground, coverage, rng)
    rows, columns = np.nonzero(target == ANOMALOUS)
    inside = np.argwhere(coverage > 0.9)
    if not len(rows) or not len(inside):
        return changed, target
    axis = np.arange(n, dtype=np.float32)
    for _ in range(int(rng.integers(2, 12))):
        pick = rng.integers(len(rows))
        x, y = columns[pick] + rng.normal(0, 0.08 * n), rows[pick] + rng.normal(0, 0.08 * n)
        radius = n * np.exp(rng.uniform(np.log(0.006), np.log(0.035)))
        shape = np.clip(radius * (1 + wavy(n, rng, 0.4)) - np.hypot(axis[None] - x, axis[:, None] - y), 0, 1)
        colour = image[tuple(inside[rng.integers(len(inside))])] * rng.uniform(0.6, 1.3)
        changed = changed + shape[..., None] * (colour - changed)
        target = np.where(shape > 0.3, ANOMALOUS, target).astype(np.uint8)
    return changed, target


Break = Callable[[Array, Array, Array, Generator], tuple[Array, Array]]
BREAKS: dict[str, Break] = {"half": _half, "bite": _bite, "piece": _piece, "split": _split, "crumbs": _crumbs}
"""Each takes image and ground `[n, n, 3]`, the object's coverage `[n, n]` and a random stream."""
