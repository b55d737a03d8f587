"""MVTec AD 2's layout: public images with masks inside the part, private ones without folders of kinds."""

from collections.abc import Iterable
from pathlib import Path

from afclip_lightning.datasets.mvtec_ad_2 import MVTecAD2
from tests.support.layouts import write_image, write_mask


def write_mvtec_ad_2(root: Path, categories: Iterable[str] = MVTecAD2.published) -> Path:
    """Writes per category 2 training, 2 validation, 1 + 2 public, 2 private and 1 mixed images; returns the root."""
    for folder in (root / category for category in categories):
        for i in (0, 1):
            write_image(folder / f"train/good/{i:03}_regular.png")
            write_image(folder / f"validation/good/{i + 10:03}_regular.png")
            write_image(folder / f"test_public/bad/{i:03}_regular.png")
            write_mask(folder / f"test_public/ground_truth/bad/{i:03}_regular_mask.png")
            write_image(folder / f"test_private/{i:03}_regular.png")
        write_image(folder / "test_public/good/000_overexposed.png")
        write_image(folder / "test_private_mixed/000_mixed.png")
    return root
