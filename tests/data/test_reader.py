"""A file from every source: its path, its bytes, a Pillow image; and files that no source may open."""

import io
import os
import struct
import sys
from contextlib import suppress
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.data.dataset import AnomalyDataset
from afclip_lightning.data.images import image_size, read_image, read_mask, read_mask_of, upright_shape
from afclip_lightning.data.loading_options import Loading
from afclip_lightning.types import Sample
from afclip_runtime.errors import DatasetError
from afclip_runtime.images import reader
from afclip_runtime.images.picture import NEARLY_BLACK, upright
from afclip_runtime.images.reader import SEVERAL_FRAMES, read
from afclip_runtime.images.tiff import SEVERAL

RAMP = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(48, 0)
BYTES = (RAMP >> 8).astype(np.uint8)
BOX = np.zeros((64, 64), np.uint8)
BOX[10:30, 10:30] = 255


def image_of(path: Path) -> np.ndarray:
    """Returns the image of a path, after comparing it with the image from every other source."""
    found = read_image(path)
    content = path.read_bytes()
    np.testing.assert_array_equal(read_image(content), found)
    for opened in (path, io.BytesIO(content)):
        try:
            image = Image.open(opened)
        except OSError:  # Pillow does not know the kind, so nobody has such an image
            continue
        np.testing.assert_array_equal(read_image(image), found)
    for opened in (path, io.BytesIO(content)):
        with suppress(OSError, ValueError):  # Pillow does not know the kind
            image = Image.open(opened)
            image.load()
            np.testing.assert_array_equal(read_image(image), found)
    return found


def test_sixteen_bits_of_which_zero_is_white(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "w16.tif", 65535 - RAMP, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "w8.tif", 255 - BYTES, photometric="miniswhite")
    for name in ("w16.tif", "w8.tif"):
        assert image_of(tmp_path / name)[0, [0, -1], 0].tolist() == [0, 255]
    mask = tmp_path / "mask.tif"
    tifffile.imwrite(mask, (65535 - (BOX > 0) * 65535).astype(np.uint16), photometric="miniswhite")
    assert np.array_equal(read_mask(mask), BOX > 0)


def packed(values: np.ndarray, bits: int, order: str = "<") -> bytes:
    """Returns an uncompressed grey TIFF file of one strip with some bits per value. Each row starts a new byte."""
    rows = [np.unpackbits(row.astype(">u2")[:, None].view(np.uint8), axis=1)[:, 16 - bits :].ravel() for row in values]
    data = b"".join(np.packbits(row).tobytes() for row in rows)
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 122), (277, 1), (278, height)]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in [*tags, (279, len(data))])
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(f"{order}IH", 8, 9) + entries + b"\0" * 4 + data


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 10, 12, 14])
def test_packed_values_by_their_declared_bits(bits: int, order: str) -> None:
    values = RAMP >> (16 - bits)
    found = read_image(packed(values, bits, order))
    np.testing.assert_array_equal(found[..., 0], np.rint(values * (255 / (2**bits - 1))))
    assert not read(packed(values, bits, order)).remarks()


