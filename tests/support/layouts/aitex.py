"""AITEX's layout, with strips of 4 squares instead of 16: a strip with two masks, one without, and a nested folder."""

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 8


def write_aitex(root: Path) -> Path:
    """Writes 2 defect-free and 3 defective strips, and returns the root."""
    for name in (
        "NODefect_images/2306881-210020u/0001_000_05.png",
        "NODefect_images/2311517-195063u/0002_000_06.png",
        "Defect_images/Defect_images/0003_002_00.png",
        "Defect_images/Defect_images/0044_019_04.png",
        "Defect_images/Defect_images/0094_027_05.png",
    ):
        _write(root / name, range(0, 4 * SIDE), 90)
    _write(root / "Mask_images/0003_002_00_mask.png", range(6, 10), 255)  # across the edge of squares 0 and 1
    _write(root / "Mask_images/0044_019_04_mask1.png", range(0, 2), 255)
    _write(root / "Mask_images/0044_019_04_mask2.png", range(30, 32), 255)
    return root


def _write(path: Path, columns: range, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((SIDE, 4 * SIDE), np.uint8)
    pixels[2:5, columns.start : columns.stop] = value
    Image.fromarray(pixels).save(path)
