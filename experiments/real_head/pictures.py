"""Draws pairs of pictures for the real head: a flawless one and its anomalous twin, with the targets of the patches.

Four sources, in shares of `SOURCES`: the scenes of `experiments.tiny_clip.generator` (43 families, 15 kinds of
defect), the 12 products of the demo, crops of photos that scikit-image ships (public domain or CC0) with defects drawn
onto them, and objects that are broken, on plain and on photographed grounds. All go through a camera that varies more
than theirs do.

Images are `[n, n, 3]`, float32, RGB in [0, 1] until the camera.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
import skimage.data
from numpy.random import Generator
from numpy.typing import NDArray

from afclip_lightning.components.synthesis import DraemSynthesis
from afclip_lightning.datasets import procedural
from experiments.real_head import broken, zones
from experiments.tiny_clip import generator as scenes

Array = NDArray[Any]

SIZE = 252  # pixels: what the tower takes
VISIBLE = 8  # grey levels; a smaller change does not count
AREA = (0.0008, 0.4)  # least and greatest share of the picture that an anomaly covers
NORMAL, ANOMALOUS, UNCLEAR = 0, 1, 2  # what the pixels of a target say; nothing is learnt from the third

# Photos of scikit-image without copyright: NASA, SpaceX or CC0, as its documentation says.
PHOTOS = ("astronaut", "brick", "camera", "cell", "chelsea", "coffee", "grass", "gravel", "moon", "retina", "rocket")
OTHER_PHOTOS = ("clock", "coins", "immunohistochemistry", "page", "text", "hubble_deep_field", "stereo_motorcycle")
"""Photos that validate and never train."""
TEXTURE_PHOTOS = ("brick", "grass", "gravel")

HELD_OUT_FAMILIES = ("bricks", "pinwheel", "gabor", "marble", "pebbles", "washer", "leaf", "heart", "comb", "box")
HELD_OUT_PRODUCTS = ("leather", "metal", "bottle", "capsule")


@dataclass(frozen=True)
class Pair:
    """A flawless picture and its anomalous twin.

    Attributes:
        normal: `[SIZE, SIZE, 3]`, uint8, RGB.
        anomalous: The same with an anomaly.
        target: `[SIZE, SIZE]`, uint8: `NORMAL`, `ANOMALOUS` or `UNCLEAR`, of the anomalous one.
        source: Source of the picture, and its kinds: `scene/bricks/crack`.
    """

    normal: Array
    anomalous: Array
    target: Array
    source: str


Drawn = tuple[Array, Array, Array | None, str]  # flawless, changed, target if the difference is not it, what


def draw(seed: int, index: int, held_out: bool = False) -> Pair:
    """Returns pair number `index` of a seed: the same arguments and library versions give the same bytes.

    Args:
        seed: Seed of the whole series.
        index: Number of the pair.
        held_out: Whether to draw what never trains: other families, products and photos.
    """
    for attempt in range(100):
        what, defect, camera = (
            np.random.default_rng(s) for s in np.random.SeedSequence([seed, index, attempt, held_out]).spawn(3)
        )
        shares = np.array([share for share, _ in SOURCES.values()])
        name = str(what.choice(list(SOURCES), p=shares / shares.sum()))
        pair = photographed(SOURCES[name][1](what, defect, held_out), camera, name)
        if pair is not None:
            return pair
    raise RuntimeError(f"pair {index} of seed {seed} could not be drawn")


def photographed(drawn: Drawn, rng: Generator, name: str) -> Pair | None:
    """Returns the twins as seen by one camera, or `None` if the anomaly is too small, too large or too faint."""
    flawless, changed, target, what = drawn
    state = rng.bit_generator.state
    normal = camera(flawless, rng)
    rng.bit_generator.state = state
    anomalous = camera(changed, rng)
    if target is None:
        before, after = (cv2.resize(i, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for i in (flawless, changed))
        difference = np.abs(before.clip(0, 1) - after.clip(0, 1)).max(2) * 255
        mask = cv2.medianBlur((difference >= VISIBLE).astype(np.uint8), 3)
        target = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    else:
        target = cv2.resize(target, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)
    inside = target == ANOMALOUS
    if not AREA[0] <= inside.mean() <= AREA[1]:
        return None
    seen = np.abs(normal.astype(np.int16) - anomalous).max(2)[inside]
    if np.sort(seen)[-40:].mean() < 18:
        return None
    return Pair(normal, anomalous, target, f"{name}/{what}")


def camera(image: Array, rng: Generator) -> Array:
    """Returns an image `[n, n, 3]` as seen by a camera, `[SIZE, SIZE, 3]`, uint8.

    Uneven light, exposure, colour cast, contrast, grey film, blur, noise, a detour over fewer pixels, compression.
    """
    image = cv2.resize(image.astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    image = image.clip(0, 1)
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    if rng.random() < 0.5:
        across, down, edge = (*rng.normal(0, 0.12, 2), rng.uniform(0, 0.3))
        light = 1 + across * axis[None] + down * axis[:, None] - edge * (axis[None] ** 2 + axis[:, None] ** 2) / 2
        image = image * light[..., None].astype(np.float32)
    gain = rng.uniform(0.6, 1.3) * (1 + rng.normal(0, 0.05, 3))
    grey = image.mean(2, keepdims=True)
    image = grey + np.float32(rng.uniform(0.4, 1.3) if rng.random() < 0.75 else 0.0) * (image - grey)
    middle = image.mean()
    image = middle + np.float32(rng.uniform(0.6, 1.2)) * (image - middle)
    image = np.clip(image * gain.astype(np.float32), 0, 1) ** np.float32(np.exp(rng.normal(0, 0.25)))
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.6))
    noise = rng.uniform(0, 0.04) * (rng.random() < 0.6)
    grain = rng.standard_normal((SIZE, SIZE, 3 if rng.random() < 0.5 else 1), np.float32)
    seen = (np.clip(image + noise * grain, 0, 1) * 255 + 0.5).astype(np.uint8)
    if rng.random() < 0.2:
        fewer = int(SIZE * rng.uniform(0.4, 0.9))
        seen = cv2.resize(cv2.resize(seen, (fewer, fewer), interpolation=cv2.INTER_AREA), (SIZE, SIZE))
    if rng.random() < 0.4:
        coded = cv2.imencode(".jpg", seen[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 95))])[1]
        seen = cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1]
    return np.ascontiguousarray(seen)


# -------------------------------------------------------------------------------------------------------- sources


def _scene(what: Generator, defect: Generator, held_out: bool) -> Drawn:
    """A scene of the tiny CLIP's generator, at a size of drawing that varies: lines become coarser or finer."""
    trained = [name for name in scenes.TRAINED if name not in HELD_OUT_FAMILIES]
    family = str(what.choice(HELD_OUT_FAMILIES if held_out else trained))
    scene = scenes.draw_scene(family, what, int(what.choice((128, 168, 224, 300))))
    return _damaged(_surface(scene, what) if family in scenes.TEXTURES else scene, defect, family)


