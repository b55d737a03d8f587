"""Random valid TIFF and PNG files against tifffile and NumPy."""

import io
from contextlib import suppress

import numpy as np
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from afclip_lightning.data.images import read_image
from afclip_runtime.errors import DatasetError
from afclip_runtime.images.picture import upright
from afclip_runtime.images.reader import read, read_shape

ANY = settings(max_examples=60, deadline=None, derandomize=True)
COMPRESSIONS = st.sampled_from([None, "zlib", "lzw", "packbits", "zstd"])


@st.composite
def tiffs(draw: st.DrawFn) -> tuple[bytes, np.ndarray, int]:
    """Returns a TIFF file, the values that it shows, `[H, W, 1 or 3]`, and the largest that they may have."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    colours = draw(st.sampled_from([1, 3]))
    alpha = draw(st.sampled_from([None, "assocalpha", "unassalpha"]))
    dtype = np.dtype(draw(st.sampled_from(["u1", "u2"])))
    samples = colours + bool(alpha)
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    stored = generator.integers(0, np.iinfo(dtype).max, (height, width, samples), dtype=dtype, endpoint=True)
    photometric = "rgb" if colours == 3 else draw(st.sampled_from(["minisblack", "miniswhite"]))
    planes = draw(st.booleans()) and samples > 1
    orientation = draw(st.integers(1, 8))
    compression = draw(COMPRESSIONS)
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, byteorder=draw(st.sampled_from(["<", ">"])), bigtiff=draw(st.booleans())) as file:
        if draw(st.booleans()):
            file.write(np.zeros((2, 3), np.uint8), subfiletype=1)
        for page in range(draw(st.integers(1, 3))):
            file.write(
                np.moveaxis(stored, -1, 0) if planes else stored[..., 0] if samples == 1 else stored,
                photometric=photometric,
                planarconfig=None if samples == 1 else "separate" if planes else "contig",
                extrasamples=[alpha] if alpha else None,
                compression=compression,
                predictor=draw(st.booleans()) if compression not in (None, "packbits") and page == 0 else None,
                rowsperstrip=draw(st.sampled_from([None, 1, 2])),
                extratags=[(274, 3, 1, orientation, True)],
                metadata=None,
            )
    shown = stored[..., :colours]
    if photometric == "miniswhite":
        shown = np.iinfo(dtype).max - shown
    return buffer.getvalue(), upright(shown, orientation), int(np.iinfo(dtype).max)


@ANY
@given(tiffs())
def test_tiff(made: tuple[bytes, np.ndarray, int]) -> None:
    content, values, white = made
    picture = read(content)
    np.testing.assert_array_equal(picture.values.reshape(values.shape), values)
    assert 2**picture.bits - 1 == white
    assert picture.shape == read_shape(content)[0] == values.shape[:2]
    expected = np.rint(values / (white / 255)).astype(np.uint8)
    np.testing.assert_array_equal(read_image(content), np.broadcast_to(expected, (*values.shape[:2], 3)))
    try:
        image = Image.open(io.BytesIO(content))
    except (OSError, ValueError):  # Pillow does not know the kind
        return
    np.testing.assert_array_equal(read_image(image), read_image(content))


@ANY
@given(
    dtype=st.sampled_from(["i1", "i2", "i4", "i8", "u4", "u8", "f2", "f4", "f8"]),
    orientation=st.integers(1, 8),
    order=st.sampled_from(["<", ">"]),
    compression=COMPRESSIONS,
    seed=st.integers(0, 99),
)
def test_tiff_of_other_numbers_is_read_as_it_is(
    dtype: str, orientation: int, order: str, compression: str | None, seed: int
) -> None:
    values = np.random.default_rng(seed).normal(0, 40, (5, 4)).astype(dtype)
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, values, byteorder=order, compression=compression, extratags=[(274, 3, 1, orientation, True)]
    )
    found = read(buffer.getvalue()).values
    assert found.dtype.newbyteorder("=") == values.dtype
    np.testing.assert_array_equal(found, upright(values, orientation))


@ANY
@given(
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]),
    orientation=st.integers(1, 8),
    bits=st.sampled_from([1, 2, 4, 8]),
    seed=st.integers(0, 99),
)
def test_png(mode: str, orientation: int, bits: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    colours = generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(colours)
    if mode == "I;16":
        deep = generator.integers(0, 65536, (5, 7), dtype=np.uint16)
        image, shown = Image.fromarray(deep), np.rint(deep / 257).astype(np.uint8)
    elif mode == "P":
        image = image.quantize(2**bits)
        shown = np.asarray(image.convert("RGB"))
    else:
        image = image.convert(mode)
        shown = np.asarray(image.convert("RGB"))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif, **({"bits": bits} if mode == "P" else {}))
    shown = shown if shown.ndim == 3 else np.stack([shown] * 3, -1)
    np.testing.assert_array_equal(read_image(buffer.getvalue()), upright(shown, orientation))


@ANY
@given(start=st.sampled_from(["tiff", "png", "jpeg"]), data=st.data())
def test_damaged_files_are_one_error_or_a_picture(start: str, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, start)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    with suppress(DatasetError):
        assert read_image(bytes(content)).shape[2] == 3
