"""DICOM files as 8-bit images; needs the extra `dicom`."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from afclip_lightning.data.limits import check_size
from afclip_lightning.errors import DatasetError

if TYPE_CHECKING:
    from pydicom import Dataset


def decode_dicom(path: Path) -> Image.Image:
    """Returns the only frame of a DICOM file, as 8 bits grey or RGB.

    Grey values are rescaled to their unit, then cut to the file's first window or, if it names none, to their own
    range. `MONOCHROME1` is turned round, so that bright is bright.

    Raises:
        DatasetError: pydicom is not installed, or what it needs to decompress the pixels, or the file has several
            frames, a palette, or colours of more than 8 bits.
    """
    try:
        from pydicom import dcmread
        from pydicom.pixels import apply_modality_lut, get_decoder, pixel_array
    except ImportError as error:
        raise DatasetError(
            f"{path}: DICOM files need pydicom. Install it: pip install 'afclip_lightning[dicom]'."
        ) from error
    file = dcmread(path)
    check_size(path, file.Columns, file.Rows)
    frames = int(file.get("NumberOfFrames") or 1)
    if frames > 1:
        raise DatasetError(f"{path}: holds {frames} frames. Save each as a file of its own.")
    syntax = file.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not (decoder := get_decoder(syntax)).is_available:
        packages = " or ".join(missing.rpartition("requires ")[2] for missing in decoder.missing_dependencies)
        raise DatasetError(
            f"{path}: its pixels are compressed ({syntax.name}), and pydicom needs more packages to read them. Install "
            f"{packages}, or save the file uncompressed."
        )
    kind, values = file.PhotometricInterpretation, pixel_array(file)  # [H, W] or [H, W, 3], YBR turned to RGB
    if values.ndim == 3 and values.dtype == np.uint8:
        return Image.fromarray(values)
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise DatasetError(f"{path}: {kind} with {file.BitsStored} bits is not read. Save it as grey or 8-bit RGB.")
    values = apply_modality_lut(values, file).astype(np.float64)
    low, high = _window(file) or (values.min(), values.max())
    bright = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    return Image.fromarray(np.rint(255 * (1 - bright if kind == "MONOCHROME1" else bright)).astype(np.uint8))


def _window(file: "Dataset") -> tuple[float, float] | None:
    """Returns the values that are shown black and white, or `None` if the file names no window.

    Reference: DICOM PS3.3, C.11.2.1.2.1 (linear).
    """
    if file.get("WindowCenter") is None or file.get("WindowWidth") is None:
        return None
    center, width = (float(np.atleast_1d(value)[0]) for value in (file.WindowCenter, file.WindowWidth))
    return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
