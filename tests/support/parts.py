"""A set of two categories in the layout of MVTec AD; a test writes its images one by one."""

from pathlib import Path

import numpy as np
from PIL import Image

from afclip_lightning.datasets.mvtec_layout import MVTecLayout


class Parts(MVTecLayout):
    name = "parts"
    published = ("bolt", "nut")


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
