"""BMAD's layout: images in `img`, masks of anomalous and normal images in `label` beside them, a split `valid`."""

from pathlib import Path

from tests.support.layouts import write_image, write_mask


def write_bmad(root: Path, masks: str = "label") -> Path:
    """Writes 2 training, 1 normal and 3 anomalous test images, and returns the root."""
    for i in range(2):
        write_image(root / f"train/good/{i}.png")
    for split in ("valid", "test"):
        write_image(root / split / "good/img/0.png")
        write_mask(root / split / f"good/{masks}/0.png", value=0)
        for i in range(3):
            write_image(root / split / f"Ungood/img/{i}.png")
            write_mask(root / split / f"Ungood/{masks}/{i}.png", value=1)
    return root
