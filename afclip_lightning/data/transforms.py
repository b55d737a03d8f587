"""Joint preprocessing of image and mask; the only module that knows the augmentation library."""

import os
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would look for a newer version on the network

import albumentations as A
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
        return np.asarray(Image.fromarray(img).resize((self.size, self.size), Image.Resampling.BICUBIC))

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

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> tuple[Tensor, Tensor]:
        """Returns the normalised image `[3, image_size, image_size]`, float32, and the mask `[image_size, image_size]`.

        Args:
            image: `[H, W, 3]`, uint8, RGB.
            mask: `[H, W]`, uint8 in {0, 1}.
        """
        return self.to_tensors(*self.resize(image, mask))

    def resize(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns image and mask at the backbone's size, uint8; they may come in different sizes."""
        squash = A.Compose([SquashResize(self.image_size)], is_check_shapes=False)
        out = squash(image=image, mask=mask)
        return out["image"], out["mask"]

    def to_tensors(self, image: np.ndarray, mask: np.ndarray) -> tuple[Tensor, Tensor]:
        """Returns a resized image, normalised, and its mask as tensors; see `__call__`."""
        normalised = A.Normalize(self.mean, self.std, max_pixel_value=255.0)(image=image)["image"]
        return torch.from_numpy(normalised).permute(2, 0, 1).contiguous(), torch.from_numpy(mask)
