"""DAGM's layout: upper-case suffixes, masks in `Label` beside the images, anomalous images in both splits."""

from collections.abc import Iterable
from pathlib import Path

from tests.support.layouts import write_image, write_mask


def write_dagm(root: Path, categories: Iterable[str]) -> Path:
    """Writes 1 normal and 1 anomalous training image, 2 normal and 3 anomalous test images per category."""
    for category in categories:
        for split, normal, anomalous in (("Train", 1, 1), ("Test", 2, 3)):
            folder = root / category / split
            for i in range(normal + anomalous):
                write_image(folder / f"{i:04}.PNG")
            for i in range(anomalous):
                write_mask(folder / f"Label/{i:04}_label.PNG")
            (folder / "Label/Labels.txt").write_text("1\n")
    return root
