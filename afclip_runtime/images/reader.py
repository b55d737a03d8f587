"""The reader of image files: from a path, bytes or a Pillow image to a `Picture`. All of the package uses it."""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from afclip_runtime.errors import DatasetError, UserError, shown
from afclip_runtime.files import open_regular
from afclip_runtime.images.limits import check_size, too_large
from afclip_runtime.images.picture import Picture


@dataclass(frozen=True)
class Content:
    """The bytes of an image file from an archive, a table or a URL.

    Attributes:
        name: Name of the image in messages. Its suffix has the same meaning as in a path.
        data: All bytes of the file.
    """

    name: str
    data: bytes


Source: TypeAlias = Path | bytes | Content | Image.Image

# Formats that Pillow may open, regardless of the file name. None of them runs another program, as vector formats do.
FORMATS = (
    "PNG", "JPEG", "BMP", "WEBP", "GIF", "JPEG2000", "PPM", "AVIF", "DIB", "PCX", "QOI", "SGI", "SUN", "TGA",
)  # fmt: skip
SUPPORTED = "PNG, JPEG, TIFF, BMP, WebP, GIF, JPEG 2000, AVIF, PNM, TGA, PCX, SGI, QOI or DICOM"
REPLACE = "Replace the file or remove it."
DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
NAMELESS = "the image"
ORIENTATION = 0x0112
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # and big TIFF
PNG_MARK = b"\x89PNG\r\n\x1a\n"
JPEG2000_MARKS = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
SEVERAL_FRAMES = "holds several frames, of which the first is read"
DICOM_MARK = slice(128, 132)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns about large images at its own limit. Here, the limit is MAX_PIXELS, and exceeding it is an error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read(source: Source, *, draft: int | None = None, stored: bool = False) -> Picture:
    """Returns an image, mask or map: the values of the file, upright, larger = brighter, without alpha.

    The content decides the format, not the name. Of several pages the first is read, in TIFF files the first that is
    not a thumbnail. A Pillow image opened from a file gives the same result as the file. A Pillow image created in
    memory is used as it is.

    Args:
        source: A file, the bytes of a file with or without its name, or a Pillow image.
        draft: Decode a JPEG at 1/2, 1/4 or 1/8 of its size, if no side falls below this many pixels.
        stored: Whether to return the stored values of a DICOM file, as for a mask, and not its display values.

    Raises:
        DatasetError: The image cannot be read or is truncated, or has more than `MAX_PIXELS` pixels.
    """
    name = name_of(source)
    with _guarded(name):
        if isinstance(source, Image.Image):
            return _of_pillow(source, name, stored)
        with _opened(source) as file:
            return _decode(file, name, draft, stored)


def read_shape(source: Path | bytes | Content) -> tuple[tuple[int, int], int]:
    """Returns height and width of the upright image, and its EXIF orientation (1 to 8), from the header alone.

    Raises:
        DatasetError: The header cannot be read, or the image has more than `MAX_PIXELS` pixels.
    """
    name = name_of(source)
    with _guarded(name), _opened(source) as file:
        start = _start(file)
        if is_dicom(start):
            from afclip_runtime.images.dicom import dicom_shape

            return dicom_shape(file, name), 1
        if start[:4] in TIFF_MARKS:
            from afclip_runtime.images.tiff import tiff_header

            height, width, orientation = tiff_header(file, name)
        else:
            with Image.open(file, formats=_formats()) as image:
                check_size(name, *image.size)
                width, height = image.size
                # for a PNG, `image.getexif` decodes the image to find chunks after the pixels
                exif = image.getexif() if _says_more_later(file, start) else Image.Image.getexif(image)
                orientation = exif.get(ORIENTATION, 1)
    return (width, height) if _lies(orientation) else (height, width), orientation


def _says_more_later(file: BinaryIO, start: bytes) -> bool:
    """Returns whether a chunk after the pixels of a PNG file may give its orientation."""
    if not start.startswith(PNG_MARK):
        return False
    place = file.tell()
    file.seek(len(PNG_MARK))
    pixels = found = False
    while len(head := file.read(8)) == 8 and not found:
        kind = head[4:]
        found = pixels and kind in (b"eXIf", b"iTXt", b"zTXt", b"tEXt")
        pixels |= kind == b"IDAT"
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    file.seek(place)
    return found


