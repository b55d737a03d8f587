"""BTAD's layout: images of 01 and 03 are BMP and of 02 PNG; masks of 01 and 02 are PNG and of 03 BMP."""

from pathlib import Path

from tests.support.layouts import write_image, write_mask


def write_btad(root: Path) -> Path:
    """Writes all categories with 1 training, 1 normal and 2 anomalous test images, and returns the root."""
    for category, image, mask in (("01", "bmp", "png"), ("02", "png", "png"), ("03", "bmp", "bmp")):
        write_image(root / category / f"train/ok/0000.{image}")
        write_image(root / category / f"test/ok/0001.{image}")
        for i in (0, 1):
            write_image(root / category / f"test/ko/{i:04}.{image}")
            write_mask(root / category / f"ground_truth/ko/{i:04}.{mask}")
    return root