def test_twelve_bits_in_sixteen_are_reported_and_accepted_with_a_white_level(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "c.tif", RAMP >> 4)
    assert image_of(tmp_path / "c.tif").max() == 16
    assert read(tmp_path / "c.tif").remarks() == (NEARLY_BLACK,)
    assert read(tmp_path / "c.tif").remarks(white=4095) == ()
    np.testing.assert_array_equal(read_image(tmp_path / "c.tif", white=4095), image_of_packed())
    assert read_image(tmp_path / "c.tif", white=255).min() == 0  # what is above is cut
    dark = tmp_path / "dark.png"
    Image.fromarray(BYTES // 16).save(dark)
    assert read(dark).remarks() == ()  # of 8 bits there is no other white


def image_of_packed() -> np.ndarray:
    return read_image(packed(RAMP >> 4, 12))


@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha", "unspecified"])
@pytest.mark.parametrize("values", [BYTES, RAMP], ids=["8", "16"])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_alpha_is_dropped(kind: str, values: np.ndarray, colours: int, planes: str, tmp_path: Path) -> None:
    alpha = values[:, ::-1]
    stack = np.stack([*[values] * colours, alpha], 0 if planes == "separate" else -1)
    path = tmp_path / "a.tif"
    photometric = "rgb" if colours == 3 else "minisblack"
    tifffile.imwrite(path, stack, photometric=photometric, extrasamples=[kind], planarconfig=planes)
    np.testing.assert_array_equal(read_image(path)[..., 0], BYTES if values is BYTES else np.rint(values / 257))
    image_of(path)


def test_planes_are_the_same_picture_from_every_source(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "pl.tif", np.stack([RAMP] * 3), photometric="rgb", planarconfig="separate")
    assert image_of(tmp_path / "pl.tif")[0, -1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_inks(planes: str, dtype: type, tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    inks = np.asarray(Image.fromarray(rgb).convert("CMYK")).astype(dtype) * (257 if dtype is np.uint16 else 1)
    stack = np.moveaxis(inks, -1, 0) if planes == "separate" else inks
    tifffile.imwrite(tmp_path / "c.tif", stack, photometric="separated", planarconfig=planes)
    np.testing.assert_array_equal(read_image(tmp_path / "c.tif"), rgb)
    white = np.zeros((4, 5, 4), dtype)
    tifffile.imwrite(tmp_path / "white.tif", white, photometric="separated")
    assert read_mask(tmp_path / "white.tif").all()  # no ink is white, and no black mask


MODES = {
    "L": Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7) * 7),
    "I;16": Image.fromarray(np.arange(35, dtype=np.uint16).reshape(5, 7) * 1800),
    "RGB": Image.fromarray(np.arange(105, dtype=np.uint8).reshape(5, 7, 3)),
    "RGBA": Image.fromarray(np.arange(140, dtype=np.uint8).reshape(5, 7, 4)),
    "CMYK": Image.fromarray(np.arange(105, dtype=np.uint8).reshape(5, 7, 3)).convert("CMYK"),
    "P": Image.fromarray(np.arange(105, dtype=np.uint8).reshape(5, 7, 3)).quantize(8),
}


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("mode", MODES)
def test_every_orientation_of_tiff(mode: str, compression: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    MODES[mode].save(path, compression=compression)
    lying = read_image(path)
    for orientation in range(1, 9):
        MODES[mode].save(path, compression=compression, tiffinfo={274: orientation})
        found = image_of(path)
        np.testing.assert_array_equal(found, upright(lying, orientation))
        assert image_size(path)[::-1] == upright_shape(path) == found.shape[:2]


def test_orientations_are_those_of_pillow() -> None:
    values = np.arange(35, dtype=np.uint8).reshape(5, 7)
    for orientation, turn in reader._TURNS.items():
        turned = np.asarray(Image.fromarray(values).transpose(turn))
        np.testing.assert_array_equal(upright(values, orientation), turned)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "deep.png"])
def test_orientation_of_other_formats(name: str, tmp_path: Path) -> None:
    exif, path = Image.Exif(), tmp_path / name
    exif[0x0112] = 6
    if name == "deep.png":  # Pillow keeps 8 of its 16 bits
        content = imagecodecs.png_encode(np.stack([RAMP] * 3, -1))
        plain = io.BytesIO()
        Image.fromarray(BYTES).save(plain, "PNG", exif=exif)
        start = plain.getvalue().index(b"eXIf") - 4
        length = int.from_bytes(plain.getvalue()[start : start + 4], "big") + 12
        path.write_bytes(content[:33] + plain.getvalue()[start : start + length] + content[33:])
    else:
        Image.fromarray(BYTES).save(path, exif=exif, lossless=True, quality=100)
    found = image_of(path)
    assert found.shape == (64, 48, 3)
    assert found[0, 0, 0] < 5
    assert found[-1, 0, 0] > 250
    if name != "a.webp":
        assert upright_shape(path) == (64, 48)


@pytest.mark.parametrize("deep", [False, True])
def test_orientation_behind_the_pixels_of_png(deep: bool, tmp_path: Path) -> None:
    exif, path, plain = Image.Exif(), tmp_path / "a.png", io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(BYTES).save(plain, "PNG", exif=exif)
    content = plain.getvalue()
    start = content.index(b"eXIf") - 4
    length = int.from_bytes(content[start : start + 4], "big") + 12
    without = content[:start] + content[start + length :]
    without = imagecodecs.png_encode(np.stack([RAMP] * 3, -1)) if deep else without
    path.write_bytes(without[:-12] + content[start : start + length] + without[-12:])
    assert image_of(path).shape[:2] == upright_shape(path) == (64, 48)


