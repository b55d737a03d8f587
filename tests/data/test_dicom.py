"""DICOM files with their prescribed display, with pydicom as the reference, and with stored values."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afclip_lightning.data.images import read_image, read_mask
from afclip_runtime.errors import DatasetError
from afclip_runtime.images.find import list_images
from afclip_runtime.images.reader import read, read_shape

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def dicom(values: np.ndarray, bits: int = 12, kind: str = "MONOCHROME2", **tags: object) -> "pydicom.FileDataset":
    """Returns a grey DICOM file in memory."""
    file = pydicom.Dataset()
    file.SOPClassUID, file.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    file.Rows, file.Columns, file.SamplesPerPixel = *values.shape, 1
    file.PhotometricInterpretation = kind
    file.BitsAllocated, file.BitsStored, file.HighBit = 8 * values.itemsize, bits, bits - 1
    file.PixelRepresentation = int(values.dtype.kind == "i")
    file.PixelData = values.tobytes()
    for tag, value in tags.items():
        setattr(file, tag, value)
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    return file


def content(file: "pydicom.Dataset") -> bytes:
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def shown(file: "pydicom.Dataset") -> np.ndarray:
    return read_image(content(file))[..., 0]


def item(**tags: object) -> "pydicom.Dataset":
    made = pydicom.Dataset()
    for tag, value in tags.items():
        setattr(made, tag, value)
    return made


def voi_table(values: np.ndarray, depth: int = 16, first: int = 0) -> "pydicom.Dataset":
    return item(LUTDescriptor=[len(values), first, depth], LUTData=values.astype(np.uint16).tobytes())


def by_pydicom(file: "pydicom.Dataset") -> np.ndarray:
    """Returns the display values of pydicom, as 8 bits over their range."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    values = apply_modality_lut(file.pixel_array, file)
    out = apply_voi_lut(values, file).astype(np.float64)
    if "VOILUTSequence" in file:
        low, high = 0.0, 2.0 ** file.VOILUTSequence[0].LUTDescriptor[2] - 1
    else:
        signed = file.PixelRepresentation
        low, high = (
            (-(2.0 ** (file.BitsStored - 1)), 2.0 ** (file.BitsStored - 1) - 1)
            if signed
            else (
                0.0,
                2.0**file.BitsStored - 1,
            )
        )
        slope, intercept = float(file.get("RescaleSlope", 1)), float(file.get("RescaleIntercept", 0))
        low, high = low * slope + intercept, high * slope + intercept
    bright = (out - low) / (high - low)
    return 255 * (1 - bright if file.PhotometricInterpretation == "MONOCHROME1" else bright)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    signed=st.booleans(),
    bits=st.integers(9, 16),
    kind=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    window=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID", "table", "table and window"]),
    center=st.integers(-300, 900),
    width=st.integers(2, 900),
    rescale=st.sampled_from([None, (1, -1024), (2.5, 10)]),
    seed=st.integers(0, 99),
)
def test_voi_as_pydicom_has_it(
    signed: bool, bits: int, kind: str, window: str, center: int, width: int, rescale: object, seed: int
) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    generator = np.random.default_rng(seed)
    values = generator.integers(low, high, (5, 6)).astype(np.int16 if signed else np.uint16)
    file = dicom(values, bits, kind)
    if isinstance(rescale, tuple):
        file.RescaleSlope, file.RescaleIntercept = rescale
    if window != "table":
        file.WindowCenter, file.WindowWidth = center, width
    if window.startswith("table"):
        if isinstance(rescale, tuple):  # its entries are whole numbers
            file.RescaleSlope = 1
        file.VOILUTSequence = [voi_table(generator.integers(0, 4096, 300), depth=12)]
    else:
        file.VOILUTFunction = window
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = by_pydicom(pydicom.dcmread(io.BytesIO(content(file))))
        np.testing.assert_allclose(shown(file), expected, atol=0.51)


