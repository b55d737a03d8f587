"""Volumes of every kind of file, compared with SimpleITK and highdicom."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from afclip_lightning.volumes.find import Source, find_volumes
from afclip_lightning.volumes.grid import AXES
from afclip_lightning.volumes.opening import open_masks, open_volume
from afclip_lightning.volumes.volume import Reading, Slices, Volume
from tests.support.dicom_volumes import LPS, write_enhanced, write_segmentation, write_series
from tests.support.volumes import affine, all_codes, lesion, phantom, seen, stored

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = np.linalg.qr(np.array([[1.0, 0.1, -0.2], [-0.15, 1.0, 0.1], [0.2, 0.05, 1.0]]))[0]
OBLIQUE[:3, :3] *= np.sign(np.diag(OBLIQUE))[:3]


def write_itk(path: Path, data: np.ndarray, place: np.ndarray, packed: bool) -> None:
    """Writes voxels `[i, j, k]` with SimpleITK."""
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(data.T))
    in_lps = LPS @ place
    spacing = np.linalg.norm(in_lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((in_lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(in_lps[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(path), packed)


def itk_place(path: Path) -> np.ndarray:
    """Returns the affine (RAS) that SimpleITK reads."""
    image = SimpleITK.ReadImage(str(path))
    found = np.eye(4)
    found[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    found[:3, 3] = image.GetOrigin()
    return LPS @ found


def opened(path: Path, scratch: Path) -> Volume:
    return open_volume(Source((path,)), scratch, Reading())


def check_slices(volume: Volume, scratch: Path, values: np.ndarray) -> None:
    for axis in AXES:
        for found, wanted in zip(Slices(volume, axis, scratch / axis), seen(values, axis), strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("suffix", "packed"),
    [*itertools.product((".nii", ".nii.gz", ".nrrd", ".mha"), (False, True)), (".nhdr", True), (".mhd", False)],
)
@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "IPL", "ARI"])
def test_files_of_itk(suffix: str, packed: bool, codes: str, tmp_path: Path) -> None:
    own = OBLIQUE @ affine((1, 2, 3))
    data, place = stored(phantom(), codes, own)
    path = tmp_path / f"a{suffix}"
    write_itk(path, data, place, packed)
    volume = opened(path, tmp_path / "scratch")
    np.testing.assert_allclose(volume.grid.affine, place, atol=1e-4)
    np.testing.assert_allclose(volume.grid.affine, itk_place(path), atol=1e-4)
    assert volume.grid.codes == codes
    check_slices(volume, tmp_path, phantom())


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_types_of_voxels(kind: str, suffix: str, tmp_path: Path) -> None:
    values = (phantom() % 100).astype(kind)
    write_itk(tmp_path / f"a{suffix}", values, affine(), True)
    check_slices(opened(tmp_path / f"a{suffix}", tmp_path / "scratch"), tmp_path, values)


def test_the_scale_of_a_metaimage_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    write_itk(path, phantom(), affine(), False)
    fields = b"ElementToIntensityFunctionSlope = 2\nElementToIntensityFunctionOffset = -1024.5\nElementType"
    path.write_bytes(path.read_bytes().replace(b"ElementType", fields, 1))
    check_slices(opened(path, tmp_path / "scratch"), tmp_path, phantom() * 2 - 1024.5)


@pytest.mark.parametrize(
    "codes",
    [pytest.param(codes, marks=() if codes in ("LPS", "RIA", "SPL") else pytest.mark.slow) for codes in all_codes()],
)
def test_a_dicom_series_lies_where_its_positions_say(codes: str, tmp_path: Path) -> None:
    count = phantom().shape[{"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}[codes[2]]]
    order = np.random.default_rng(0).permutation(count).tolist()  # names and instance numbers say nothing
    write_series(tmp_path / "in", phantom(), codes, order=order)
    (source,) = find_volumes(tmp_path / "in").volumes
    volume = open_volume(source, tmp_path / "scratch", Reading())
    assert volume.modality == "CT"
    assert volume.grid.codes[:2] == codes[:2]
    check_slices(volume, tmp_path, phantom())


def test_a_dicom_series_is_where_simpleitk_reads_it(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "in", phantom(), "PIL", OBLIQUE @ affine((1, 2, 3)))
    volume = open_volume(Source(tuple(paths), is_dicom=True), tmp_path / "scratch", Reading())
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "in")))
    image = reader.Execute()
    found = np.eye(4)
    found[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    found[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(volume.grid.affine, LPS @ found, atol=1e-3)
    np.testing.assert_array_equal(volume.raw.read(0, 9), SimpleITK.GetArrayFromImage(image))


@pytest.mark.parametrize("codes", ["LPS", "LIA", "PIR", "RAI"])
def test_an_object_with_several_frames_is_the_series(codes: str, tmp_path: Path) -> None:
    paths = write_series(tmp_path / "in", phantom(), codes, affine((1, 2, 3)))
    series = open_volume(Source(tuple(paths), is_dicom=True), tmp_path / "a", Reading())
    write_enhanced(tmp_path / "enhanced/a.dcm", paths[::2] + paths[1::2])
    (source,) = find_volumes(tmp_path / "enhanced").volumes
    assert source.frames == len(paths)
    volume = open_volume(source, tmp_path / "b", Reading())
    np.testing.assert_allclose(volume.grid.affine, series.grid.affine, atol=1e-6)
    check_slices(volume, tmp_path, phantom())


def drawn(paths: list[Path], codes: str, mask: np.ndarray) -> np.ndarray:
    """Returns a mask `[R, A, S]` as `[slices, rows, columns, 1]` in the order of the files."""
    return stored(mask, codes)[0].transpose(2, 1, 0)[..., None]


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("codes", ["LPS", "PIR", "SAL"])
def test_a_segmentation_marks_what_was_drawn(kind: str, codes: str, tmp_path: Path) -> None:
    mask = (lesion() > 0).astype(np.uint8)
    paths = write_series(tmp_path / "in", phantom(), codes)
    frames = drawn(paths, codes, mask)
    given = frames[..., 0] if kind == "LABELMAP" else frames.astype(np.float32) if kind == "FRACTIONAL" else frames
    mixed = np.random.default_rng(1).permutation(len(paths))
    write_segmentation(tmp_path / "seg/a.dcm", [paths[i] for i in mixed], _with_segments(given[mixed], kind), kind)
    (source,) = find_volumes(tmp_path / "in", tmp_path / "seg").volumes
    assert len(source.segmentations) == 1
    volume = open_volume(source, tmp_path / "scratch", Reading())
    ((found, known),) = open_masks(source, volume.grid, None, tmp_path / "scratch", Reading())
    assert known
    check_slices(found, tmp_path, mask)


def _with_segments(given: np.ndarray, kind: str) -> np.ndarray:
    return given[..., None] if kind == "LABELMAP" else given


def test_segments_that_overlap_are_chosen_by_their_number(tmp_path: Path) -> None:
    both = np.stack([(lesion() > 0), (lesion() > 1)], axis=-1).astype(np.uint8)
    paths = write_series(tmp_path / "in", phantom(), "LPS")
    frames = np.stack([drawn(paths, "LPS", both[..., n])[..., 0] for n in range(2)], axis=-1)
    write_segmentation(tmp_path / "in/seg.dcm", paths, frames)
    (source,) = find_volumes(tmp_path / "in").volumes
    volume = open_volume(source, tmp_path / "scratch", Reading())
    for chosen, wanted in (((1,), both[..., 0]), ((2,), both[..., 1]), (None, both[..., 0])):
        ((found, _),) = open_masks(source, volume.grid, chosen, tmp_path / "scratch", Reading())
        check_slices(found, tmp_path, wanted)


def test_a_mask_of_another_kind_of_file_and_order_fits_a_series(tmp_path: Path) -> None:
    write_series(tmp_path / "in/scan", phantom(), "LPS")
    data, place = stored(lesion(), "ARI")
    write_itk(tmp_path / "scan_seg.nrrd", data, place, True)
    (tmp_path / "masks").mkdir()
    (tmp_path / "scan_seg.nrrd").rename(tmp_path / "masks/scan_seg.nrrd")
    (source,) = find_volumes(tmp_path / "in", tmp_path / "masks").volumes
    volume = open_volume(source, tmp_path / "scratch", Reading())
    ((found, known),) = open_masks(source, volume.grid, None, tmp_path / "scratch", Reading())
    assert not known
    check_slices(found, tmp_path, lesion())