def name_of(source: Any) -> str:
    """Returns the name of an image in messages."""
    if isinstance(source, Image.Image):
        source = getattr(source, "filename", "") or b""
    if isinstance(source, Content):
        return source.name
    return NAMELESS if isinstance(source, bytes) else str(source)


def is_dicom(start: bytes) -> bool:
    """Returns whether the first bytes of a file are those of DICOM: any 128 bytes, then `DICM`."""
    return start[DICOM_MARK] == b"DICM"


@contextmanager
def _guarded(name: str) -> Iterator[None]:
    """Converts any error of a decoder into a `DatasetError`.

    Raises:
        DatasetError: The image cannot be read. The message names it.
    """
    try:
        yield
    except DatasetError:
        raise
    except Image.DecompressionBombError as error:  # far above MAX_PIXELS
        raise too_large(name) from error
    except ModuleNotFoundError as error:
        missing = f"{error.name} reads such a file and is not installed: pip install tifffile imagecodecs"
        raise DatasetError(f"{name}: {missing}.") from error
    except UnidentifiedImageError as error:
        raise DatasetError(
            f"{name}: cannot be read as an image (it is not an image in a supported format: {SUPPORTED}). {REPLACE}"
        ) from error
    # Damaged files cause any error in decoders: OSError, SyntaxError, struct.error, RecursionError, MemoryError …
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DatasetError(f"{name}: cannot be read as an image ({reason}). {REPLACE}") from error


@contextmanager
def _opened(source: Path | bytes | Content) -> Iterator[BinaryIO]:
    if isinstance(source, (bytes, Content)):
        yield io.BytesIO(source if isinstance(source, bytes) else source.data)
    else:
        try:
            file = open_regular(source)
        except UserError as error:
            raise _unopened(source, error) from error
        with file:
            yield file


def _unopened(source: Path, error: UserError) -> DatasetError:
    """Returns the error of a file that `open_regular` does not open, with the remedy for its reason."""
    reason, _, remedy = str(error).removeprefix(shown(source)).strip(" :").partition(". ")
    cause = error.__cause__
    if isinstance(cause, PermissionError):
        remedy = "Allow it to be read."
    elif isinstance(cause, FileNotFoundError | ValueError):
        remedy = "Check the path."
    elif cause is not None:
        remedy = REPLACE
    if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
        reason = cause.strerror or str(cause)
    return DatasetError(f"{name_of(source)}: cannot be read as an image ({reason.rstrip('.')}). {remedy}")


def _start(file: BinaryIO) -> bytes:
    start = file.read(DICOM_MARK.stop)
    file.seek(0)
    return start


def _formats() -> tuple[str, ...]:
    """Returns the `FORMATS` that the installed Pillow supports."""
    if any(kind not in Image.OPEN for kind in FORMATS):
        Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def _decode(file: BinaryIO, name: str, draft: int | None, stored: bool, page: int | None = None) -> Picture:
    start = _start(file)
    if is_dicom(start) or Path(name).suffix.lower() in DICOM_SUFFIXES:
        from afclip_runtime.images.dicom import decode_dicom  # an optional package

        return decode_dicom(file, name, stored)
    if start[:4] in TIFF_MARKS:
        from afclip_runtime.images.tiff import decode_tiff  # not needed by most runs

        return decode_tiff(file, name, page)
    with Image.open(file, formats=_formats()) as image:
        check_size(name, *image.size)
        size = image.size
        if draft and image.format == "JPEG":
            image.draft(None, (draft, draft))
        bits = _pnm_bits(image)
        image.load()
        deep = _deep_colours(file)
        if bits and image.mode == "I":  # Pillow scales to 16 bits
            deep = np.rint(np.asarray(image) * ((2**bits - 1) / 65535)).astype(np.uint16), bits
        several = image.format in ANIMATED and getattr(image, "is_animated", False)
        notes = (SEVERAL_FRAMES,) if several else ()
        return _picture(image, name, size, _lossy(image.format, file), deep, notes)


