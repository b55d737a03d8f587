"""Grey images and masks as PNG files."""

from pathlib import Path

import numpy as np
from PIL import Image

from afclip_runtime.files.writing import atomic_path


def write_png(path: Path, pixels: np.ndarray, durable: bool = True) -> None:
    """Writes a grey image losslessly and atomically, without metadata.

    Args:
        path: The file.
        pixels: `[H, W]`, uint8 or uint16. Or a mask, bool, which is written as 0 and 255.
        durable: See `atomic_path`.

    Raises:
        UserError: The file cannot be written.
    """
    grey = pixels.astype(np.uint8) * np.uint8(255) if pixels.dtype == np.bool_ else pixels
    with atomic_path(path, durable) as temporary:
        Image.fromarray(grey).save(temporary, "PNG", compress_level=1)
