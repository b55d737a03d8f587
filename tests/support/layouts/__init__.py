"""Writers of tiny directory trees in the datasets' true layouts; one file a dataset."""

import os
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 20, 14  # not square, so that swapped axes show


def write_image(path: Path) -> Path:
    """Writes an RGB image whose pixels follow from its name, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(zlib.crc32(os.fsencode(path.name)))
    Image.fromarray(generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
    return path


def write_mask(path: Path, value: int = 255) -> Path:
    """Writes a grey mask with a block of 6 columns and 4 rows of `value`, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:6, 10:16] = value
    Image.fromarray(mask).save(path)
    return path
