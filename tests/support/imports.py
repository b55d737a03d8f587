"""Exports of annotation tools that tests write by hand, and what is made of them."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from afclip_lightning.cli.datasets import main
from afclip_lightning.data.images import read_mask
from afclip_lightning.datasets.listing import Listing
from afclip_lightning.types import Sample

WIDTH, HEIGHT = 40, 30


def write_images(folder: Path, *names: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """Writes images, each of its own colour, and returns their folder."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number + 1, len(name), sum(name.encode()) % 256)).save(path)
    return folder


def write_json_file(path: Path, content: Any) -> Path:
    """Writes an export and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def import_set(kind: str, export: Path, images: Path, *options: str) -> tuple[int, Path]:
    """Runs the command, and returns its exit code and the folder of the set, `set` beside the images."""
    out = images.parent / "set"
    return main(["import", str(export), "--from", kind, "--images", str(images), "--out", str(out), *options]), out


def samples_of(folder: Path, split: str = "test") -> dict[str, Sample]:
    """Returns the samples of all categories of a set by the path of the image below `images/`."""
    dataset = Listing(folder)
    found = [
        sample
        for category in dataset.find_categories()
        for sample in dataset.find_samples(category, split)  # type: ignore[arg-type]
    ]
    return {sample.image_path.relative_to(folder / "images").as_posix(): sample for sample in found}


def mask_of(folder: Path, name: str) -> np.ndarray:
    """Returns the mask of an image of a set, `[H, W]`, bool."""
    sample = samples_of(folder)[name]
    assert sample.mask_path is not None, f"{name} has no mask"
    return read_mask(sample.mask_path).astype(bool)


def box(left: int, top: int, right: int, bottom: int, size: Sequence[int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """Returns the mask of a box in whole pixels, right and bottom beyond its last pixel."""
    mask = np.zeros((size[1], size[0]), bool)
    mask[top:bottom, left:right] = True
    return mask


def png_text(mask: np.ndarray) -> str:
    """Returns a mask as a PNG of 0 and 1 in base64, as LabelMe embeds it."""
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
