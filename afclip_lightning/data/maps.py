"""Anomaly maps on disk: NumPy arrays, TIFF and PNG."""

from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from afclip_lightning.data.images import decode_image
from afclip_lightning.errors import DatasetError
from afclip_lightning.files import atomic_path

MAP_SUFFIXES = frozenset({".npy", ".tif", ".tiff", ".png"})
GREY_MODES = ("1", "L", "I", "F", "I;16", "I;16L", "I;16B")


def read_map(path: Path) -> np.ndarray:
    """Returns an anomaly map as `[H, W]`, in the type that it was saved in; float32 if `write_map` scaled it.

    Raises:
        DatasetError: The file cannot be read, or holds something else than one grey image.
    """
    if path.suffix.lower() == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DatasetError(f"{path}: cannot be read as an array ({error}). Save the map again.") from error
        values = values.reshape(values.shape[-2:]) if values.shape[:-2].count(1) == values.ndim - 2 else values
        if values.ndim != 2 or values.dtype.kind not in "fiub":
            raise DatasetError(f"{path}: expected numbers [H, W], got {values.dtype} {[*values.shape]}.")
        return values
    image = decode_image(path)
    if image.mode not in GREY_MODES:
        raise DatasetError(f"{path}: is a colour image ({image.mode}), not a map. Save scores, not their picture.")
    if {"low", "step"} <= image.info.keys():
        low, step = (float(image.info[name]) for name in ("low", "step"))
        return (low + np.asarray(image, np.float64) * step).astype(np.float32)
    return np.asarray(image)


def write_map(path: Path, anomaly_map: np.ndarray) -> None:
    """Writes a map `[H, W]` as a 16-bit PNG in one step, scaled to all of its range; `read_map` undoes that.

    The texts `low` and `step` in the file say how: value = low + pixel * step.

    Raises:
        UserError: The file cannot be written.
    """
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    step = (high - low) / 65535 or 1.0
    pixels = np.rint((anomaly_map.astype(np.float64) - low) / step).astype(np.uint16)
    texts = PngInfo()
    texts.add_text("low", repr(low))
    texts.add_text("step", repr(step))
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, "PNG", pnginfo=texts, compress_level=1)