def _surface(scene: scenes.Scene, rng: Generator) -> scenes.Scene:
    """Returns a texture as a lit plate, sometimes with its edges or with streaks."""
    image, coverage = scene.image, scene.coverage
    if rng.random() < 0.3:
        image = zones.streaked(image, rng)
    if rng.random() < 0.4:
        image, coverage = zones.framed(image, rng)
    return scenes.Scene(image.astype(np.float32), scene.behind, coverage, scene.colour)


def _damaged(scene: scenes.Scene, rng: Generator, name: str) -> Drawn:
    image = np.clip(scene.image, 0, 1)
    scene = scenes.Scene(image, scene.behind, scene.coverage, scene.colour)
    if rng.random() < 0.1:
        return image, _perlin(image, rng), None, f"{name}/perlin"
    if rng.random() < (0.25 if scene.coverage.mean() > 0.7 else 0.05):
        return image, zones.zone(image, scene.coverage, rng), None, f"{name}/zone"
    kind = str(rng.choice(scenes.KIND_NAMES))
    changed = np.clip(scenes.KINDS[kind].draw(scene, rng), 0, 1)
    return image, changed.astype(np.float32), None, f"{name}/{kind}"


def _perlin(image: Array, rng: Generator) -> Array:
    """Returns the image with a texture inside Perlin noise, as in DRAEM."""
    synthesis = DraemSynthesis(transparency=(0.0, 0.7))
    shape = image.shape[:2]
    mask = synthesis.draw_mask(shape, rng, 14)[..., None]
    texture = synthesis.draw_texture(shape, rng, None).astype(np.float32) / 255
    beta = rng.uniform(0, 0.7)
    return np.where(mask, (1 - beta) * texture + beta * image, image).astype(np.float32)


