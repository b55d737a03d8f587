"""DICOM files, with the grey values that the file prescribes for display; needs the extra `dicom`."""

from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from afclip_runtime.errors import DatasetError, install_extra
from afclip_runtime.images.limits import check_size
from afclip_runtime.images.picture import Picture, inverted, widened

if TYPE_CHECKING:
    from pydicom import Dataset

FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
JPEG_AND_OTHERS = "1.2.840.10008.1.2.4."
LOSSY = frozenset(JPEG_AND_OTHERS + end for end in ("50", "51", "81"))  # JPEG, JPEG-LS near-lossless
PERHAPS_LOSSY = frozenset(JPEG_AND_OTHERS + end for end in ("91", "93", "203"))  # JPEG 2000
# Sequences in which an enhanced object keeps elements that other objects have at the top level.
SHOWN_BY = (
    ("PixelValueTransformationSequence", ("RescaleSlope", "RescaleIntercept", "RescaleType")),
    ("FrameVOILUTSequence", ("WindowCenter", "WindowWidth", "VOILUTFunction")),
)


def decode_dicom(file: BinaryIO, name: str, stored: bool) -> Picture:
    """Returns the frame of a DICOM file with a single frame.

    Grey values are rescaled to their unit. Then the file's first VOI table is applied or, without one, its first
    window. Without either, 8-bit values stay as they are, and the range of other values, without padding, is stretched
    to 8 bits. `MONOCHROME1` is inverted, so that larger = brighter.

    Args:
        file: The file.
        name: Name of the image in messages.
        stored: Whether to return the stored values, as for a mask: of the above only `MONOCHROME1` is inverted.

    Raises:
        DatasetError: pydicom or its decompressor of the pixels is not installed, or the file has several frames, a
            palette, or colours of more than 8 bits.
    """
    try:
        from pydicom.pixels import get_decoder, pixel_array
    except ImportError as error:
        raise DatasetError(f"{name}: DICOM files need pydicom. Install it: {install_extra('dicom')}.") from error
    data = _read(file, name)
    syntax = data.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not get_decoder(syntax).is_available:
        raise DatasetError(
            f"{name}: its pixels are compressed ({syntax.name}), and their decompressor is not installed. Install "
            f"it: {install_extra('dicom')}; or save the file uncompressed."
        )
    kind, values = data.PhotometricInterpretation, pixel_array(data)  # [H, W] or [H, W, 3], YBR converted to RGB
    lossy = None if syntax in PERHAPS_LOSSY else syntax in LOSSY
    if values.ndim == 3 and values.dtype == np.uint8:
        bits = 8
    elif values.ndim == 3 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise DatasetError(f"{name}: {kind} with {data.BitsStored} bits is not read. Save it as grey or 8-bit RGB.")
    elif stored:
        bits = int(data.BitsStored) if values.dtype.kind == "u" else 0
        if kind == "MONOCHROME1":
            values = inverted(values, bits)
        values, bits = widened(values, bits)
    else:
        values, bits = _shown(values, data, kind == "MONOCHROME1"), 8
    return Picture(name, values, bits, values.shape[:2], lossy=lossy)


def dicom_shape(file: BinaryIO, name: str) -> tuple[int, int]:
    """Returns height and width of the image in a DICOM file.

    Raises:
        DatasetError: pydicom is not installed, or the image is too large.
    """
    data = _read(file, name, stop_before_pixels=True)
    return int(data.Rows), int(data.Columns)


def _read(file: BinaryIO, name: str, stop_before_pixels: bool = False) -> "Dataset":
    try:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
    except ImportError as error:
        raise DatasetError(f"{name}: DICOM files need pydicom. Install it: {install_extra('dicom')}.") from error
    try:
        data = dcmread(file, stop_before_pixels=stop_before_pixels)
    except InvalidDicomError as error:
        raise DatasetError(
            f"{name}: cannot be read as an image (it does not start like a DICOM file: 128 bytes, then DICM). Export "
            "it again as DICOM, or correct its suffix."
        ) from error
    if "Rows" not in data or "Columns" not in data:
        what = data.get("SOPClassUID")
        raise DatasetError(f"{name}: holds no picture ({getattr(what, 'name', what)}). Remove the file.")
    check_size(name, int(data.Columns), int(data.Rows))
    frames = int(data.get("NumberOfFrames") or 1)
    if frames > 1:
        raise DatasetError(f"{name}: holds {frames} frames. Save each as a file of its own.")
    return data


