"""Uncommon kinds of files: TIFF that Pillow does not read, DICOM, very large images, links."""

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from afclip_lightning.data.images import image_size, read_image, read_mask, upright_shape
from afclip_lightning.datasets.folder import Folder
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_runtime.errors import DatasetError
from afclip_runtime.images.find import list_images
from afclip_runtime.images.limits import MAX_PIXELS
from tests.support.layouts import HEIGHT, WIDTH, write_image
from tests.support.layouts.mvtec import write_mvtec

RAMP = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)
RGB = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=-1)
WIDE = RGB.astype(np.uint16) * 257


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planes", [False, True])
def test_tiff_with_sixteen_bit_colours(compression: str | None, planes: bool, tmp_path: Path) -> None:
    values, order = (np.moveaxis(WIDE, -1, 0), "separate") if planes else (WIDE, "contig")
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", planarconfig=order, compression=compression)
    assert np.array_equal(read_image(tmp_path / "a.tif"), RGB)


def test_tiff_with_sixteen_bit_grey_and_alpha(tmp_path: Path) -> None:
    values = np.stack([WIDE[..., 0], WIDE[..., 1]], axis=-1)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", extrasamples=["unassalpha"])
    assert np.array_equal(read_image(tmp_path / "a.tif"), np.stack([RAMP] * 3, axis=-1))
    assert np.array_equal(read_mask(tmp_path / "a.tif"), RAMP > 0)


def test_tiff_of_other_numbers_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RAMP.astype(np.float64))
    with pytest.raises(DatasetError, match=r"a\.tif: holds float64 values"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.gif", "a.ppm", "a.tga", "a.webp", "a.jp2", "a.j2k", "a.dib", "a.pcx", "a.sgi"])
def test_other_formats_of_pillow(name: str, tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / name, lossless=True)
    assert np.array_equal(read_image(list_images(tmp_path)[0])[..., 1], RAMP)


def write_dicom(path: Path, values: np.ndarray, kind: str = "MONOCHROME2", **tags: object) -> Path:
    """Writes a DICOM file of 8 or 16 bits with pydicom, and returns its path."""
    dicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
    file = dicom.Dataset()
    file.SOPClassUID, file.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    file.Rows, file.Columns = values.shape[:2]
    file.SamplesPerPixel = 1 if values.ndim == 2 else 3
    file.PhotometricInterpretation = kind
    if values.ndim == 3:
        file.PlanarConfiguration = 0
    file.BitsAllocated = file.BitsStored = 8 * values.itemsize
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, int(values.dtype.kind == "i")
    file.PixelData = values.tobytes()
    for tag, value in tags.items():
        setattr(file, tag, value)
    file.file_meta = dicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = dicom.uid.ExplicitVRLittleEndian
    file.save_as(path, enforce_file_format=True)
    return path


def grey(path: Path) -> np.ndarray:
    image = read_image(path)
    assert np.array_equal(image[..., 0], image[..., 2])
    return image[..., 0]


def test_dicom_without_a_window_spans_its_own_range(tmp_path: Path) -> None:
    hounsfield = (RAMP.astype(np.int16) - 100) * 4
    assert np.array_equal(grey(write_dicom(tmp_path / "a.dcm", hounsfield)), RAMP)
    assert np.array_equal(grey(write_dicom(tmp_path / "b.DCM", hounsfield, "MONOCHROME1")), 255 - RAMP)
    assert [p.name for p in list_images(tmp_path)] == ["a.dcm", "b.DCM"]
    flat = write_dicom(tmp_path / "flat.dcm", np.full((4, 4), 7, np.uint16))
    assert not read_image(flat).any()
    as_it_is = write_dicom(tmp_path / "byte.dcm", np.full((4, 4), 7, np.uint8))
    assert (read_image(as_it_is) == 7).all()


def test_dicom_window_is_applied_after_rescaling(tmp_path: Path) -> None:
    stored = np.arange(256, dtype=np.uint16).reshape(8, 32)
    path = tmp_path / "a.dcm"
    window = {"WindowCenter": [1000.5, 1], "WindowWidth": [201, 2]}  # 900 to 1100 is the first of two
    pixels = grey(write_dicom(path, stored, RescaleSlope=10, RescaleIntercept=0, **window)).ravel()
    assert not pixels[:91].any()
    assert (pixels[110:] == 255).all()
    assert pixels[100] == round(255 * (1000 - 900) / 200)


def test_dicom_in_colour(tmp_path: Path) -> None:
    assert np.array_equal(read_image(write_dicom(tmp_path / "a.dcm", RGB, "RGB")), RGB)


def test_dicom_with_compressed_pixels(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RGB, "RGB")
    pydicom = pytest.importorskip("pydicom")
    file = pydicom.dcmread(path)
    file.compress(pydicom.uid.RLELossless)
    file.save_as(path)
    assert path.stat().st_size != write_dicom(tmp_path / "plain.dcm", RGB, "RGB").stat().st_size
    assert np.array_equal(read_image(path), RGB)


def test_dicom_whose_decoder_is_not_there_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    pydicom = pytest.importorskip("pydicom")
    file = pydicom.dcmread(path)
    file.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    file.PixelData = pydicom.encaps.encapsulate([b"whatever it is"])
    file["PixelData"].VR = "OB"
    file.save_as(path)
    decoder = type(pydicom.pixels.get_decoder(pydicom.uid.JPEGLSLossless))
    monkeypatch.setattr(decoder, "is_available", False)
    with pytest.raises(
        DatasetError, match=r"a\.dcm: .*JPEG-LS Lossless.*pip install 'afclip_lightning\[dicom\]'; or save"
    ):
        read_image(path)


def test_dicom_that_is_not_one_picture_is_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, NumberOfFrames=3)
    with pytest.raises(DatasetError, match=r"a\.dcm: holds 3 frames"):
        read_image(path)
    path = write_dicom(tmp_path / "a.dcm", RAMP, "PALETTE COLOR")
    with pytest.raises(DatasetError, match=r"a\.dcm: PALETTE COLOR with 8 bits is not read"):
        read_image(path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DatasetError, match=r"a\.dcm: cannot be read as an image"):
        read_image(path)


