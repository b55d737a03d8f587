"""Pseudo anomalies as in DRAEM: thresholded noise gives a region, and a texture is blended into it.

All random numbers come from the generator that is passed in. The anomaly of an image therefore does not depend on the
image's content, the batch, the order, the process or the global seeds.
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.data.images import read_image
from afclip_lightning.types import Sample
from afclip_runtime.errors import DatasetError
from afclip_runtime.images.find import walk_images

Array = NDArray[Any]  # NumPy's stubs do not keep the type
Shape = tuple[int, int]  # height and width in pixels

# DRAEM's ten texture augmentations, each as the nearest one of albumentations; see `DraemSynthesis`.
AUGMENTATIONS: tuple[Callable[[], A.ImageOnlyTransform | A.DualTransform], ...] = (
    lambda: A.RandomGamma((50, 200), p=1),
    lambda: A.RandomBrightnessContrast((-30 / 255, 30 / 255), (-0.2, 0.2), p=1),
    lambda: A.Sharpen((0.0, 0.5), (1.0, 1.0), p=1),
    lambda: A.HueSaturationValue((-35, 35), (-50, 50), (0, 0), p=1),  # ±50 of 255 is ±35 of OpenCV's 180 hues
    lambda: A.Solarize((32 / 255, 128 / 255), p=0.5),
    lambda: A.Posterize((1, 7), p=1),
    lambda: A.InvertImg(p=1),
    lambda: A.AutoContrast(p=1),
    lambda: A.Equalize(p=1),
    lambda: A.Rotate((-45, 45), p=1),
)


def generator_of(sample: Sample, seed: int) -> Generator:
    """Returns the random generator of an image. It is the same on every machine, in any batch or process.

    An image is identified by its dataset, category, split, folder name and file name, not by the dataset's location.

    Args:
        sample: The image.
        seed: Seed, 0 or more.
    """
    identity = "/".join([sample.dataset, sample.category, sample.split, *sample.image_path.parts[-2:]])
    return np.random.default_rng([seed, *identity.encode()])


def perlin_noise(shape: Shape, cells: tuple[int, int], rng: Generator) -> Array:
    """Returns Perlin noise `[H, W]`, float64, about -1 to 1: random unit gradients on a lattice, with a quintic fade.

    The image may have any size. Pixel i of n lies at the real position i · cells / n of the lattice. The noise is a sum
    over lattice points of row weight, gradient and column weight, and only the two nearest points per axis have a
    weight. It is therefore two matrix products. A cell need not have a whole number of pixels, as it must in DRAEM's
    code.

    Args:
        shape: Height and width in pixels.
        cells: Lattice cells down and across.
        rng: Random stream.
    """
    (weight_y, offset_y), (weight_x, offset_x) = (_lattice(n, c) for n, c in zip(shape, cells, strict=True))
    angle = rng.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    down = (weight_y * offset_y) @ np.cos(angle) @ weight_x.T
    across = weight_y @ np.sin(angle) @ (weight_x * offset_x).T
    noise: Array = math.sqrt(2) * (down + across)
    return noise


def _lattice(length: int, cells: int) -> tuple[Array, Array]:
    """Returns the weights of the lattice points and the distances to them in cells, `[length, cells + 1]` each."""
    offset = np.arange(length)[:, None] * cells / length - np.arange(cells + 1)
    near = np.clip(1 - np.abs(offset), 0, 1)
    return near**3 * (near * (6 * near - 15) + 10), offset


class TextureSource(ABC):
    """Source of the textures of pseudo anomalies.

    Attributes:
        needs_reference: Whether `draw` needs a reference image.
    """

    needs_reference: ClassVar[bool] = False

    @abstractmethod
    def draw(self, shape: Shape, rng: Generator, reference: Array | None) -> NDArray[np.uint8]:
        """Returns a texture `[H, W, 3]`, uint8, RGB.

        Args:
            shape: Height and width in pixels.
            rng: Random stream.
            reference: `[H', W', 3]`, uint8, RGB; `None` unless the source needs one.
        """


class FolderTextures(TextureSource):
    """Textures from the images of a folder and its subfolders, resized to the shape: DTD in DRAEM's paper.

    The selection depends on the number of images and their order by path, not on the folder's location.

    Args:
        folder: The folder.

    Raises:
        DatasetError: There is no such folder, or no image in it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.images = walk_images(self.folder)
        if not self.images:
            problem = "holds no image" if self.folder.is_dir() else "is not a folder"
            raise DatasetError(
                f"The folder of textures {self.folder} {problem}. Set `folder` to images of textures, such as the "
                "Describable Textures Dataset, or leave `textures` out to have them drawn."
            )

    def draw(self, shape: Shape, rng: Generator, reference: Array | None) -> NDArray[np.uint8]:
        """Returns one of the images. See `TextureSource.draw`.

        Raises:
            DatasetError: The image cannot be read.
        """
        return _resize(read_image(self.images[rng.integers(len(self.images))]), shape)