@pytest.mark.parametrize("bits", [9, 12, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("form", ["jp2", "j2k"])
def test_deep_jpeg_2000_keeps_its_bits(form: str, channels: int, bits: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, (40, 48, channels)).astype(np.uint16)
    values[:4, :4] = 2**bits - 1  # which Pillow makes black
    stored = np.ascontiguousarray(values[..., 0] if channels == 1 else values)
    path = tmp_path / f"a.{form}"
    path.write_bytes(imagecodecs.jpeg2k_encode(stored, bitspersample=bits, reversible=True, codecformat=form))
    colours = values[..., :3] if channels > 2 else values[..., :1]
    assert read(path).bits == bits
    expected = np.broadcast_to(np.rint(colours * (255 / (2**bits - 1))).astype(np.uint8), (40, 48, 3))
    content = path.read_bytes()
    loaded = Image.open(path)
    loaded.load()  # one that was loaded from memory no longer says how deep it was
    for source in (path, content, Image.open(path), Image.open(io.BytesIO(content)), loaded):
        np.testing.assert_array_equal(read_image(source), expected)


@pytest.mark.parametrize(("highest", "bits"), [(1023, 10), (4095, 12), (1000, 16), (65535, 16)])
@pytest.mark.parametrize("plain", [False, True])
def test_grey_pnm_keeps_the_bits_that_it_declares(highest: int, bits: int, plain: bool, tmp_path: Path) -> None:
    values = np.linspace(0, highest, 48).astype(np.uint16).reshape(6, 8)
    text = " ".join(map(str, values.ravel().tolist())).encode()
    content = text if plain else values.astype(">u2").tobytes()
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P%d 8 6 %d\n" % (2 if plain else 5, highest) + content)
    found = read(path)
    assert found.bits == bits
    if highest != 1000:  # of no number of bits: scaled to 16
        np.testing.assert_array_equal(found.values, values)
    np.testing.assert_allclose(image_of(path)[..., 0], values * (255 / highest), atol=0.51)
    assert found.rgb(2**bits - 1).max() == 255


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_the_first_of_several_frames_is_read_and_reported(form: str) -> None:
    first, second = Image.fromarray(BYTES), Image.fromarray(np.ascontiguousarray(BYTES[::-1, ::-1]))
    for more in ([], [second]):
        content = io.BytesIO()
        first.save(content, form, save_all=True, append_images=more, lossless=True)
        found = read(content.getvalue())
        assert found.notes == ((SEVERAL_FRAMES,) if more else ())
        np.testing.assert_array_equal(found.grey(), BYTES)


def test_deep_colours_of_png_keep_their_bits(tmp_path: Path) -> None:
    small = np.stack([RAMP // 300] * 3, -1)
    for values in (small, small[..., :2], np.dstack([small, RAMP])):
        (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(values)))
        found = read(tmp_path / "a.png")
        assert found.bits == 16
        np.testing.assert_array_equal(found.grey(), RAMP // 300)
        image_of(tmp_path / "a.png")
        assert np.array_equal(read_mask(tmp_path / "a.png"), RAMP // 300 > 0)


def test_a_mask_is_turned_as_its_image_is(tmp_path: Path) -> None:
    image, mask = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    image[2:6, 20:28] = mask[2:6, 20:28] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "i.png", exif=exif)
    expected = upright(mask, 6) > 0
    Image.fromarray(mask).save(tmp_path / "lying.png")
    Image.fromarray(mask).save(tmp_path / "tagged.png", exif=exif)
    Image.fromarray(upright(mask, 6)).save(tmp_path / "upright.png")
    for name in ("lying.png", "tagged.png", "upright.png"):
        for source in (tmp_path / "i.png", read(tmp_path / "i.png")):
            np.testing.assert_array_equal(read_mask_of(source, tmp_path / name)[0], expected)
        sample = Sample("d", "c", "test", tmp_path / "i.png", 1, tmp_path / name)
        dataset = AnomalyDataset([sample] * 2, Preprocess(28), Loading(cache_mb=1))
        _, seen, _ = dataset[0]
        _, again, _ = dataset[0]
        assert np.array_equal(seen, again)
        assert seen.argmax() == Preprocess(28).resize_mask(expected.astype(np.uint8)).argmax()
    Image.fromarray(mask[:, 1:]).save(tmp_path / "lying.png")
    with pytest.raises(DatasetError, match=r"lying\.png: the mask is 29×20 pixels and its image .*i\.png is 20×30"):
        read_mask_of(tmp_path / "i.png", tmp_path / "lying.png")


def test_thumbnail_pages_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "t.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(np.zeros((32, 32), np.uint8), subfiletype=1)
        file.write(np.full((224, 168), 9, np.uint8))
    assert (image_of(path) == 9).all()
    assert upright_shape(path) == (224, 168)
    assert read(path).notes == ()
    with tifffile.TiffWriter(path, append=True) as file:
        file.write(np.full((224, 168), 7, np.uint8))
    assert (image_of(path) == 9).all()
    assert read(path).notes == (SEVERAL,)
    chosen = Image.open(path)
    chosen.seek(2)
    assert (read_image(chosen) == 7).all()


def test_masks_of_other_types(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "u4.tif", (BOX > 0) * np.uint32(2**31 + 5))
    tifffile.imwrite(tmp_path / "i4.tif", (BOX > 0) * np.int32(9))
    tifffile.imwrite(tmp_path / "f4.tif", (BOX > 0) * np.float32(0.25))
    tifffile.imwrite(tmp_path / "bool.tif", BOX > 0, photometric="minisblack")
    for name in ("u4.tif", "i4.tif", "f4.tif", "bool.tif"):
        np.testing.assert_array_equal(read_mask(tmp_path / name), BOX > 0)
    tifffile.imwrite(tmp_path / "bool.tif", BOX > 0)  # tifffile calls its zeros white
    np.testing.assert_array_equal(read_mask(tmp_path / "bool.tif"), BOX == 0)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "P", "I", "F", "I;16"])
def test_masks_in_every_colour_space(mode: str) -> None:
    image = Image.fromarray(BOX)
    mask = {"I;16": Image.fromarray(BOX.astype(np.uint16)), "HSV": image.convert("RGB").convert("HSV")}.get(mode)
    np.testing.assert_array_equal(read_mask(mask or image.convert(mode)), BOX > 0)


def drawn_mask() -> Image.Image:
    mask = Image.new("L", (512, 512))
    draw = ImageDraw.Draw(mask)
    draw.ellipse((100, 100, 150, 140), fill=255)
    draw.line((300, 50, 420, 200), fill=255, width=3)
    return mask


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("m.jpg", {"quality": 90}),
        ("m.webp", {"quality": 80}),
        ("m.avif", {"quality": 60}),
        ("m.jp2", {"quality_mode": "rates", "quality_layers": [40]}),
        ("m.jp2", {"quality_mode": "rates", "quality_layers": [40], "irreversible": True}),
        ("m.tif", {"compression": "jpeg", "quality": 80}),
    ],
    ids=["jpeg", "webp", "avif", "jp2_53", "jp2_97", "tiff"],
)
def test_masks_in_lossy_files_are_cut_at_half(name: str, options: dict[str, object], tmp_path: Path) -> None:
    mask, path = drawn_mask(), tmp_path / name
    if name.endswith("avif") and "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow writes no AVIF")
    mask.save(path, **options)
    found, true = read_mask(path), np.asarray(mask) > 0
    assert cv2.connectedComponents(found)[0] - 1 == 2
    assert (found != true).mean() < 1e-3
    assert read_mask(path, threshold=0).sum() >= found.sum()


