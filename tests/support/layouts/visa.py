"""VisA's two layouts: 1 training, 1 normal and 2 anomalous test images per category."""

from collections.abc import Iterable
from pathlib import Path

from tests.support.layouts import write_image, write_mask


def write_visa(root: Path, categories: Iterable[str], by_name: bool = False) -> Path:
    """Writes the original layout and returns the root; see `write_image` for `by_name`."""
    lines = ["object,split,label,image,mask"]
    for c in categories:
        for i, split in enumerate(("train", "test")):
            image = write_image(root / c / f"Data/Images/Normal/{i:04}.JPG", by_name)
            lines.append(f"{c},{split},normal,{image.relative_to(root).as_posix()},")
        for i in (1, 0):
            image = write_image(root / c / f"Data/Images/Anomaly/{i:03}.JPG", by_name)
            mask = write_mask(root / c / f"Data/Masks/Anomaly/{i:03}.png", value=i + 1)
            lines.append(f"{c},test,anomaly,{image.relative_to(root).as_posix()},{mask.relative_to(root).as_posix()}")
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(lines) + "\n")
    return root


def write_visa_converted(root: Path, categories: Iterable[str]) -> Path:
    """Writes the converted layout, without the folder `1cls`, and returns the root."""
    for folder in (root / category for category in categories):
        write_image(folder / "train/good/0000.JPG")
        write_image(folder / "test/good/0001.JPG")
        for i in (0, 1):
            write_image(folder / f"test/bad/{i:03}.JPG")
            write_mask(folder / f"ground_truth/bad/{i:03}.png", value=i + 1)
    return root


def write_two_classes(root: Path, category: str, table: str) -> Path:
    """Writes the original layout with a table of a two-class split, and returns the root."""
    write_visa(root, [category])
    lines = (root / "split_csv/1cls.csv").read_text().splitlines()
    moved = [line.replace(",test,", ",train,") if "Anomaly/001" in line else line for line in lines]
    (root / f"split_csv/{table}.csv").write_text("\n".join(moved) + "\n")
    return root
