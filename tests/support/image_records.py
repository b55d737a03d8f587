"""Images of a category with their records."""

import numpy as np
import torch

from afclip_lightning.metrics import region_areas
from afclip_lightning.metrics.image_counts import ImageCounts, ImageRecord


def categories(images=12, side=32, seed=0):
    """Returns maps, masks, labels and image scores; every third is normal, and some scores are tied."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(images) % 3 > 0).astype(int)
    masks = np.zeros((images, side, side), np.uint8)
    for mask, label in zip(masks, labels, strict=True):
        for _ in range(2 * label):
            top, left = rng.integers(0, side - 8, 2)
            mask[top : top + rng.integers(2, 8), left : left + rng.integers(2, 8)] = 1
    hard = rng.normal(size=(images, 1, 1)) * 0.5
    maps = 1 / (1 + np.exp(-(rng.normal(size=masks.shape) + hard + 1.5 * masks))).astype(np.float32)
    maps[:, ::4] = maps[:, ::4].round(2)
    return maps, masks, labels, maps.max((1, 2)).round(2)


def regions(mask):
    """Returns the area of the region of each pixel of a mask."""
    return torch.from_numpy(region_areas(mask))


def records_of(maps, masks, labels, scores, names=None):
    """Returns the images, called by their numbers."""
    names = names or [f"{i:02}" for i in range(len(maps))]
    return [
        ImageRecord(name, int(label), float(score), ImageCounts.of(torch.from_numpy(scored), regions(mask)))
        for name, scored, mask, label, score in zip(names, maps, masks, labels, scores, strict=True)
    ]
