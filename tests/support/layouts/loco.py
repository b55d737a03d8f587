"""MVTec LOCO AD's layout, with one mask per defect: per category 2 training, 1 validation, 1 + 3 test images."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.layouts import HEIGHT, WIDTH, write_image

CONFIG = [
    {"defect_name": "missing", "pixel_value": 255, "saturation_threshold": 12, "relative_saturation": False},
    {"defect_name": "scratch", "pixel_value": 254, "saturation_threshold": 1.0, "relative_saturation": True},
    {"defect_name": "half", "pixel_value": 253, "saturation_threshold": 0.5, "relative_saturation": True},
]
KINDS = ("logical_anomalies", "structural_anomalies")


def write_defect(path: Path, value: int, *boxes: tuple[int, int, int, int]) -> Path:
    """Writes a mask in which these boxes (top, left, bottom, right) have a value, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = value
    Image.fromarray(mask).save(path)
    return path


def write_loco(root: Path, categories: Iterable[str], kinds: tuple[str, str] = KINDS) -> Path:
    """Writes the categories and returns the root."""
    first, second = kinds
    for folder in (root / category for category in categories):
        for i in range(2):
            write_image(folder / f"train/good/{i:03}.png")
        write_image(folder / "validation/good/000.png")
        write_image(folder / "test/good/000.png")
        for kind, i in ((first, 0), (first, 1), (second, 0)):
            write_image(folder / f"test/{kind}/{i:03}.png")
        truth = folder / "ground_truth"
        write_defect(truth / first / "000/000.png", 255, (1, 1, 7, 7))
        write_defect(truth / first / "000/001.png", 253, (2, 10, 6, 14), (8, 10, 12, 14))  # one defect in two parts
        write_defect(truth / first / "001/000.png", 255, (1, 1, 4, 4))  # smaller than its saturation
        write_defect(truth / second / "000/000.png", 254, (3, 3, 9, 9))
        (folder / "defects_config.json").write_text(json.dumps(CONFIG))
    return root
