"""Writers of tiny directory trees in the datasets' true layouts; one file per dataset."""

import os
import re
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 20, 14  # not square, so that swapped axes show


def write_image(path: Path, by_name: bool = False) -> Path:
    """Writes an RGB image whose pixels depend on its path in the test's folder, and returns its path.

    No two images of a test are alike: where one is trained on and its copy tested on, that is refused.

    Args:
        path: The image.
        by_name: Let the pixels follow from its name alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(zlib.crc32(os.fsencode(path.name if by_name else _place(path))))
    Image.fromarray(generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
    return path


def _place(path: Path) -> str:
    """Returns the relative path of an image, the same on every machine and in every run of the tests."""
    parts = path.parts
    start = next((number + 2 for number, part in enumerate(parts) if re.fullmatch(r"pytest-\d+", part)), 0)
    return "/".join(parts[start:])


def write_mask(path: Path, value: int = 255) -> Path:
    """Writes a grey mask with a block of 6 columns and 4 rows of `value`, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:6, 10:16] = value
    Image.fromarray(mask).save(path)
    return path