def test_dicom_without_its_package_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dicom(tmp_path / "a.dcm", RAMP)
    for name in [name for name in sys.modules if name.partition(".")[0] == "pydicom"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DatasetError, match=r"a\.dcm: .*pip install 'afclip_lightning\[dicom\]'"):
        read_image(tmp_path / "a.dcm")


def write_png_header(path: Path, width: int, height: int) -> Path:
    """Writes a PNG that claims a size and has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data + struct.pack(">I", 4) + b"IDAT" + bytes(8))
    return path


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("side", [12000, 30000])  # Pillow has a limit of its own between the two
def test_image_above_the_limit_is_refused_before_it_is_decoded(side: int, tmp_path: Path) -> None:
    path = write_png_header(tmp_path / "a.png", side, side)
    assert side * side > MAX_PIXELS
    with pytest.raises(DatasetError, match=r"a\.png: has more than 134,217,728 pixels, the limit .*\(MAX_PIXELS\)"):
        read_image(path)
    with pytest.raises(DatasetError, match=r"a\.png: has more than"):
        image_size(path)
    with pytest.raises(DatasetError, match=r"cannot be read"):  # below it the size is no problem, the pixels are
        read_image(write_png_header(path, 11000, 11000))


def test_draft_reads_a_smaller_jpeg(tmp_path: Path) -> None:
    big = Image.fromarray(RGB).resize((400, 280))
    exif = Image.Exif()
    exif[0x0112] = 6
    big.save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert read_image(tmp_path / "a.jpg").shape == (400, 280, 3)
    assert read_image(tmp_path / "a.jpg", draft=100).shape == (200, 140, 3)  # a quarter would have a side of 70
    assert read_image(tmp_path / "a.jpg", draft=300).shape == (400, 280, 3)
    assert upright_shape(tmp_path / "a.jpg") == (400, 280)
    big.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", draft=10).shape == (280, 400, 3)


def test_a_link_back_to_its_own_folder_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "bad/crack/0.png")
    (tmp_path / "bad/crack/again").symlink_to(tmp_path / "bad")
    with pytest.raises(DatasetError, match=r"bad/crack/again: this link leads back to .*bad"):
        Folder(tmp_path, abnormal_dir="bad").samples("test")
    (tmp_path / "bad/crack/again").unlink()
    write_image(tmp_path / "elsewhere/1.png")
    (tmp_path / "bad/crack/again").symlink_to(tmp_path / "elsewhere")
    assert len(Folder(tmp_path, abnormal_dir="bad").samples("test")) == 2


def test_links_that_lead_nowhere_are_not_passed_over(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path, ["a"])
    link = root / "a/test/good/001.png"
    link.symlink_to(link)
    dataset = MVTecLayout(root)
    assert [s.image_path.name for s in dataset.samples("test") if s.label == 0] == ["000.png", "001.png"]
    with pytest.raises(DatasetError, match=r"good/001\.png: cannot be read as an image"):
        read_image(link)
    (root / "a/test/dent").symlink_to(root / "lost")
    with pytest.raises(DatasetError, match=r"a/test/dent: this link leads nowhere"):
        dataset.samples("test")
