"""Joint preprocessing of image and mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class SquashResize(A.DualTransform):
    """Resizes to a square and ignores the aspect ratio, with Pillow's antialiased bicubic filter.

    The papers' codes do so; OpenCV's bicubic filter has no antialiasing and gives other pixels. A mask is resized with
    the same filter and cut at half, which is the papers' rule for test masks.
    """

    def __init__(self, size: int) -> None:
        super().__init__(p=1.0)
        self.size = size

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """Returns the image `[size, size, 3]`, uint8."""
        return np.array(Image.fromarray(img).resize((self.size, self.size), Image.Resampling.BICUBIC))

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:
        """Returns the mask `[size, size]`, uint8 in {0, 1}."""
        resized = Image.fromarray(mask * np.uint8(255)).resize((self.size, self.size), Image.Resampling.BICUBIC)
        return (np.asarray(resized) > 127).astype(np.uint8)


@dataclass(frozen=True)
class Preprocess:
    """Turns a decoded image and its mask into what the backbone takes.

    Attributes:
        image_size: Side of the square that the backbone takes, in pixels.
        mean: Mean of the three channels, of values in [0, 1].
        std: Standard deviation of the three channels.
    """

    image_size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __call__(self, image: np.ndarray, mask: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """Returns the normalised image `[3, image_size, image_size]`, float32, and the mask `[image_size, image_size]`.

        Args:
            image: `[H, W, 3]`, uint8, RGB.
            mask: `[H, W]`, uint8 in {0, 1}; `None` if nothing is marked.
        """
        resized, resized_mask = self.resize(image, mask)
        return self.to_tensors([resized])[0], self.to_masks([resized_mask])[0]

    def resize(self, image: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns image and mask, if there is one, at the backbone's size, uint8."""
        squash = _squash_resize(self.image_size)
        out = squash(image=image) if mask is None else squash(image=image, mask=mask)
        return out["image"], out.get("mask")

    def resize_mask(self, mask: np.ndarray) -> np.ndarray:
        """Returns a mask without its image at the backbone's size, uint8."""
        return _squash_resize(self.image_size).apply_to_mask(mask)

    def to_tensors(self, images: Sequence[np.ndarray]) -> Tensor:
        """Returns resized images, normalised, `[B, 3, image_size, image_size]`, float32."""
        tables = _normalised_bytes(self.mean, self.std)
        pixels = torch.empty(len(images), 3, self.image_size, self.image_size)
        for row, image in zip(pixels, images, strict=True):
            for channel, table, out in zip(cv2.split(image), tables, row.numpy(), strict=True):
                cv2.LUT(channel, table, dst=out)
        return pixels

    def to_pixels(self, image: Tensor) -> np.ndarray:
        """Returns what a normalised image `[3, H, W]` was made of, `[H, W, 3]`, uint8."""
        mean, std = (image.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        pixels = ((image * std + mean) * 255).round().clamp(0, 255).byte().permute(1, 2, 0)
        return np.ascontiguousarray(pixels.cpu().numpy())

    def to_masks(self, masks: Sequence[np.ndarray | None]) -> Tensor:
        """Returns resized masks `[B, image_size, image_size]`, uint8; zeros where there is none."""
        marked = torch.zeros(len(masks), self.image_size, self.image_size, dtype=torch.uint8)
        for row, mask in zip(marked, masks, strict=True):
            if mask is not None:
                row.copy_(torch.from_numpy(mask))
        return marked


# Both are made once: for every image anew it would take as long as normalising does.
@lru_cache
def _squash_resize(size: int) -> SquashResize:
    return SquashResize(size)


@lru_cache
def _normalised_bytes(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Returns what the values 0 to 255 of each channel become, `[3, 256]`, float32."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    normalised = A.Normalize(mean, std, max_pixel_value=255.0)(image=ramp)["image"]
    return np.ascontiguousarray(normalised[0].T)