class ReferenceTextures(TextureSource):
    """Textures from crops of a reference image, upsampled to the shape: material of the product in the wrong place.

    Args:
        share: Smallest and largest side of a crop, as a share of the reference's height and width.

    Raises:
        ValueError: The shares are not increasing, or not within 0 to 1.
    """

    needs_reference = True

    def __init__(self, share: tuple[float, float] = (0.2, 0.6)) -> None:
        if not 0 < share[0] <= share[1] <= 1:
            raise ValueError(f"share must rise within 0 to 1, got {share}")
        self.share = share

    def draw(self, shape: Shape, rng: Generator, reference: Array | None) -> NDArray[np.uint8]:
        """Returns a crop. See `TextureSource.draw`.

        Raises:
            ValueError: There is no reference.
        """
        if reference is None:
            raise ValueError("textures from a reference image need the reference")
        sides = [max(1, round(n * rng.uniform(*self.share))) for n in reference.shape[:2]]
        top, left = (int(rng.integers(n - side + 1)) for n, side in zip(reference.shape, sides, strict=False))
        return _resize(reference[top : top + sides[0], left : left + sides[1]], shape)


class ProceduralTextures(TextureSource):
    """Procedural textures: clouds, stripes, checks, cells and grain in three muted colours. They need no files."""

    def draw(self, shape: Shape, rng: Generator, reference: Array | None) -> NDArray[np.uint8]:
        """Returns a procedural texture. See `TextureSource.draw`."""
        pattern = _PATTERNS[rng.integers(len(_PATTERNS))](shape, rng)
        level = pattern + rng.uniform(0, 0.3) * (_grain(shape, rng) - 0.5)
        colours = (rng.uniform(0, 255, (3, 1)) + rng.uniform(-70, 70, (3, 3))).clip(
            0, 255
        )  # muted colours, as on real surfaces
        shades = [np.interp(np.arange(256), (0, 128, 255), channel) for channel in colours.T]
        palette = np.stack(shades, axis=-1).astype(np.uint8)  # [256, 3]
        return palette[(level * 255).clip(0, 255).astype(np.uint8)]


def _clouds(shape: Shape, rng: Generator) -> Array:
    cells, total = int(rng.integers(2, 9)), np.zeros(shape)
    for octave in range(4):
        total += perlin_noise(shape, (cells * 2**octave,) * 2, rng) / 2**octave
    return 0.5 + 0.6 * total


def _stripes(shape: Shape, rng: Generator) -> Array:
    along, _ = _turned(shape, rng)
    bent = rng.uniform(0, 0.5) * perlin_noise(shape, (3, 3), rng)
    return 0.5 + rng.uniform(0.5, 2) * np.sin(2 * np.pi * (rng.uniform(4, 30) * along + bent))


def _checks(shape: Shape, rng: Generator) -> Array:
    frequency, (along, across) = np.pi * rng.uniform(4, 25), _turned(shape, rng)
    return 0.5 + rng.uniform(0.5, 3) * np.sin(frequency * along) * np.sin(frequency * across)


def _cells(shape: Shape, rng: Generator) -> Array:
    away = np.ones(shape, np.uint8)
    count = int(rng.integers(30, 400))
    away[rng.integers(shape[0], size=count), rng.integers(shape[1], size=count)] = 0
    distance = cv2.distanceTransform(away, cv2.DIST_L2, 5)
    return np.asarray(distance / (3 * distance.mean()))


def _grain(shape: Shape, rng: Generator) -> Array:
    noise = rng.standard_normal(shape, dtype=np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), min(shape) * rng.uniform(0.001, 0.01), borderType=cv2.BORDER_REFLECT)
    return 0.5 + 0.25 * smooth / smooth.std()


_PATTERNS: tuple[Callable[[Shape, Generator], Array], ...] = (_clouds, _stripes, _checks, _cells, _grain)


