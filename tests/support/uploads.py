"""Noise as a picture, and as an uploaded file."""

import io

import numpy as np
from PIL import Image


def picture(seed: int = 0, width: int = 60, height: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()