def test_sigmoid_and_table_come_before_linear() -> None:
    file = dicom(RAMP, WindowCenter=2048, WindowWidth=1000, VOILUTFunction="SIGMOID")
    found = shown(file).ravel()
    assert found[1548] == round(255 / (1 + np.exp(2)))
    file.VOILUTSequence = [voi_table(np.arange(4096)[::-1] * 16)]
    found = shown(file).ravel()
    assert found[0] > 254
    assert found[-1] == 0
    file = dicom(RAMP, WindowCenter=2048, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT")
    assert shown(file).ravel()[1548] == 0
    assert shown(file).ravel()[2048] == 128


@pytest.mark.parametrize("words", [False, True])
def test_modality_tables_come_before_windows(words: bool) -> None:
    table = (4095 - np.arange(4096)).astype(np.uint16) * 4
    data = table.tobytes() if words else table.tolist()
    modality = item(LUTDescriptor=[4096, 0, 16], LUTData=data, ModalityLUTType="US")
    modality["LUTData"].VR = "OW" if words else "US"
    file = dicom(RAMP, ModalityLUTSequence=[modality], WindowCenter=8192, WindowWidth=16384)
    np.testing.assert_allclose(shown(file).ravel(), table / 16384 * 255, atol=0.6)
    del file.WindowCenter, file.WindowWidth
    np.testing.assert_allclose(shown(file).ravel(), table / table.max() * 255, atol=0.51)


def test_eight_bits_with_a_modality_table_are_shown_through_it() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    table = item(LUTDescriptor=[256, 0, 8], LUTData=(255 - np.arange(256)).tolist(), ModalityLUTType="US")
    table["LUTData"].VR = "US"
    np.testing.assert_array_equal(shown(dicom(values, 8, ModalityLUTSequence=[table])), 255 - values)


def test_a_file_without_dicoms_beginning_says_what_to_do(tmp_path: Path) -> None:
    for name in ("a.dcm", "b.dicom"):
        path = tmp_path / name
        path.write_bytes(content(dicom(RAMP))[132:])
        with pytest.raises(DatasetError, match=r"does not start like a DICOM file.* Export it again") as caught:
            read_image(path)
        assert "force" not in str(caught.value)


def test_windows_of_enhanced_objects_lie_in_functional_groups() -> None:
    window = item(WindowCenter=40, WindowWidth=400)
    rescale = item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    shared = item(FrameVOILUTSequence=[window], PixelValueTransformationSequence=[rescale])
    plain = dicom(RAMP, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    enhanced = dicom(RAMP, NumberOfFrames=1, SharedFunctionalGroupsSequence=[shared])
    np.testing.assert_array_equal(shown(enhanced), shown(plain))
    own = item(FrameVOILUTSequence=[item(WindowCenter=300, WindowWidth=50)])
    enhanced.PerFrameFunctionalGroupsSequence = [own]
    plain.WindowCenter, plain.WindowWidth = 300, 50
    np.testing.assert_array_equal(shown(enhanced), shown(plain))


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_left_out_of_the_range(dtype: type, kind: str) -> None:
    values = np.tile(np.arange(1000, 1064, dtype=dtype), (8, 1))
    values[:, :4] = padding = -2000 if dtype is np.int16 else 3
    found = shown(dicom(values, 16, kind, PixelPaddingValue=int(padding)))
    assert not found[:, :4].any()  # background is dark
    low, high = (255, 0) if kind == "MONOCHROME1" else (0, 255)
    assert (found[0, 4], found[0, -1]) == (low, high)
    values[:, :2] = padding + 2
    ranged = dicom(values, 16, kind, PixelPaddingValue=int(padding), PixelPaddingRangeLimit=int(padding) + 5)
    np.testing.assert_array_equal(shown(ranged), found)
    assert not shown(dicom(np.full((4, 4), 7, dtype), 16, PixelPaddingValue=7)).any()


def test_eight_bits_without_a_window_are_as_they_are() -> None:
    values = np.arange(10, 74, dtype=np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(shown(dicom(values, 8)), values)
    np.testing.assert_array_equal(shown(dicom(values, 8, "MONOCHROME1")), 255 - values)


def test_dicom_is_recognised_by_its_content(tmp_path: Path) -> None:
    file = content(dicom(RAMP))
    for name in ("IM0001", "a.IMA", "b.dcm", "1.3.6.1.4.1"):
        (tmp_path / name).write_bytes(file)
    assert len(list_images(tmp_path)) == 4
    for path in list_images(tmp_path):
        np.testing.assert_array_equal(read_image(path), read_image(file))
        assert read_shape(path) == ((64, 64), 1)
    (tmp_path / "c.dcm").write_bytes(b"no dicom")
    with pytest.raises(DatasetError, match=r"c\.dcm: cannot be read as an image"):
        read_image(tmp_path / "c.dcm")


@pytest.mark.parametrize("value", [1, 255])
def test_masks_are_read_as_stored(value: int, tmp_path: Path) -> None:
    full = np.full((6, 5), value, np.uint8)
    (tmp_path / "m.dcm").write_bytes(content(dicom(full, 8)))
    assert read_mask(tmp_path / "m.dcm").all()
    part = full.copy()
    part[:3] = 0
    windowed = dicom(part.astype(np.uint16), 16, WindowCenter=5000, WindowWidth=10, RescaleSlope=1, RescaleIntercept=-1)
    np.testing.assert_array_equal(read_mask(content(windowed)), part > 0)


def test_a_window_that_is_none_is_named() -> None:
    for tags in ({"WindowWidth": 0}, {"WindowWidth": 5, "VOILUTFunction": "CUBIC"}):
        with pytest.raises(DatasetError, match=r"a window of width .* correct or remove it"):
            shown(dicom(RAMP, WindowCenter=5, **tags))
    assert set(np.unique(shown(dicom(RAMP, WindowCenter=100.5, WindowWidth=1)))) == {0, 255}


def test_a_file_without_a_picture_is_named() -> None:
    file = dicom(RAMP)
    del file.Rows, file.PixelData
    with pytest.raises(DatasetError, match="holds no picture"):
        read_image(content(file))


@pytest.mark.parametrize("syntax", ["JPEGLSLossless", "JPEGLosslessSV1", "JPEG2000Lossless", "RLELossless"])
def test_compressed_pixels_are_read_after_installing_the_extra(syntax: str) -> None:
    file = dicom(RAMP, WindowCenter=2048, WindowWidth=4096)
    compressed = pydicom.dcmread(io.BytesIO(content(file)))
    if syntax == "RLELossless":
        compressed.compress(pydicom.uid.RLELossless)
    else:
        frame = encoded(RAMP, syntax)
        compressed.PixelData = pydicom.encaps.encapsulate([frame])
        compressed["PixelData"].VR = "OB"
        compressed.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    np.testing.assert_array_equal(shown(compressed), shown(file))
    np.testing.assert_array_equal(read(content(compressed), stored=True).values, RAMP)


def encoded(values: np.ndarray, syntax: str) -> bytes:
    """Returns the pixels of one frame as other programs write them: not by the library that reads them."""
    import imagecodecs

    if syntax == "JPEGLSLossless":
        return imagecodecs.jpegls_encode(values)
    if syntax == "JPEGLosslessSV1":
        return imagecodecs.ljpeg_encode(values, bitspersample=12)
    return imagecodecs.jpeg2k_encode(values, codecformat="j2k", reversible=True, bitspersample=12)