@pytest.mark.parametrize("name", ["m.png", "m.webp", "m.jp2", "m.tif", "m.bmp"])
def test_masks_in_lossless_files_are_cut_at_zero(name: str, tmp_path: Path) -> None:
    Image.fromarray(BOX // 255).save(tmp_path / name, lossless=True)
    np.testing.assert_array_equal(read_mask(tmp_path / name), BOX > 0)


def test_what_pillow_made_or_changed_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    MODES["RGB"].save(path)
    smaller = Image.open(path)
    smaller.thumbnail((4, 4))
    np.testing.assert_array_equal(read_image(smaller), np.asarray(smaller))
    painted = Image.open(path)
    painted.putpixel((0, 0), (1, 2, 3))
    assert read_image(painted)[0, 0].tolist() == [1, 2, 3]
    made = MODES["RGB"].copy()
    np.testing.assert_array_equal(read_image(made), np.asarray(made))


def test_a_closed_tiff_that_pillow_misreads_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.stack([RAMP] * 3, -1), photometric="rgb")
    image = Image.open(path)
    image.load()
    path.unlink()
    with pytest.raises(DatasetError, match=r"a\.tif: Pillow does not decode .*Give its path"):
        read_image(image)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
WMF = b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<hhhhH", 0, 0, 9, 9, 72) + bytes(40)


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", [EPS, WMF, b"SIMPLE  =                    T" + bytes(3000)], ids=["eps", "wmf", "fits"]
)
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_only_the_named_formats_are_opened(
    content: bytes, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", run)
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, content):
        with pytest.raises(DatasetError, match="not an image in a supported format: PNG"):
            read_image(source)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "circle.png").symlink_to("circle.png")
    for name, said in (
        ("pipe.png", "is a named pipe, not a file). Name a file, or move it away from there."),
        ("folder.png", "is a folder, not a file). Name a file, or move it away from there."),
        ("nowhere.png", "does not exist). Check the path."),
        ("circle.png", "Too many levels of symbolic links). Replace the file or remove it."),
    ):
        for ask in (read_image, read_mask, image_size):
            with pytest.raises(DatasetError) as raised:
                ask(tmp_path / name)
            assert str(raised.value) == f"{tmp_path / name}: cannot be read as an image ({said}"


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("too deep"), ValueError("odd"), struct.error("short")])
def test_whatever_a_decoder_raises_is_one_error(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(BYTES).save(tmp_path / "a.png")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(reader, "_values", fail)
    for source in (tmp_path / "a.png", Image.fromarray(BYTES)):
        with pytest.raises(DatasetError, match=r"cannot be read as an image .*Replace"):
            read_image(source)


@pytest.mark.parametrize("dtype", ["c8", "f4", "f2", "i2"])
def test_numbers_of_which_none_is_white_are_named(dtype: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((4, 5), -7, dtype))
    with pytest.raises(DatasetError, match=r"a\.tif: (holds|has samples of) .*16 bits"):
        read_image(tmp_path / "a.tif")


def page_of(**tags: int) -> bytes:
    """Returns a TIFF file with one page and very few pixels."""
    numbers = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "offset": 273}
    numbers |= {"samples": 277, "rows": 278, "bytes": 279}
    values = {"bits": 8, "compression": 1, "photometric": 1, "offset": 150, "samples": 1, "rows": 5, "bytes": 9, **tags}
    entries = b"".join(struct.pack("<HHII", number, 4, 1, values[name]) for name, number in numbers.items())
    return b"II*\0" + struct.pack("<IH", 8, len(numbers)) + entries + bytes(40)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (page_of(width=2**31, height=2**31), "has more than 134,217,728 pixels"),
        (page_of(width=10000, height=10000, samples=60000), "has 60000 samples per pixel"),
        (page_of(width=0, height=5), "has 0×5 pixels"),
        (page_of(width=50, height=50), "cannot be read as an image"),
        (b"II*\0\0\0\0\0", "it has no page"),
    ],
    ids=["terabytes", "samples", "nothing", "cut off", "no page"],
)
def test_headers_that_ask_for_too_much_are_refused_before_they_get_it(content: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_image(content)


def test_colours_that_are_not_read_are_named() -> None:
    with pytest.raises(DatasetError, match=r"LAB.*Save it as grey or RGB"):
        read_image(Image.new("LAB", (4, 4)))


@pytest.mark.parametrize("missing", ["tifffile", "imagecodecs"])
def test_a_missing_package_is_reported_with_its_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    path = tmp_path / ("a.tif" if missing == "tifffile" else "a.png")
    deep = np.full((4, 5, 3), 40000, np.uint16)
    path.write_bytes(imagecodecs.png_encode(deep))
    if missing == "tifffile":
        Image.new("RGB", (5, 4)).save(path)
    monkeypatch.delitem(sys.modules, "afclip_runtime.images.tiff", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(DatasetError, match=f"{path}: {missing} reads such a file .*pip install tifffile imagecodecs"):
        read(path)
