"""Anomaly maps on disk: NumPy arrays, TIFF and PNG."""

from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from afclip_runtime.errors import DatasetError
from afclip_runtime.files import atomic_path, open_regular
from afclip_runtime.images.limits import check_size
from afclip_runtime.images.reader import read

MAP_SUFFIXES = frozenset({".npy", ".tif", ".tiff", ".png"})


def read_map(path: Path) -> np.ndarray:
    """Returns an anomaly map `[H, W]` in its saved type, or in float32 if `write_map` scaled it.

    Raises:
        DatasetError: The file cannot be read, or is not a single grey image.
    """
    if path.suffix.lower() == ".npy":
        return _read_array(path)
    found = read(path, stored=True)
    if found.notes:
        raise DatasetError(f"{path}: {found.notes[0]}, and a map is one. Save each map as a file of its own.")
    if found.values.ndim != 2:
        raise DatasetError(f"{path}: is a colour image (RGB), not a map. Save scores, not their picture.")
    if {"low", "step"} <= found.texts.keys():
        try:
            low, step = float(found.texts["low"]), float(found.texts["step"])
        except ValueError as error:
            raise DatasetError(f"{path}: its texts `low` and `step` are not numbers. Save the map again.") from error
        return (low + found.values.astype(np.float64) * step).astype(np.float32)
    return found.values


def _read_array(path: Path) -> np.ndarray:
    """Returns the map of a NumPy file, without leading axes of length 1.

    Raises:
        DatasetError: The file cannot be read, or is not a single map.
    """
    with open_regular(path, error=DatasetError) as file:
        start = file.read(len(np.lib.format.MAGIC_PREFIX))
    if start != np.lib.format.MAGIC_PREFIX:
        reason = "it is an archive, .npz" if start[:2] == b"PK" else "it is not a NumPy file"
        raise DatasetError(f"{path}: cannot be read as an array ({reason}). Save the map with numpy.save.")
    try:
        values = np.lib.format.open_memmap(path, mode="r")  # needs no memory for a wrong size in the header
    except Exception as error:  # a damaged header raises errors of many classes
        raise DatasetError(f"{path}: cannot be read as an array ({error}). Save the map again.") from error
    if values.ndim < 2 or values.shape[:-2].count(1) != values.ndim - 2 or values.dtype.kind not in "fiub":
        raise DatasetError(f"{path}: expected numbers [H, W], got {values.dtype} {[*values.shape]}.")
    height, width = values.shape[-2:]
    check_size(path, width, height)
    return np.array(values.reshape(height, width))


def write_map(path: Path, anomaly_map: np.ndarray) -> None:
    """Writes a map `[H, W]` atomically as a 16-bit PNG, scaled to the full range. `read_map` restores the values.

    The texts `low` and `step` in the file give the scale: value = low + pixel * step.

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