def _turned(shape: Shape, rng: Generator) -> tuple[Array, Array]:
    """Returns coordinates along and across a random direction, `[H, W]` each, in units of the shorter side."""
    angle, scale = rng.uniform(0, np.pi), 1 / min(shape)
    y, x = np.arange(shape[0])[:, None] * scale, np.arange(shape[1])[None] * scale
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _resize(image: Array, shape: Shape) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(image, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR))


class DraemSynthesis:
    """Puts a DRAEM-like anomaly into an image.

    The mask is Perlin noise with a random resolution per axis, rotated by a random angle and thresholded. The texture
    passes three different augmentations out of ten, in random order. Inside the mask the pixel becomes
    (1 - β) A + β I, with texture A, image I and transparency β.

    A mask with too few sufficiently covered patches is almost empty to a method that sees patches, so it is drawn
    again. If no try succeeds, the threshold of the best noise is lowered until enough patches are covered. A mask is
    therefore never empty. The method makes patch labels: hard ones (anomalous from `min_coverage` on) or soft ones (the
    mask's mean in the patch). At least `min_patches` patches satisfy both.

    Differs: DRAEM's code takes only sizes that the lattice divides. It never redraws a mask. In training it leaves half
    of the images unchanged and rotates some, which is left to the caller here. The augmentations come from another
    library: gamma is shared by all channels, brightness changes the colours and not a brightness channel, sharpening
    never blurs, and posterising keeps 1 to 7 of 8 bits.

    Args:
        textures: Source of textures. The default is procedural textures; DRAEM uses `FolderTextures` on DTD.
        octaves: The noise has 2^r cells per axis, with r from 0 to `octaves - 1`, drawn per axis.
        rotation: Largest rotation angle of the noise in degrees. What rotates in from outside is not anomalous.
        threshold: Threshold of the noise. Values above it are anomalous.
        transparency: Smallest and largest β, the image's weight in the blend.
        augmentations: Number of different augmentations per texture.
        min_coverage: Share of anomalous pixels from which a patch counts as covered.
        min_patches: Number of patches that must be covered. This and `min_coverage` are ours.
        max_tries: Number of noises that are drawn before the threshold is lowered.

    Raises:
        ValueError: An argument is out of its range.

    Reference: DRAEM, simulated anomaly generation, with the numbers of its public code (VitjanZ/DRAEM, 2dbf673).
    """

    def __init__(
        self,
        textures: TextureSource | None = None,
        octaves: int = 6,
        rotation: float = 90.0,
        threshold: float = 0.5,
        transparency: tuple[float, float] = (0.0, 0.8),
        augmentations: int = 3,
        min_coverage: float = 0.25,
        min_patches: int = 3,
        max_tries: int = 20,
    ) -> None:
        if not 1 <= octaves <= 10:
            raise ValueError(f"octaves must be 1 to 10, got {octaves}")
        if not 0 <= rotation <= 180:
            raise ValueError(f"rotation must be 0 to 180 degrees, got {rotation}")
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must be at least 0 and below 1, got {threshold}")
        if not 0 <= transparency[0] <= transparency[1] < 1:
            raise ValueError(f"transparency must rise from at least 0 to below 1, got {transparency}")
        if not 0 <= augmentations <= len(AUGMENTATIONS):
            raise ValueError(f"augmentations must be 0 to {len(AUGMENTATIONS)}, got {augmentations}")
        if not 0 < min_coverage <= 1:
            raise ValueError(f"min_coverage must be above 0 and at most 1, got {min_coverage}")
        if min_patches < 1 or max_tries < 1:
            raise ValueError(f"min_patches and max_tries must be at least 1, got {min_patches} and {max_tries}")
        self.textures = ProceduralTextures() if textures is None else textures
        self.octaves = octaves
        self.rotation = rotation
        self.threshold = threshold
        self.transparency = transparency
        self.augmentations = augmentations
        self.min_coverage = min_coverage
        self.min_patches = min_patches
        self.max_tries = max_tries

    def synthesise(
        self,
        image: Tensor,
        rng: Generator,
        patch_size: int,
        preprocess: Preprocess,
        reference: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the image with an anomaly `[3, H, W]`, and its mask `[H, W]`, bool, true = anomalous.

        Both are on the image's device. Pixels outside the mask are unchanged, bit for bit. Normalisation is affine, so
        blending with the normalised texture equals blending pixels.

        Args:
            image: `[3, H, W]`, floating point, as the backbone takes it, of any size that holds the patches.
            rng: Random generator, for example from `generator_of`. The mask is drawn first, so that it does not depend
                on the source of textures.
            patch_size: Side of the backbone's patches in pixels.
            preprocess: Normalisation of the image. Mean 0 and deviation 1 for pixels in [0, 1].
            reference: `[3, H', W']`, normalised in the same way. It is read only if the textures need one.

        Raises:
            DatasetError: A texture cannot be read.
            ValueError: The image has fewer patches than `min_patches`, or there is no reference for textures that
                need one.
        """
        shape = (image.shape[-2], image.shape[-1])
        mask = self.draw_mask(shape, rng, patch_size)
        mean, std = (image.new_tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
        pixels = None
        if reference is not None and self.textures.needs_reference:
            pixels = preprocess.to_pixels(reference)
        texture = torch.from_numpy(self.draw_texture(shape, rng, pixels)).to(image).permute(2, 0, 1)
        beta = rng.uniform(*self.transparency)
        inside = torch.from_numpy(mask).to(image.device)
        return torch.where(inside, (1 - beta) * (texture / 255 - mean) / std + beta * image, image), inside

    def draw_mask(self, shape: Shape, rng: Generator, patch_size: int) -> NDArray[np.bool_]:
        """Returns a mask `[H, W]`, true = anomalous, in which at least `min_patches` patches are covered.

        Args:
            shape: Height and width in pixels.
            rng: Random stream.
            patch_size: Side of a patch in pixels. Pixels beyond the last whole patch belong to no patch.

        Raises:
            ValueError: The image has fewer patches than `min_patches`.
        """
        patches = (shape[0] // patch_size) * (shape[1] // patch_size)
        if patches < self.min_patches:
            raise ValueError(
                f"min_patches is {self.min_patches}, but an image of {shape[0]} × {shape[1]} pixels has {patches} "
                f"patches of {patch_size} pixels"
            )
        failed = []
        for _ in range(self.max_tries):
            noise = self.draw_noise(shape, rng)
            mask = noise > self.threshold
            covered = _patches(mask, patch_size).mean(axis=-1) >= self.min_coverage
            if covered.sum() >= self.min_patches:
                return np.asarray(mask)
            failed.append(noise)
        levels = [self._level(noise, patch_size) for noise in failed]
        nearest = int(np.argmax(levels))
        return np.asarray(failed[nearest] >= levels[nearest])

    def _level(self, noise: Array, patch_size: int) -> float:
        """Returns the threshold of the noise at which `min_patches` patches are covered."""
        pixels = math.ceil(self.min_coverage * patch_size**2)
        of_patch = np.sort(_patches(noise, patch_size))[..., -pixels]
        return float(np.sort(of_patch, axis=None)[-self.min_patches])

    def draw_noise(self, shape: Shape, rng: Generator) -> Array:
        """Returns rotated Perlin noise `[H, W]`, float64, before thresholding."""
        down, across = (2 ** rng.integers(self.octaves, size=2)).tolist()
        noise = perlin_noise(shape, (down, across), rng)
        centre = ((shape[1] - 1) / 2, (shape[0] - 1) / 2)
        turn = cv2.getRotationMatrix2D(centre, rng.uniform(-self.rotation, self.rotation), 1.0)
        return np.asarray(cv2.warpAffine(noise, turn, (shape[1], shape[0])))

    def draw_texture(self, shape: Shape, rng: Generator, reference: Array | None) -> NDArray[np.uint8]:
        """Returns an augmented texture `[H, W, 3]`, uint8, RGB. See `TextureSource.draw`."""
        texture = self.textures.draw(shape, rng, reference)
        for index in rng.choice(len(AUGMENTATIONS), self.augmentations, replace=False):
            change = AUGMENTATIONS[index]()
            change.set_random_state(rng, random.Random(int(rng.integers(2**63))))
            texture = change(image=texture)["image"]
        return texture


def _patches(array: Array, side: int) -> Array:
    """Returns the values of every whole patch, `[h, w, side²]`."""
    h, w = array.shape[0] // side, array.shape[1] // side
    cut = array[: h * side, : w * side].reshape(h, side, w, side)
    return cut.swapaxes(1, 2).reshape(h, w, side * side)
