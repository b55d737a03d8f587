"""Joint preprocessing of image and mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import albumentations as A
import cv2
import numpy as np
import torch
from torch import Tensor

from afclip_runtime.types import ImageSize, height_and_width
from afclip_runtime.views.frame import BLANK, Frame, Interpolation, Resize, into_frame, place
from afclip_runtime.views.roi import Roi, clear_in_view

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """Converts a decoded image and its mask to the input of the backbone.

    A mask is resized like its image, with the same filter, and thresholded at half. This is the papers' rule for test
    masks.

    Attributes:
        image_size: Size of the backbone's input frame in pixels: the side of a square, or height and width.
        mean: Mean of the three channels, of values in [0, 1].
        std: Standard deviation of the three channels.
        rule: How an image is fitted to that size: see `place`.
        interpolation: Filter of the resizing.
    """

    image_size: ImageSize
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    rule: Resize = "squash"
    interpolation: Interpolation = "bicubic"

    @property
    def frame(self) -> Frame:
        """The input frame of the backbone."""
        return Frame(self.image_size, self.rule, self.interpolation)

    @property
    def shape(self) -> tuple[int, int]:
        """Returns height and width of the frame."""
        return height_and_width(self.image_size)

    def __call__(self, image: np.ndarray, mask: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """Returns the normalised image `[3, H, W]`, float32, and the mask `[H, W]`, at the backbone's size.

        Args:
            image: `[h, w, 3]`, uint8, RGB.
            mask: `[h, w]`, uint8 in {0, 1}; `None` if nothing is marked.
        """
        resized, resized_mask = self.resize(image, mask)
        return self.to_tensors([resized])[0], self.to_masks([resized_mask])[0]

    def resize(
        self, image: np.ndarray, mask: np.ndarray | None, roi: Roi | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the image and its mask (or `None`) at the backbone's size, uint8.

        Args:
            image: `[h, w, 3]`, uint8, RGB.
            mask: `[h, w]`, uint8 in {0, 1}; `None` if nothing is marked.
            roi: Inspected part of the image. The rest is blank in the image, as during inspection, and 0 in the mask.
        """
        resized = self._put(image)
        if roi is not None:
            height, width = image.shape[:2]
            box = place(self.rule, height, width, self.image_size)
            resized[~clear_in_view(roi, (height, width), (0, 0, width, height), box, self.frame)] = BLANK
        return resized, None if mask is None else self.resize_mask(mask, roi)

    def resize_mask(self, mask: np.ndarray, roi: Roi | None = None) -> np.ndarray:
        """Returns a mask alone at the backbone's size, uint8; see `resize`."""
        resized = (self._put(mask * np.uint8(255)) > 127).astype(np.uint8)
        return resized if roi is None else resized & self.inside(roi)

    def inside(self, roi: Roi) -> np.ndarray:
        """Returns the mask of the inspected pixels in the backbone's frame, `[H, W]`, uint8, resized like any mask."""
        return _inside(self, roi)

    def _put(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        box = place(self.rule, height, width, self.image_size)
        return into_frame(image, box, self.image_size, self.interpolation)

    def to_tensors(self, images: Sequence[np.ndarray]) -> Tensor:
        """Normalises resized images. Returns `[B, 3, H, W]`, float32."""
        tables = _normalised_bytes(self.mean, self.std)
        pixels = torch.empty(len(images), 3, *self.shape)
        for row, image in zip(pixels, images, strict=True):
            for channel, table, out in zip(cv2.split(image), tables, row.numpy(), strict=True):
                cv2.LUT(channel, table, dst=out)
        return pixels

    def to_pixels(self, image: Tensor) -> np.ndarray:
        """Returns the pixels `[H, W, 3]`, uint8, of a normalised image `[3, H, W]`."""
        mean, std = (image.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        pixels = ((image * std + mean) * 255).round().clamp(0, 255).byte().permute(1, 2, 0)
        return np.ascontiguousarray(pixels.cpu().numpy())

    def to_masks(self, masks: Sequence[np.ndarray | None]) -> Tensor:
        """Stacks resized masks. Returns `[B, H, W]`, uint8, with zeros for `None`."""
        marked = torch.zeros(len(masks), *self.shape, dtype=torch.uint8)
        for row, mask in zip(marked, masks, strict=True):
            if mask is not None:
                row.copy_(torch.from_numpy(mask))
        return marked


@lru_cache(maxsize=64)
def _inside(preprocess: Preprocess, roi: Roi) -> np.ndarray:
    width, height = roi.size
    inside = preprocess.resize_mask(roi.inside(height, width).view(np.uint8))
    inside.flags.writeable = False
    return inside


# It is computed once. Computing it for every image would take as long as normalising the image.
@lru_cache
def _normalised_bytes(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Returns the normalised values of 0 to 255 in each channel, `[3, 256]`, float32."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    normalised = A.Normalize(mean, std, max_pixel_value=255.0)(image=ramp)["image"]
    return np.ascontiguousarray(normalised[0].T)
