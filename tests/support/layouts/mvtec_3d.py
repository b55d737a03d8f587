"""MVTec 3D-AD's layout: per category 2 training, 1 validation, 1 + 3 test images, each with coordinates and a mask."""

from collections.abc import Iterable
from pathlib import Path

from tests.support.layouts import write_image, write_mask


def write_mvtec_3d(root: Path, categories: Iterable[str]) -> Path:
    """Writes the categories and returns the root."""
    for folder in (root / category for category in categories):
        kinds = (("train/good", 2), ("validation/good", 1), ("test/good", 1), ("test/crack", 2), ("test/hole", 1))
        for kind, count in kinds:
            for i in range(count):
                write_image(folder / kind / f"rgb/{i:03}.png")
                write_image(folder / kind / f"xyz/{i:03}.tiff")
                write_mask(folder / kind / f"gt/{i:03}.png", value=0 if kind.endswith("good") else 255)
    return root
