"""The number of images that a backbone encodes, and the images in a feature store."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.store_layout import feature_files
from afclip_lightning.types import ClipFeatures


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that grows by the number of images of each pass of a backbone."""
    seen: list[int] = []
    encode = ClipBackbone.encode_image

    def counted(self: ClipBackbone, image: torch.Tensor, spec: Any) -> ClipFeatures:
        seen.append(len(image))
        return encode(self, image, spec)

    monkeypatch.setattr(ClipBackbone, "encode_image", counted)
    return seen


def make_distinct(folder: Path) -> None:
    """Gives every image of the miniature trees different pixels."""
    images = [path for path in sorted((folder / "data").rglob("*")) if path.suffix.lower() in (".png", ".jpg")]
    images = [p for p in images if "ground_truth" not in p.parts and "Masks" not in p.parts]
    for seed, path in enumerate(images):
        with Image.open(path) as image:
            size = image.size
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def images(root: Path) -> set[str]:
    """Returns the digests of the images in a store."""
    return {path.stem for path in feature_files(root)}