def _product(what: Generator, defect: Generator, held_out: bool) -> Drawn:
    """A product of the demo with one of its own defects."""
    trained = [name for name in procedural.CATEGORIES if name not in HELD_OUT_PRODUCTS]
    category = str(what.choice(HELD_OUT_PRODUCTS if held_out else trained))
    image, foreground = procedural.render(category, what, 280)
    kind = str(defect.choice(list(procedural.DEFECTS)))
    changed, mask = procedural.draw_defect(kind, image, foreground, defect, defect.uniform())
    return image.transpose(1, 2, 0), changed.transpose(1, 2, 0), mask.astype(np.uint8), f"{category}/{kind}"


def _photo(what: Generator, defect: Generator, held_out: bool) -> Drawn:
    """A crop of a photo as ground, with a drawn defect on it."""
    name = _photo_name(what, held_out)
    image = crop(photo(name), what, 252)
    behind = np.broadcast_to(image.mean((0, 1)) * np.float32(what.uniform(0.05, 0.5)), image.shape)
    scene = scenes.Scene(image, behind.astype(np.float32), np.ones(image.shape[:2], np.float32), 0)
    return _damaged(_surface(scene, what), defect, name)


def _photo_name(rng: Generator, held_out: bool) -> str:
    if held_out:
        return str(rng.choice(OTHER_PHOTOS))
    return str(rng.choice(TEXTURE_PHOTOS if rng.random() < 0.6 else PHOTOS))


@cache
def photo(name: str) -> Array:
    """Returns a photo of scikit-image, `[H, W, 3]`, float32 in [0, 1]."""
    image = getattr(skimage.data, name)()
    image = image[0] if isinstance(image, tuple) else image  # the left one of a stereo pair
    image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., :3]
    return image.astype(np.float32) / 255


def crop(image: Array, rng: Generator, size: int) -> Array:
    """Returns a random square of a photo, turned, mirrored and recoloured, `[size, size, 3]`."""
    height, width = image.shape[:2]
    side = int(min(height, width) * rng.uniform(0.3, 0.95))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    part = np.rot90(image[top : top + side, left : left + side], rng.integers(4))
    part = part[:, ::-1] if rng.random() < 0.5 else part
    part = cv2.resize(np.ascontiguousarray(part), (size, size), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.6:
        part = part * rng.uniform(0.5, 1.3, 3).astype(np.float32)
    return np.clip(part, 0, 1)


def _broken(what: Generator, defect: Generator, held_out: bool) -> Drawn:
    """An object that is broken, on a plain, a drawn or a photographed ground; some are cut out of a photo's texture."""
    trained = [name for name in scenes.OBJECTS if name not in HELD_OUT_FAMILIES and name not in ("fern", "letter")]
    objects = [name for name in scenes.OBJECTS if name in HELD_OUT_FAMILIES]
    family = str(what.choice(objects if held_out else trained))
    scene = scenes.draw_scene(family, what, int(what.choice((200, 252, 300))))
    ground = scene.behind
    choice = what.random()
    if choice < 0.45:
        ground = broken.plain_ground(len(ground), what)
    elif choice < 0.6:
        ground = crop(photo(_photo_name(what, held_out)), what, len(ground))
    cover = scene.coverage[..., None]
    image = scene.image
    if what.random() < 0.35:
        texture = crop(photo(_photo_name(what, held_out)), what, len(ground))
        image = image * (0.4 + 1.2 * texture)
    image = np.clip(ground + cover * (image - ground), 0, 1).astype(np.float32)
    if not 0.02 <= scene.coverage.mean() <= 0.9:
        return image, image, np.zeros(image.shape[:2], np.uint8), family
    if defect.random() < 0.3:
        return _damaged(scenes.Scene(image, ground, scene.coverage, scene.colour), defect, family)
    kind = str(defect.choice(list(broken.BREAKS)))
    changed, target = broken.BREAKS[kind](image, ground, scene.coverage, defect)
    return image, np.clip(changed, 0, 1).astype(np.float32), target, f"{family}/{kind}"


Source = Callable[[Generator, Generator, bool], Drawn]
SOURCES: dict[str, tuple[float, Source]] = {
    "scene": (0.45, _scene),
    "product": (0.10, _product),
    "photo": (0.20, _photo),
    "broken": (0.25, _broken),
}


def sheet(pairs: Sequence[Pair], across: int = 6) -> Array:
    """Returns a sheet of pairs to look at: flawless, anomalous, target."""
    cells = [np.hstack([p.normal, p.anomalous, np.repeat(p.target[..., None] * 120, 3, 2)]) for p in pairs]
    rows = [np.hstack(cells[i : i + across]) for i in range(0, len(cells) - across + 1, across)]
    return np.vstack(rows)