def _shown(values: np.ndarray, data: "Dataset", white_is_low: bool) -> np.ndarray:
    """Converts stored grey values `[H, W]` to display values, uint8."""
    from pydicom.pixels import apply_modality_lut, apply_voi

    shown_by = _lifted(data)
    padding = padding_of(values, data)
    numbers = apply_modality_lut(values, shown_by).astype(np.float64)
    bits, table = int(data.BitsStored), _first_table(data)
    if table is not None:
        depth = int(table.LUTDescriptor[2])
        bright = apply_voi(apply_modality_lut(values, shown_by), data).astype(np.float64) / (2**depth - 1)
        padding = None
    elif (window := _window(shown_by)) is not None:
        bright, padding = _through_window(numbers, *window), None
    elif bits <= 8 and values.dtype.kind == "u" and _keeps_order(shown_by):
        bright = values / (2**bits - 1)
    else:
        seen = numbers if padding is None or padding.all() else numbers[~padding]
        low, high = seen.min(), seen.max()
        bright = (numbers - low) / max(high - low, 1e-9)
    bright = np.clip(bright, 0, 1)
    if white_is_low:
        bright = 1 - bright
    if padding is not None:  # background, not part of the image
        bright[padding] = 0
    return np.rint(255 * bright).astype(np.uint8)


def _lifted(data: "Dataset") -> "Dataset":
    """Returns the elements that prescribe the display of values.

    For an enhanced object they come from its functional groups. Those of the frame take precedence.
    """
    from pydicom import Dataset

    found = Dataset()
    found.file_meta = data.file_meta  # it has the byte order of tables of 16-bit words
    names = [name for _, keywords in SHOWN_BY for name in keywords]
    for keyword in ("ModalityLUTSequence", "PixelRepresentation", "BitsStored", *names):
        if keyword in data:
            found[keyword] = data[keyword]
    for groups in FUNCTIONAL_GROUPS:
        for group in list(data.get(groups) or ())[:1]:
            for sequence, keywords in SHOWN_BY:
                for item in list(group.get(sequence) or ())[:1]:
                    for keyword in keywords:
                        if keyword in item:
                            found[keyword] = item[keyword]
    return found


def _keeps_order(shown_by: "Dataset") -> bool:
    """Returns whether rescaling is linear and increasing, so that the stored values give the same display."""
    return "ModalityLUTSequence" not in shown_by and float(shown_by.get("RescaleSlope") or 1) > 0


def _first_table(data: "Dataset") -> "Dataset | None":
    """Returns the first VOI table if it is complete. pydicom prefers it over a window."""
    for item in list(data.get("VOILUTSequence") or ())[:1]:
        if item.get("LUTDescriptor") is not None and item.get("LUTData") is not None:
            return item
    return None


def _window(data: "Dataset") -> tuple[float, float, str] | None:
    """Returns centre, width and function of the first window, or `None` without a window."""
    if data.get("WindowCenter") in (None, "") or data.get("WindowWidth") in (None, ""):
        return None
    center, width = (float(np.atleast_1d(value)[0]) for value in (data.WindowCenter, data.WindowWidth))
    return center, width, str(data.get("VOILUTFunction") or "LINEAR").upper()


def _through_window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """Applies a window. Returns brightness, 0 for black and 1 for white, not clipped to this range.

    Reference: DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3.

    Raises:
        ValueError: The function is unknown, or the width is not in its range.
    """
    if function == "LINEAR" and width == 1:
        return (values > center - 0.5).astype(np.float64)
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or not width > (function == "LINEAR"):
        raise ValueError(f"a window of width {width:g} with the function {function}; correct or remove it")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR":
        return (values - (center - 0.5)) / (width - 1) + 0.5
    return (values - center) / width + 0.5


def padding_of(values: np.ndarray, data: "Dataset") -> np.ndarray | None:
    """Returns which stored values are padding, `[H, W]`, bool; `None` if the file defines no padding."""
    if data.get("PixelPaddingValue") is None:
        return None
    limits = [data.PixelPaddingValue]
    if data.get("PixelPaddingRangeLimit") is not None:
        limits.append(data.PixelPaddingRangeLimit)
    numbers = [_as_stored(limit, values.dtype, int(data.BitsAllocated)) for limit in limits]
    return (values >= min(numbers)) & (values <= max(numbers))


def _as_stored(value: Any, dtype: np.dtype, allocated: int) -> int:
    """Returns a padding value with the sign of the stored values, which some files write as unsigned."""
    number = int.from_bytes(value, "little") if isinstance(value, bytes) else int(value)
    return number - 2**allocated if dtype.kind == "i" and number >= 2 ** (allocated - 1) else number