def _picture(
    image: Image.Image,
    name: str,
    size: tuple[int, int],
    lossy: bool | None,
    deep: tuple[np.ndarray, int] | None = None,
    notes: tuple[str, ...] = (),
) -> Picture:
    """Returns a decoded Pillow image as a `Picture`.

    Args:
        image: The image.
        name: Name of the image in messages.
        size: Width and height in the file.
        lossy: Whether the compression of the file changed values.
        deep: Values, not yet upright, and their bits, if Pillow changes the values of the file.
        notes: Remarks for the user.
    """
    orientation = image.getexif().get(ORIENTATION, 1)
    if deep is not None:
        from afclip_runtime.images.picture import upright

        values, bits = upright(deep[0], orientation), deep[1]
    else:
        values, bits = _values(image if orientation not in _TURNS else image.transpose(_TURNS[orientation]), name)
    shape = size if _lies(orientation) else size[::-1]
    texts = {key: text for key, text in image.info.items() if isinstance(key, str) and isinstance(text, str)}
    return Picture(name, values, bits, shape, orientation, lossy, notes, texts)


def _lies(orientation: object) -> bool:
    """Returns whether the orientation exchanges rows and columns."""
    return isinstance(orientation, int) and 5 <= orientation <= 8


def _values(image: Image.Image, name: str) -> tuple[np.ndarray, int]:
    """Returns the values of a decoded Pillow image in any mode, and their bits.

    Raises:
        DatasetError: The colour mode is not supported.
    """
    mode = image.mode
    if mode in ("RGB", "L"):
        return np.asarray(image), 8
    if mode == "1":
        return np.asarray(image.convert("L")), 8
    if mode in ("LA", "La"):
        return np.ascontiguousarray(np.asarray(image)[..., 0]), 8
    if mode == "RGBa":
        return np.ascontiguousarray(np.asarray(image)[..., :3]), 8
    if mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16, copy=False), 16
    if mode == "I":
        values = np.asarray(image)
        return values, 16 if values.size and values.min() >= 0 and values.max() <= 65535 else 0
    if mode == "F":
        return np.asarray(image), 0
    if mode == "LAB":
        raise DatasetError(f"{name}: its colours (LAB) are not read. Save it as grey or RGB.")
    return np.asarray(image.convert("RGB")), 8


def _deep_colours(file: BinaryIO) -> tuple[np.ndarray, int] | None:
    """Returns the values and bits of a file whose values Pillow would change, else `None`; see `_deep_bits`."""
    file.seek(0)
    start = _start(file)
    bits = _deep_bits(file.read() if start.startswith(JPEG2000_MARKS) else start)
    if not bits:
        return None
    file.seek(0)
    content = file.read()
    import imagecodecs  # not needed by most runs

    decode = imagecodecs.png_decode if start.startswith(PNG_MARK) else imagecodecs.jpeg2k_decode
    values = decode(content)
    values = values.reshape(*values.shape[:2], -1)
    return np.ascontiguousarray(values[..., :3] if values.shape[2] >= 3 else values[..., 0]), bits


def _pnm_bits(image: Image.Image) -> int:
    """Returns the bits of a grey PNM file of 9 to 15 bits before Pillow decodes it, 0 for other files."""
    tiles = getattr(image, "tile", None)
    if image.format != "PPM" or not tiles:
        return 0
    arguments = tiles[0].args
    highest = arguments[-1] if isinstance(arguments, tuple) else 0
    whole = isinstance(highest, int) and 255 < highest < 65535 and not highest & (highest + 1)
    return int(highest).bit_length() if whole else 0


def _deep_bits(content: bytes) -> int:
    """Returns the bits of a PNG or JPEG 2000 file of more than 8 bits whose values Pillow changes, 0 for other files.

    Pillow keeps 8 bits of colours, makes the brightest colours of JPEG 2000 black, and scales grey JPEG 2000 to 16
    bits.
    """
    if content.startswith(PNG_MARK):
        return 16 if content[24:25] == b"\x10" and content[25:26] in (b"\2", b"\4", b"\6") else 0
    place = content.find(JPEG2000_MARKS[1]) if content.startswith(JPEG2000_MARKS) else -1
    if place < 0:
        return 0
    first = place + 42  # the marker SIZ ends with the number of channels and 3 bytes per channel
    channels = int.from_bytes(content[first - 2 : first], "big")
    depths = set(content[first : first + 3 * channels : 3])
    bits = max(depths, default=0) + 1  # signed channels have 128 more
    return bits if channels and len(depths) == 1 and 8 < bits <= 16 else 0


