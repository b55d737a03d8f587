"""TIFF files: choice of the page, colours, orientation. tifffile decodes them, as Pillow misreads many."""

import logging
from typing import BinaryIO

import numpy as np
from PIL import Image
from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile, TiffPage

from afclip_runtime.errors import DatasetError
from afclip_runtime.images.limits import MAX_PIXELS, check_size
from afclip_runtime.images.picture import Picture, inverted, upright, widened

ORIENTATION = 274
MAX_BYTES = 16 * MAX_PIXELS  # bytes of a decoded page: 8 bytes per pixel and a second plane
SEVERAL = "holds several full-size pages, of which the first is read"
REDUCED, MASK = 1, 4  # bits of NewSubfileType: a thumbnail, a transparency mask
GREY = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE)
JPEG = {COMPRESSION.JPEG, COMPRESSION.OJPEG, COMPRESSION.ALT_JPEG, COMPRESSION.JPEG_LOSSY}
LOSSY = JPEG | {
    COMPRESSION.APERIO_JP2000_YCBC, COMPRESSION.APERIO_JP2000_RGB, COMPRESSION.JPEG_2000_LOSSY,
}  # fmt: skip
PERHAPS_LOSSY = {COMPRESSION.JPEG2000, COMPRESSION.JPEGXR, COMPRESSION.WEBP, COMPRESSION.JPEGXL, COMPRESSION.LERC}

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # our error reports damaged files


def decode_tiff(file: BinaryIO, name: str, page: int | None = None) -> Picture:
    """Returns a page of a TIFF file.

    Args:
        file: The file.
        name: Name of the image in messages.
        page: Number of the page. By default the first that is not a thumbnail.

    Raises:
        DatasetError: The image is too large, or of a kind that is not supported.
    """
    with TiffFile(file, name="image") as tiff:
        number, several = (page, False) if page is not None else _choose(tiff)
        chosen = _page(tiff, number)
        _check(chosen, name)
        if chosen.photometric == PHOTOMETRIC.YCBCR and chosen.compression not in JPEG:
            values, bits = _with_pillow(file, number), 8
            orientation = 1  # Pillow applies the orientation
        else:
            values, bits = _colours(chosen, name)
            orientation = orientation_of(chosen)
        lossy = None if chosen.compression in PERHAPS_LOSSY else chosen.compression in LOSSY
    values = upright(values, orientation)
    notes = (SEVERAL,) if several else ()
    return Picture(name, values, bits, values.shape[:2], orientation, lossy, notes)


def tiff_header(file: BinaryIO, name: str) -> tuple[int, int, int]:
    """Returns stored height and width, and the orientation, of the page that is read.

    Raises:
        DatasetError: The image is too large.
    """
    with TiffFile(file, name="image") as tiff:
        page = _page(tiff, _choose(tiff)[0])
        check_size(name, page.imagewidth, page.imagelength)
        return page.imagelength, page.imagewidth, orientation_of(page)


def orientation_of(page: TiffPage) -> int:
    """Returns the orientation of a page, 1 to 8."""
    tag = page.tags.get(ORIENTATION)
    return int(tag.value) if tag is not None and tag.value in range(1, 9) else 1


def _page(tiff: TiffFile, number: int) -> TiffPage:
    page = tiff.pages[number]
    assert isinstance(page, TiffPage)
    return page


def _choose(tiff: TiffFile) -> tuple[int, bool]:
    """Returns the number of the first full-size page (else 0), and whether there are more full-size pages."""
    if not len(tiff.pages):
        raise ValueError("it has no page")
    first = None
    for number in range(len(tiff.pages)):
        if _page(tiff, number).subfiletype & (REDUCED | MASK):
            continue
        if first is not None:
            return first, True
        first = number
    return first or 0, False


def _check(page: TiffPage, name: str) -> None:
    """Checks a page before it is decoded.

    Raises:
        DatasetError: The page is too large, or not an image.
    """
    check_size(name, page.imagewidth, page.imagelength)
    if page.imagedepth > 1:
        raise DatasetError(f"{name}: is a volume of {page.imagedepth} layers. Save each as a file of its own.")
    if page.dtype is None or page.dtype.kind not in "biuf":
        kind = page.dtype or f"{page.bitspersample} bits"
        raise DatasetError(f"{name}: has samples of {kind}, which are not read. Save it with 8 or 16 bits.")
    tile = page.tilewidth * page.tilelength if page.is_tiled else 0
    samples = page.samplesperpixel
    if max(page.imagewidth * page.imagelength, tile) * samples * page.dtype.itemsize > MAX_BYTES:
        raise DatasetError(
            f"{name}: has {samples} samples per pixel, or tiles, that are too much for memory. Save it as grey or RGB."
        )


def _colours(page: TiffPage, name: str) -> tuple[np.ndarray, int]:
    """Returns the values of a page, not yet upright, and their bits: `[H, W]` or RGB `[H, W, 3]`, larger = brighter.

    Raises:
        DatasetError: The colours are not supported.
    """
    kind = page.photometric
    values = page.asarray()
    if values.dtype.kind == "b":
        values = values.view(np.uint8)
    bits = page.bitspersample if values.dtype.kind == "u" else 0
    if page.samplesperpixel == 1:
        values = values.reshape(page.imagelength, page.imagewidth)
    elif page.planarconfig == 2:
        values = np.moveaxis(values.reshape(page.samplesperpixel, page.imagelength, page.imagewidth), 0, -1)
    if kind == PHOTOMETRIC.PALETTE:
        return _palette(page, values if values.ndim == 2 else values[..., 0]), 8
    if kind == PHOTOMETRIC.SEPARATED and values.shape[2:] and values.shape[2] >= 4 and bits:
        return _without_ink(values, bits), bits
    if kind in GREY:
        # some files declare grey and contain colours
        alike = values.ndim == 3 and values.shape[2] >= 3 and not any(page.extrasamples)
        values = values if values.ndim == 2 else values[..., :3] if alike else values[..., 0]
        if kind == PHOTOMETRIC.MINISWHITE:
            values = inverted(values, bits)
        return widened(values, bits)
    if kind in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR) and values.ndim == 3 and values.shape[2] >= 3:
        return widened(values[..., :3], bits)
    raise DatasetError(
        f"{name}: its colours ({getattr(kind, 'name', kind)}, {page.samplesperpixel} samples per pixel) are not read. "
        "Save it as grey or RGB."
    )


def _palette(page: TiffPage, values: np.ndarray) -> np.ndarray:
    if page.colormap is None:
        raise ValueError("it has no palette")
    colours: np.ndarray = page.colormap
    if colours.max() > 255:  # else it has 8 bits, which libtiff accepts, too
        colours = colours >> 8
    return colours.astype(np.uint8).T[values]


def _without_ink(values: np.ndarray, bits: int) -> np.ndarray:
    """Converts CMYK values to RGB by Pillow's rule: white minus ink, times white minus black."""
    white = 2**bits - 1
    left = white - values[..., :4].astype(np.float64)
    return np.rint(left[..., :3] * left[..., 3:] / white).astype(values.dtype)


def _with_pillow(file: BinaryIO, page: int) -> np.ndarray:
    """Converts a page in YCbCr to RGB. libtiff supports its chroma subsampling."""
    file.seek(0)
    with Image.open(file, formats=("TIFF",)) as image:
        image.seek(page)
        return np.asarray(image.convert("RGB"))
