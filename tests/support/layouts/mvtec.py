"""MVTec AD's layout: 2 training, 1 normal and 2 + 1 anomalous test images per category."""

from collections.abc import Iterable
from pathlib import Path

from tests.support.layouts import write_image, write_mask


def write_mvtec(
    root: Path,
    categories: Iterable[str],
    train: int = 2,
    defects: tuple[str, str] = ("crack", "stain"),
    by_name: bool = False,
) -> Path:
    """Writes the categories and returns the root; see `write_image` for `by_name`."""
    for folder in (root / category for category in categories):
        for i in range(train):
            write_image(folder / f"train/good/{i:03}.png", by_name)
        write_image(folder / "test/good/000.png", by_name)
        for defect, i in ((defects[0], 0), (defects[0], 1), (defects[1], 0)):
            write_image(folder / f"test/{defect}/{i:03}.png", by_name)
            write_mask(folder / f"ground_truth/{defect}/{i:03}_mask.png")
    return root


def write_magnetic_tile(root: Path) -> Path:
    """Writes the one category directly into the root, which is returned."""
    return write_mvtec(root, ["."], defects=("blowhole", "fray"))