def _lossy(kind: str | None, file: BinaryIO | None) -> bool | None:
    """Returns whether the compression of a file changed values; `None` if the file does not tell."""
    if kind in ("JPEG", "MPO"):
        return True
    if kind == "WEBP" and file is not None:
        return _webp_is_lossy(file)
    return None if kind in ("WEBP", "AVIF", "JPEG2000") else False


def _webp_is_lossy(file: BinaryIO) -> bool | None:
    """Returns whether the first frame of a WebP file is lossy, by the names of its chunks."""
    file.seek(12)
    while len(head := file.read(8)) == 8:
        kind, size = head[:4], int.from_bytes(head[4:], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8 "
        # a frame of an animation contains its own chunks after 16 bytes
        file.seek(16 if kind == b"ANMF" else size + size % 2, os.SEEK_CUR)
    return None


def _of_pillow(image: Image.Image, name: str, stored: bool) -> Picture:
    """Returns a Pillow image as a `Picture`. Reads its file again if Pillow would decode it wrongly.

    Raises:
        DatasetError: The file is needed and no longer available.
    """
    check_size(name, *image.size)
    loaded = not getattr(image, "tile", None)
    kind = image.format if isinstance(image, ImageFile) else None
    right = loaded and kind == "TIFF" and _is_right(image)
    other = kind in ("PNG", "JPEG2000") or bool(_pnm_bits(image))
    if other or (kind == "TIFF" and not (right and not _may_be_mapped(image))):
        content = _own_file(image)
        if content is None and kind == "TIFF":
            raise DatasetError(
                f"{name}: Pillow does not decode every TIFF file of this kind correctly, and the file is closed. "
                "Give its path."
            )
        if content is not None and (kind in ("TIFF", "PPM") or _deep_bits(content)):
            found = _decode(io.BytesIO(content), name, None, stored, image.tell() or None)
            exchanged = _may_be_mapped(image) and _lies(found.orientation)
            if not loaded or (not right and _has_its_size(image, found)) or exchanged:
                return found
    image.load()
    return _picture(image, name, image.size, _lossy(kind, None))


def _has_its_size(image: Image.Image, found: Picture) -> bool:
    """Returns whether an image still has the size of its file, and was not resized in place."""
    tags = getattr(image, "tag_v2", {})
    size = {tags.get(256), tags.get(257)} if image.format == "TIFF" else set(found.shape)
    return size == set(image.size)


def _is_right(image: Image.Image) -> bool:
    """Returns whether Pillow decodes a TIFF file correctly, as it does for 8 bits and for 16-bit grey."""
    tags = getattr(image, "tag_v2", {})
    bits, photometric = set(tags.get(258, (1,))), tags.get(262, 1)
    deep = bits == {16} and image.mode.startswith("I;16") and photometric == 1
    thumbnail = tags.get(254, 0) & 1 and not image.tell()
    alpha = image.mode in ("La", "RGBa") or 1 in tags.get(338, ())
    return (bits <= {1, 8} or deep) and not thumbnail and not alpha


def _may_be_mapped(image: Image.Image) -> bool:
    """Returns whether Pillow (from 11.0 on) may memory-map a TIFF file with height and width exchanged.

    It does so for an uncompressed file that is rotated by 90° and opened by its path, and loses the orientation.
    """
    tags = getattr(image, "tag_v2", {})
    return bool(getattr(image, "filename", "")) and tags.get(259, 1) == 1 and image.width != image.height


def _own_file(image: Image.Image) -> bytes | None:
    """Returns the content of the file of a Pillow image; `None` if it is no longer available."""
    files: tuple[Any, Any] = (getattr(image, "fp", None), getattr(image, "_fp", None))
    for file in files:
        try:
            place = file.tell()
            file.seek(0)
            content = file.read()
            file.seek(place)
            return bytes(content)
        except (AttributeError, ValueError, OSError):  # none, closed
            continue
    path = getattr(image, "filename", "")
    try:
        with open_regular(Path(os.fsdecode(path))) as file:
            return file.read()
    except UserError:
        return None
