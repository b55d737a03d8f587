"""TIFF files: which page, which colours, which way up. tifffile decodes them; Pillow misreads many."""

import logging
from typing import BinaryIO

import numpy as np
from PIL import Image
from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile, TiffPage

from afclip_runtime.errors import DatasetError
from afclip_runtime.images.limits import MAX_PIXELS, check_size
from afclip_runtime.images.picture import Picture, inverted, upright, widened

ORIENTATION = 274
MAX_BYTES = 16 * MAX_PIXELS  # of all that a page decodes to: 8 bytes a pixel and a second plane
SEVERAL = "holds several full-size pages, of which the first is read"
REDUCED, MASK = 1, 4  # bits of NewSubfileType: a thumbnail, a transparency mask
GREY = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE)
JPEG = {COMPRESSION.JPEG, COMPRESSION.OJPEG, COMPRESSION.ALT_JPEG, COMPRESSION.JPEG_LOSSY}
LOSSY = JPEG | {
    COMPRESSION.APERIO_JP2000_YCBC, COMPRESSION.APERIO_JP2000_RGB, COMPRESSION.JPEG_2000_LOSSY,
}  # fmt: skip
PERHAPS_LOSSY = {COMPRESSION.JPEG2000, COMPRESSION.JPEGXR, COMPRESSION.WEBP, COMPRESSION.JPEGXL, COMPRESSION.LERC}

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it logs of a damaged file, our error says


def decode_tiff(file: BinaryIO, name: str, page: int | None = None) -> Picture:
    """Returns a page of a TIFF file.

    Args:
        file: The file.
        name: What messages call it.
        page: Which page; by default the first that is no thumbnail.

    Raises:
        DatasetError: It is too large, or of a kind that is not read.
    """
    with TiffFile(file, name="image") as tiff:
        number, several = (page, False) if page is not None else _choose(tiff)
        chosen = _page(tiff, number)
        _check(chosen, name)
        if chosen.photometric == PHOTOMETRIC.YCBCR and chosen.compression not in JPEG:
            values, bits = _with_pillow(file, number), 8
            orientation = 1  # Pillow turns it
        else:
            values, bits = _colours(chosen, name)
            orientation = orientation_of(chosen)
        lossy = None if chosen.compression in PERHAPS_LOSSY else chosen.compression in LOSSY
    values = upright(values, orientation)
    notes = (SEVERAL,) if several else ()
    return Picture(name, values, bits, values.shape[:2], orientation, lossy, notes)


def tiff_header(file: BinaryIO, name: str) -> tuple[int, int, int]:
    """Returns height and width as they lie in the file, and the orientation, of the page that is read.

    Raises:
        DatasetError: It is too large.
    """
    with TiffFile(file, name="image") as tiff:
        page = _page(tiff, _choose(tiff)[0])
        check_size(name, page.imagewidth, page.imagelength)
        return page.imagelength, page.imagewidth, orientation_of(page)


def orientation_of(page: TiffPage) -> int:
    """Returns how a page lies, 1 to 8."""
    tag = page.tags.get(ORIENTATION)
    return int(tag.value) if tag is not None and tag.value in range(1, 9) else 1


def _page(tiff: TiffFile, number: int) -> TiffPage:
    page = tiff.pages[number]
    assert isinstance(page, TiffPage)
    return page


def _choose(tiff: TiffFile) -> tuple[int, bool]:
    """Returns the number of the first full-size page, or of the first of all, and whether there are more of them."""
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
        DatasetError: It is too large, or no picture.
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
    """Returns a page's values as they lie, `[H, W]` or RGB `[H, W, 3]`, larger = brighter, and their bits.

    Raises:
        DatasetError: Its colours are not read.
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
        # some write colours without saying so
        alike = values.ndim == 3 and values.shape[2] >= 3 and not any(page.extrasamples)
        values = values if values.ndim == 2 else values[..., :3] if alike else values[..., 0]
        if kind == PHOTOMETRIC.MINISWHITE:
            values = inverted(values, bits)
        return widened(values, bits)
    if kind in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR) and values.ndim == 3 and values.shape[2] >= 3:
        return widened(values[..., :3], bits)
    raise DatasetError(
        f"{name}: its colours ({getattr(kind, 'name', kind)}, {page.samplesperpixel} samples a pixel) are not read. "
        "Save it as grey or RGB."
    )


def _palette(page: TiffPage, values: np.ndarray) -> np.ndarray:
    if page.colormap is None:
        raise ValueError("it has no palette")
    colours: np.ndarray = page.colormap
    if colours.max() > 255:  # else it was written with 8 bits, as libtiff takes it too
        colours = colours >> 8
    return colours.astype(np.uint8).T[values]


def _without_ink(values: np.ndarray, bits: int) -> np.ndarray:
    """Returns CMYK values as RGB, by the rule that Pillow has: what ink and black leave of white."""
    white = 2**bits - 1
    left = white - values[..., :4].astype(np.float64)
    return np.rint(left[..., :3] * left[..., 3:] / white).astype(values.dtype)


def _with_pillow(file: BinaryIO, page: int) -> np.ndarray:
    """Returns a page in YCbCr as RGB: libtiff knows how its samples are shared by pixels."""
    file.seek(0)
    with Image.open(file, formats=("TIFF",)) as image:
        image.seek(page)
        return np.asarray(image.convert("RGB"))
