"""Large-scale features of textures: edges of the plate, streaks of light, and zones whose surface differs.

A zone is an anomaly (another grind, a coat that is missing, wear); edges and streaks are on flawless pictures too.
"""

from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from experiments.real_head.broken import plain_ground, wavy

Array = NDArray[Any]


def framed(image: Array, rng: Generator) -> tuple[Array, Array]:
    """Returns a texture as a plate that ends within the picture, `[n, n, 3]`, and its coverage `[n, n]`."""
    n = len(image)
    axis = np.linspace(0, 1, n, dtype=np.float32)
    tilt = rng.normal(0, 0.02, 4)
    margin = rng.exponential(0.05, 4).clip(0, 0.3) * (rng.random(4) < 0.6)
    x, y = np.meshgrid(axis, axis)
    bow = rng.normal(0, 0.06) * (rng.random() < 0.4)
    sides = (x + tilt[0] * y, 1 - x + tilt[1] * y, y + tilt[2] * x + bow * (x - 0.5) ** 2, 1 - y + tilt[3] * x)
    inside = np.min([side - m for side, m in zip(sides, margin, strict=True)], axis=0)
    cover = np.clip(inside * n / rng.uniform(1, 4) + 0.5, 0, 1).astype(np.float32)
    shade = 1 - rng.uniform(0, 0.7) * np.exp(
        -np.clip(inside, 0, 1) / rng.uniform(0.005, 0.06)
    )  # rounded edges are dark
    ground = plain_ground(n, rng)
    return ground + cover[..., None] * (image * shade[..., None] - ground), cover


def streaked(image: Array, rng: Generator) -> Array:
    """Returns an image with streaks of light along one direction, and broad shades across, `[n, n, 3]`."""
    n = len(image)
    fine = cv2.resize(rng.normal(0, 1, (1, int(rng.integers(20, n)))).astype(np.float32), (n, 1))[0]
    broad = cv2.resize(
        rng.normal(0, 1, (1, int(rng.integers(3, 7)))).astype(np.float32), (n, 1), interpolation=cv2.INTER_CUBIC
    )[0]
    light = 1 + rng.uniform(0, 0.12) * fine + rng.uniform(0, 0.25) * broad
    field = np.repeat(light[None], n, 0)
    field = field * (1 + rng.uniform(0, 0.08) * (wavy(n, rng, 1.0)))
    return (image * (field if rng.random() < 0.5 else field.T)[..., None]).astype(np.float32)


def zone(image: Array, coverage: Array, rng: Generator) -> Array:
    """Returns an image with one large zone of another surface: its tone, contrast, grain, blur, hue or direction."""
    n = len(image)
    axis = np.linspace(-1, 1, n, dtype=np.float32)
    angle = (
        rng.choice([0, np.pi / 2, np.pi, -np.pi / 2]) + rng.normal(0, 0.1)
        if rng.random() < 0.6
        else rng.uniform(0, 2 * np.pi)
    )
    along = np.cos(angle) * axis[None] + np.sin(angle) * axis[:, None]
    across = np.cos(angle) * axis[:, None] - np.sin(angle) * axis[None]
    rough = wavy(n, rng, rng.uniform(0, 0.1))
    kind = rng.random()
    if kind < 0.45:  # beyond a line
        inside = along + rough > np.quantile(along, rng.uniform(0.6, 0.95))
    elif kind < 0.65:  # a band
        at, wide = rng.uniform(-0.7, 0.7), rng.uniform(0.05, 0.3)
        inside = np.abs(along + rough - at) < wide
    elif kind < 0.8:  # a rectangle
        px, py, w, h = *rng.uniform(-0.6, 0.6, 2), *rng.uniform(0.15, 0.5, 2)
        inside = np.maximum(np.abs(along + rough - px) / w, np.abs(across + rough - py) / h) < 1
    else:  # a drop
        px, py, w, h = *rng.uniform(-0.6, 0.6, 2), *rng.uniform(0.15, 0.6, 2)
        inside = np.hypot((along + rough - px) / w, (across - py) / h) + 0.5 * rough < 1
    soft = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), float(np.exp(rng.uniform(-0.7, 2.0)))) * coverage
    changed = image
    for change in rng.choice(6, size=int(rng.integers(1, 3)), replace=False):
        changed = _CHANGES[change](changed, rng)
    return (image + soft[..., None] * (changed - image)).astype(np.float32)


def _tone(image: Array, rng: Generator) -> Array:
    return image * np.float32(np.exp(rng.choice([-1, 1]) * rng.uniform(0.15, 0.6)))


def _contrast(image: Array, rng: Generator) -> Array:
    middle = cv2.GaussianBlur(image, (0, 0), len(image) / 16)
    return middle + np.float32(rng.choice([rng.uniform(0.0, 0.5), rng.uniform(1.6, 3)])) * (image - middle)


def _blurred(image: Array, rng: Generator) -> Array:
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(1.5, 6))


def _grain(image: Array, rng: Generator) -> Array:
    grain = cv2.GaussianBlur(rng.normal(0, 1, image.shape[:2]).astype(np.float32), (0, 0), rng.uniform(0.4, 2))
    return image * (1 + np.float32(rng.uniform(0.06, 0.3)) * grain / grain.std())[..., None]


def _lines(image: Array, rng: Generator) -> Array:
    n = len(image)
    noise = cv2.resize(
        rng.normal(0, 1, (int(rng.integers(1, 8)), int(rng.integers(n // 4, n)))).astype(np.float32), (2 * n, 2 * n)
    )
    turn = cv2.getRotationMatrix2D((float(n), float(n)), float(rng.uniform(0, 180)), 1.0)
    lines = cv2.warpAffine(noise, turn, (2 * n, 2 * n), borderMode=cv2.BORDER_REFLECT)[
        n // 2 : n // 2 + n, n // 2 : n // 2 + n
    ]
    return image * (1 + np.float32(rng.uniform(0.06, 0.25)) * lines)[..., None]


def _hue(image: Array, rng: Generator) -> Array:
    return image * (1 + rng.normal(0, 0.25, 3)).astype(np.float32)


_CHANGES = (_tone, _contrast, _blurred, _grain, _lines, _hue)
