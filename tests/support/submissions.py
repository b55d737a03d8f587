"""Maps as another program writes them for the miniature of MVTec AD 2, and a submission made of them."""

import zlib
from pathlib import Path

import numpy as np

from afclip_lightning.cli import submit as command
from afclip_lightning.datasets.mvtec_ad_2 import MVTecAD2
from afclip_lightning.inspection.submission.layout import items_of
from tests.support.layouts import HEIGHT, WIDTH

PARTS = ("test_private", "test_private_mixed", "validation", "test_public")


def write_maps(root: Path, folder: Path, shape: tuple[int, int] = (HEIGHT, WIDTH), dtype: str = "float32") -> Path:
    """Writes maps of all images as `.npy`, their values from their names around 0.5, and returns the folder."""
    for category in MVTecAD2.published:
        for part in PARTS:
            for item in items_of(MVTecAD2(root), category, part):
                path = folder / f"{item.key}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                generator = np.random.default_rng(zlib.crc32(item.key.encode()))
                np.save(path, (0.5 + 0.001 * generator.standard_normal(shape)).astype(dtype))
    return folder


def submit(root: Path, *args: str) -> int:
    """Runs the command on a dataset."""
    return command.main(["--root", str(root), "--num_workers", "0", *args])
