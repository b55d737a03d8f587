"""KolektorSDD's layouts: as published, and as AnomalyCLIP's authors split it."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.layouts import write_image, write_mask

HEIGHT, WIDTH = 31, 10  # not a multiple of three
DEFECT = range(12, 15)  # rows of the only defect: in the middle third


def write_kolektor(root: Path) -> Path:
    """Writes 4 photographs with labels, of which `kos02/Part1` has a defect, and returns the root."""
    for folder, part in (("kos01", 0), ("kos01", 1), ("kos02", 0), ("kos02", 1)):
        path = root / folder / f"Part{part}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shades = np.arange(HEIGHT, dtype=np.uint8)[:, None] * np.ones((1, WIDTH), np.uint8)
        Image.fromarray(shades * np.uint8(8)).save(path, quality=100)
        label = np.zeros((HEIGHT, WIDTH), np.uint8)
        if (folder, part) == ("kos02", 1):
            label[DEFECT.start : DEFECT.stop, 2:5] = 255
        Image.fromarray(label).save(path.with_name(f"Part{part}_label.bmp"))
    return root


def write_kolektor_split(root: Path) -> Path:
    """Writes 2 training, 1 normal and 3 anomalous test images, and returns the root."""
    folder = root / "electrical commutators"
    for name in ("train/good/kos01_Part0.jpg", "train/good/kos01_Part1.jpg", "test/good/kos02_Part0.jpg"):
        write_image(folder / name)
    for i in range(3):
        write_image(folder / f"test/defect/kos03_Part{i}.jpg")
        write_mask(folder / f"ground_truth/defect/kos03_Part{i}_label.bmp")
    return root


def write_kolektor_2(root: Path) -> Path:
    """Writes 2 + 1 training and 1 + 2 test images, normal + anomalous, each with a mask, and returns the root."""
    for split, first, kinds in (("train", 10000, "..x"), ("test", 20000, ".xx")):
        for number, kind in enumerate(kinds, first):
            write_image(root / split / f"{number}.png")
            write_mask(root / split / f"{number}_GT.png", value=255 if kind == "x" else 0)
    return root
