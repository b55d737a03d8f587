"""Problems of volumes are reported in one line, with the file and the remedy."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from pydicom import Dataset, dcmread

from afclip_lightning.cli.datasets import main
from afclip_lightning.volumes import raw
from tests.support.dicom_volumes import write_segmentation, write_series
from tests.support.volumes import affine, lesion, phantom, write_nifti

Write = Callable[[Path], object]


def run(folder: Path, *options: str) -> int:
    return main(["import", str(folder / "in"), "--from", "volumes", "--out", str(folder / "set"), *options])


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Returns the message for a folder that cannot be imported: one line."""
    assert run(folder, "--unmasked_are_normal", *options) == 2
    said = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in said if "volumes/s" not in line and "volumes [" not in line]
    assert len(lines) == 1, said
    assert lines[0].startswith("error: ")
    assert not list((folder / "set").glob("**/*.png"))
    assert not (folder / "set/.scratch").exists()
    return lines[0]


def pair(
    spacing: tuple[float, ...] = (1, 1, 1), origin: tuple[float, ...] = (0, 0, 0), shape: tuple[int, ...] = (9, 11, 13)
) -> Write:
    """Returns a function that writes a volume and a mask of another geometry."""

    def write(folder: Path) -> None:
        write_nifti(folder / "a.nii.gz", phantom(), "RAS", affine((1, 1, 1), (0, 0, 0)))
        mask = np.ones(shape, np.uint8)
        write_nifti(folder / "a_seg.nii.gz", mask, "LPS", affine(spacing, origin))

    return write


@pytest.mark.parametrize(
    ("write", "difference"),
    [
        (pair(shape=(9, 11, 12)), "9 × 11 × 13 voxels (R × A × S) and 9 × 11 × 12"),
        (pair(spacing=(1, 1, 1.5)), "1 × 1 × 1 mm (R × A × S) and 1 × 1 × 1.5 mm"),
        (pair(origin=(0, 0, 2)), "the same voxels, up to 2 mm apart"),
    ],
)
def test_a_mask_of_another_geometry(write: Write, difference: str, tmp_path: Path, capsys: Any) -> None:
    write(tmp_path / "in")
    said = refused(tmp_path, capsys)
    assert difference in said
    assert "a_seg.nii.gz" in said
    assert "a.nii.gz" in said
    assert "Resample the mask" in said


def changed(**fields: Any) -> Write:
    """Returns a function that writes a NIfTI file and changes fields of its header."""

    def write(folder: Path) -> None:
        path = write_nifti(folder / "a.nii", phantom())
        image = nibabel.load(path)
        header = image.header.copy()
        header["vox_offset"] = header.single_vox_offset
        for name, value in fields.items():
            header[name] = value
        content = bytearray(path.read_bytes())
        content[:348] = header.binaryblock
        path.write_bytes(bytes(content))

    return write


def saved(data: np.ndarray) -> Write:
    def write(folder: Path) -> None:
        folder.mkdir()
        nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), folder / "a.nii.gz")

    return write


def cut(name: str, share: float, write: Write) -> Write:
    """Returns a function that writes a file and truncates it."""

    def cut_off(folder: Path) -> None:
        write(folder)
        path = folder / name
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return cut_off


def by_itk(name: str, packed: bool = True) -> Write:
    def write(folder: Path) -> None:
        folder.mkdir()
        noise = np.random.default_rng(0).integers(0, 9999, (30, 30, 30)).astype(np.int16)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(noise), str(folder / name), packed)

    return write


def series(change: Callable[[list[Path]], object], **options: Any) -> Write:
    """Returns a function that writes a DICOM series and changes its files."""

    def write(folder: Path) -> None:
        change(write_series(folder, phantom(), **options))

    return write


def moved(path: Path, by: tuple[float, float, float]) -> None:
    item = dcmread(path)
    item.ImagePositionPatient = [float(old) + new for old, new in zip(item.ImagePositionPatient, by, strict=True)]
    item.save_as(path)


def tilted(paths: list[Path]) -> None:
    for number, path in enumerate(paths):
        moved(path, (0, 0.3 * number, 0))


def spread(paths: list[Path]) -> None:
    for number, path in enumerate(paths):
        moved(path, (0, 0, 0.02 * number**2))


def set_to(path: Path, **fields: Any) -> None:
    item = dcmread(path)
    for name, value in fields.items():
        setattr(item, name, value)
    item.save_as(path)


def encrypted(paths: list[Path]) -> None:
    for path in paths:
        item = dcmread(path)
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            delattr(item, name)
        item.EncryptedAttributesSequence = [Dataset()]
        item.save_as(path)


COMPLEX = np.zeros((4, 4, 4), np.complex64)
COLOURS = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
FAULTS: dict[str, tuple[Write, str]] = {
    "truncated .nii": (cut("a.nii", 0.8, changed()), "it is cut off. Copy it again"),
    "truncated .nii.gz": (cut("a.nii.gz", 0.8, saved(phantom())), "cut off or damaged. Copy it again"),
    "truncated header": (cut("a.nii.gz", 0.05, saved(phantom())), "cut off or damaged"),
    "voxels in the header": (changed(vox_offset=0), "begin inside of its header"),
    "truncated .nrrd": (cut("a.nrrd", 0.8, by_itk("a.nrrd")), "cut off or damaged. Copy it again"),
    "truncated raw .nrrd": (cut("a.nrrd", 0.8, by_itk("a.nrrd", False)), "it is cut off"),
    "truncated .mha": (cut("a.mha", 0.8, by_itk("a.mha")), "cut off. Copy it again"),
    "no .raw beside .mhd": (lambda f: (by_itk("a.mhd")(f), (f / "a.zraw").unlink()), "there is no file"),
    "both codes are 0": (changed(sform_code=0, qform_code=0), "sform and qform are both 0"),
    "forms disagree": (changed(qoffset_x=55.0), "Say which is right: --form sform, or qform"),
    "affine of zeros": (changed(srow_x=0, qform_code=0), "geometry (affine) is not finite or has no volume"),
    "affine of NaN": (changed(srow_x=np.nan, qform_code=0), "geometry (affine) is not finite"),
    "colours": (saved(COLOURS), "colours or complex numbers"),
    "complex": (saved(COMPLEX), "colours or complex numbers"),
    "one slice": (saved(np.zeros((5, 6), np.int16)), "2 axes"),
    "five axes": (saved(np.zeros((2, 2, 2, 2, 2), np.int16)), "5 axes"),
    "nothing finite": (saved(np.full((3, 3, 3), np.nan, np.float32)), "no voxel has a finite value"),
    "no NIfTI": (lambda f: (f.mkdir(), (f / "a.nii").write_bytes(b"text" * 200)), "is not a NIfTI file"),
    "no MetaImage": (lambda f: (f.mkdir(), (f / "a.mha").write_bytes(b"text" * 200)), "is not a MetaImage file"),
    "no NRRD": (lambda f: (f.mkdir(), (f / "a.nrrd").write_bytes(b"text" * 200)), "cannot be read as NRRD"),
    "nothing": (lambda f: f.mkdir(), "there is no volume in it"),
    "slice missing": (series(lambda paths: paths[5].unlink()), "1 missing after the position"),
    "slices missing": (series(lambda paths: [path.unlink() for path in paths[4:7]]), "3 missing after the position"),
    "position twice": (series(lambda paths: moved(paths[3], (0, 0, 1))), "lie where another one lies"),
    "tilted gantry": (series(tilted), "16.7° to their normal (a tilted gantry)"),
    "uneven steps": (series(spread), "uneven steps"),
    "one DICOM slice": (series(lambda paths: [path.unlink() for path in paths[1:]]), "has one slice"),
    "several orientations": (
        series(lambda paths: set_to(paths[2], ImageOrientationPatient=[0, 1, 0, 0, 0, -1])),
        "several orientations",
    ),
    "several sizes": (series(lambda paths: set_to(paths[2], Rows=5, PixelData=b"\0" * 90)), "several sizes"),
    "white is 0": (
        series(lambda paths: [set_to(p, PhotometricInterpretation="MONOCHROME1") for p in paths]),
        "white as 0",
    ),
    "no position": (series(lambda paths: set_to(paths[0], ImagePositionPatient=None)), "no ImagePositionPatient"),
    "encrypted": (series(encrypted), "its header is encrypted"),
    "truncated DICOM": (
        series(lambda paths: paths[3].write_bytes(paths[3].read_bytes()[:-50])),
        "cannot be read as DICOM",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, message = FAULTS[fault]
    write(tmp_path / "in")
    said = refused(tmp_path, capsys)
    assert message in said
    assert str(tmp_path / "in") in said


def test_a_compressed_series_without_its_decoder(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom import pixels
    from pydicom.uid import RLELossless

    for path in write_series(tmp_path / "in", phantom()):
        item = dcmread(path)
        item.compress(RLELossless)
        item.save_as(path)
    decoder = pixels.get_decoder(RLELossless)
    monkeypatch.setattr(type(decoder), "is_available", False)
    said = refused(tmp_path, capsys)
    assert "RLE Lossless" in said
    assert "pip install 'afclip_lightning[medical]'" in said
    monkeypatch.undo()
    assert run(tmp_path, "--unmasked_are_normal") == 0


def test_series_of_one_folder_are_volumes_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_series(tmp_path / "in", phantom(), patient="A")
    for path in write_series(tmp_path / "b", phantom()[:, :, :4], patient="B"):
        path.rename(tmp_path / "in" / f"x{path.name}")
    assert run(tmp_path, "--unmasked_are_normal") == 0
    assert "2 volumes of 2 patients, told apart by the patient ID of DICOM files" in capsys.readouterr().out
    assert len(list((tmp_path / "set/images/volume-0001").iterdir())) == 13
    assert len(list((tmp_path / "set/images/volume-0002").iterdir())) == 4


def test_series_of_a_patient_stay_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, patient in (("a", "A"), ("b", "B"), ("c", "A")):
        write_series(tmp_path / "in" / name, phantom(), patient=patient)
    assert run(tmp_path, "--unmasked_are_normal") == 0
    assert "3 volumes of 2 patients" in capsys.readouterr().out


def test_slices_without_a_suffix_are_not_lost_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [path.rename(path.with_suffix("")) for path in write_series(tmp_path / "in", phantom())]
    whole = paths[-1].read_bytes()
    paths[-1].write_bytes(whole[:90])  # the last one: no gap betrays it
    assert run(tmp_path, "--unmasked_are_normal") == 0
    assert "note: left out: 1 file beside DICOM series that begin neither as DICOM does" in capsys.readouterr().err
    paths[-1].write_bytes(whole)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != paths[-1])  # root may read any file
    assert run(tmp_path, "--unmasked_are_normal") == 2
    assert f"error: {paths[-1]}: cannot be read. Allow it to be read" in capsys.readouterr().err


def test_dicom_files_without_images_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_series(tmp_path / "in", phantom())
    item = dcmread(paths[0])
    for name in ("Rows", "Columns", "PixelData"):
        delattr(item, name)
    item.Modality = "RTSTRUCT"
    item.save_as(tmp_path / "in/struct.dcm")
    assert run(tmp_path, "--unmasked_are_normal") == 0
    assert "note: left out: 1 DICOM file with neither images nor segments" in capsys.readouterr().err


def test_a_segmentation_of_another_series(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_series(tmp_path / "other", phantom(), own=affine((1, 1, 1), (0, 0, 0.5)))
    mask = (lesion() > 0).astype(np.uint8)[::-1, ::-1].transpose(2, 1, 0)[..., None]
    write_series(tmp_path / "in/scan", phantom())
    write_segmentation(tmp_path / "in/seg.dcm", other, mask)
    assert "the series that it was drawn on is missing" in refused(tmp_path, capsys)


def test_a_segmentation_between_the_voxels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_series(tmp_path / "in/scan", phantom())
    mask = (lesion() > 0).astype(np.uint8)[::-1, ::-1].transpose(2, 1, 0)[..., None]
    for path in paths:
        moved(path, (0, 0, 0.5))
    write_segmentation(tmp_path / "in/seg.dcm", paths, mask)
    for path in paths:
        moved(path, (0, 0, -0.5))
    said = refused(tmp_path, capsys)
    assert "seg.dcm: frame 1" in said
    assert "lies between the volume's voxels" in said


def test_an_option_resolves_ambiguous_files(tmp_path: Path) -> None:
    for number, (fields, options) in enumerate(
        [
            ({"sform_code": 0, "qform_code": 0}, ("--codes", "LPS")),
            ({"qoffset_x": 55.0}, ("--form", "sform")),
            ({"qoffset_x": 55.0}, ("--form", "qform")),
        ]
    ):
        folder = tmp_path / str(number)
        changed(**fields)(folder / "in")
        assert run(folder, "--unmasked_are_normal", *options) == 0


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_an_invalid_scale_is_ignored(slope: float, tmp_path: Path) -> None:
    changed(scl_slope=slope, scl_inter=5.0)(tmp_path / "a/in")
    changed()(tmp_path / "b/in")
    found = []
    for name in "ab":
        assert run(tmp_path / name, "--unmasked_are_normal", "--window", "643,1286") == 0
        found.append([path.read_bytes() for path in sorted((tmp_path / name).rglob("*.png"))])
    assert found[0] == found[1]


def test_a_scale_is_applied(tmp_path: Path) -> None:
    changed(scl_slope=2.0, scl_inter=-100.0)(tmp_path / "a/in")
    changed()(tmp_path / "b/in")
    found = []
    for name, window in (("a", "1186,2572"), ("b", "643,1286")):
        assert run(tmp_path / name, "--unmasked_are_normal", "--window", window) == 0
        found.append([path.read_bytes() for path in sorted((tmp_path / name).rglob("*.png"))])
    assert found[0] == found[1]


def test_voxels_without_a_value_are_black_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = phantom().astype(np.float32) + 1
    values[0, 0, 0], values[1, 0, 0], values[2, 0, 0] = np.nan, np.inf, -np.inf
    write_nifti(tmp_path / "in/a.nii.gz", values)
    assert run(tmp_path, "--unmasked_are_normal") == 0
    assert "volume-0001: 3 voxels are NaN, infinite or padding" in capsys.readouterr().err


def test_faults_can_be_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_nifti(tmp_path / "in/b.nii.gz", phantom())
    (tmp_path / "in/a.nii.gz").write_bytes(gzip.compress(b"nothing"))
    assert run(tmp_path, "--unmasked_are_normal", "--on_error", "skip") == 1
    said = capsys.readouterr()
    assert "1 volume of 1 patient," in said.out
    assert "a.nii.gz" in said.err
    assert [path.name for path in (tmp_path / "set/images").iterdir()] == ["volume-0002"]


def test_a_full_disk_is_reported_in_advance(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(phantom())(tmp_path / "in")
    usage = raw.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(raw.shutil, "disk_usage", lambda place: usage._replace(free=100))
    assert "GiB are free. Free some space" in refused(tmp_path, capsys)


@pytest.mark.parametrize("name", ["a.nii.gz", "volume-0.nii.gz"])
def test_a_sequence_for_files_without_sequences(name: str, tmp_path: Path, capsys: Any) -> None:
    write_nifti(tmp_path / "in" / name, phantom())
    assert "--sequence t1: only BraTS's files" in refused(tmp_path, capsys, "--sequence", "t1")


def test_linked_folders_are_read_and_circles_refused(tmp_path: Path, capsys: Any) -> None:
    write_nifti(tmp_path / "elsewhere/a.nii.gz", phantom())
    (tmp_path / "in").mkdir()
    (tmp_path / "in/scans").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/again").symlink_to(tmp_path / "in")
    assert "this link leads back to" in refused(tmp_path, capsys)
    (tmp_path / "elsewhere/again").unlink()
    assert run(tmp_path, "--unmasked_are_normal") == 0
    assert "1 volume of 1 patient," in capsys.readouterr().out
