"""Facts on a person in headers appear in no output, file name, message, warning or log."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom.config
import pytest
import SimpleITK
from pydicom import dcmread
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement

from afclip_lightning.cli import inspect as command
from afclip_lightning.cli.datasets import main
from afclip_lightning.volumes.silence import silenced
from afclip_runtime.errors import DatasetError
from tests.support.dicom_volumes import write_enhanced, write_segmentation, write_series
from tests.support.small_head import write_head
from tests.support.volumes import affine, lesion, phantom, write_nifti

TOKEN = "QZXERIKA"
DIGITS = "7391846205"
TEXTS = {"AE": 16, "CS": 16, "LO": 64, "LT": 999, "PN": 64, "SH": 16, "ST": 999, "UC": 999, "UR": 999, "UT": 999}
DATES = {"DA": "17391846", "DT": "17391846205900", "TM": "173918.4620"}
NEEDED = {
    "Modality",
    "PhotometricInterpretation",
    "ImageType",
    "SpecificCharacterSet",
    "SegmentationType",
    "VOILUTFunction",
}
KEPT_UIDS = {"SOPClassUID", "TransferSyntaxUID", "MediaStorageSOPClassUID", "ReferencedSOPClassUID"}
MARKS = (TOKEN, DIGITS, "17391846", "173918.46")


def marked(path: Path) -> None:
    """Puts the token into every text, date and identifier of a DICOM file that it may have, valid or not."""
    item = dcmread(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tag, (vr, multiplicity, _, retired, name) in DicomDictionary.items():
            group = tag >> 16
            if group <= 2 or not name or name in NEEDED or retired or multiplicity not in ("1", "1-n"):
                continue
            if vr in TEXTS:
                item.add(DataElement(tag, vr, f"{TOKEN} {name}"[: TEXTS[vr]], validation_mode=pydicom.config.IGNORE))
            elif vr in DATES:
                item.add(DataElement(tag, vr, DATES[vr]))
        for name in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
            setattr(item, name, f"1.2.{DIGITS}.{len(name)}" if name.endswith("UID") else TOKEN)
        item.PatientBirthDate = f"{TOKEN} born"  # no valid date, of which pydicom warns with the value
        item.PatientAge = TOKEN * 4
        private = item.private_block(0x0029, f"{TOKEN} maker", create=True)
        private.add_new(1, "LO", f"{TOKEN} private")
        item.save_as(path)


def write_marked_nifti(folder: Path, name: str = "a") -> Path:
    path = write_nifti(folder / f"{name}.nii.gz", phantom(), "LAS", descrip=TOKEN, aux_file=TOKEN, intent_name=TOKEN)
    image = nibabel.load(path)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", f"{TOKEN} comment".encode()))
    image.header["db_name"] = TOKEN
    nibabel.save(image, path)
    return path


def write_marked_itk(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(phantom())
    for key in ("Patient", "content", "0010|0010", "Comment"):
        image.SetMetaData(key, f"{TOKEN} {key}")
    for name in ("b.nrrd", "c.mha"):
        SimpleITK.WriteImage(image, str(folder / name), True)


def write_marked_dicom(folder: Path, enhanced: bool = False) -> None:
    mask = (lesion() > 0).astype(np.uint8)[::-1, ::-1].transpose(2, 1, 0)[..., None]
    paths = write_series(folder / "scan", phantom(), "LPS", patient=TOKEN, series=f"1.2.{DIGITS}.17")
    write_segmentation(folder / "seg.dcm", paths, mask)
    if enhanced:
        write_enhanced(folder / "scan.dcm", paths)
        for path in paths:
            path.unlink()
    for path in sorted(folder.rglob("*.dcm")):
        if path.name != "seg.dcm":
            marked(path)


def leaks(out: Path, said: str) -> list[str]:
    """Returns the places of a mark in files and messages."""
    found = [f"said: {line}" for line in said.splitlines() if any(mark in line for mark in MARKS)]
    for path in out.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        if path.suffix == ".gz":
            import gzip

            content = gzip.decompress(content)
        if any(mark in str(path) or mark.encode() in content or mark.encode("utf-16-le") in content for mark in MARKS):
            found.append(str(path))
    return found


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Returns a function that returns the output and the logs since its last call."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("pydicom").setLevel(logging.DEBUG)

    def collect() -> str:
        printed, logged = capfd.readouterr(), caplog.text
        caplog.clear()
        return "\n".join((printed.out, printed.err, logged))

    return collect


KINDS: dict[str, Callable[[Path], Any]] = {
    "NIfTI": write_marked_nifti,
    "NRRD and MetaImage": write_marked_itk,
    "DICOM": write_marked_dicom,
    "enhanced DICOM": lambda folder: write_marked_dicom(folder, enhanced=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_header_is_in_a_set(kind: str, tmp_path: Path, said: Callable[[], str]) -> None:
    KINDS[kind](tmp_path / "in")
    assert any(TOKEN.encode() in content(path) for path in (tmp_path / "in").rglob("*") if path.is_file())
    said()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        code = main(
            f"import {tmp_path}/in --from volumes --out {tmp_path}/set --keep_names --unmasked_are_normal".split()
        )
    spoken = said() + "\n".join(str(warning.message) for warning in warned)
    assert code == 0, spoken
    assert list((tmp_path / "set").rglob("*.png"))
    assert leaks(tmp_path / "set", spoken) == []


def content(path: Path) -> bytes:
    import gzip

    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def broken_number(paths: list[Path]) -> None:
    for path in paths:
        item = dcmread(path)
        item.add(
            DataElement(0x00281053, "DS", f"{TOKEN}", validation_mode=pydicom.config.IGNORE, already_converted=True)
        )
        item.save_as(path)


def broken(kind: str, folder: Path) -> None:
    if kind == "NIfTI":
        path = write_marked_nifti(folder)
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "NRRD":
        write_marked_itk(folder)
        (folder / "c.mha").unlink()
        text = (folder / "b.nrrd").read_bytes()
        (folder / "b.nrrd").write_bytes(text.replace(b"sizes: 13 11 9", f"sizes: {TOKEN}".encode()))
    elif kind == "MetaImage":
        write_marked_itk(folder)
        (folder / "b.nrrd").unlink()
        text = (folder / "c.mha").read_bytes()
        (folder / "c.mha").write_bytes(text.replace(b"DimSize = 13 11 9", f"DimSize = {TOKEN}".encode()))
    else:
        write_marked_dicom(folder)
        paths = sorted((folder / "scan").iterdir())
        if kind == "cut DICOM":
            paths[3].write_bytes(paths[3].read_bytes()[:-40])
        elif kind == "gap":
            paths[3].unlink()
        else:
            broken_number(paths)


@pytest.mark.parametrize("kind", ["NIfTI", "NRRD", "MetaImage", "cut DICOM", "gap", "number"])
def test_nothing_of_a_header_is_in_an_error(kind: str, tmp_path: Path, said: Callable[[], str]) -> None:
    broken(kind, tmp_path / "in")
    said()
    arguments = ["import", str(tmp_path / "in"), "--from", "volumes", "--out", str(tmp_path / "set")]
    assert main([*arguments, "--unmasked_are_normal"]) == 2
    spoken = said()
    assert "error: " in spoken
    assert leaks(tmp_path / "set", spoken) == []


@pytest.mark.slow
def test_nothing_of_a_header_is_in_an_inspection(tmp_path: Path, said: Callable[[], str]) -> None:
    write_head(tmp_path / "head.ckpt", {})
    write_marked_nifti(tmp_path / "in")
    write_marked_itk(tmp_path / "in")
    write_marked_dicom(tmp_path / "in")
    said()
    code = command.main(
        f"{tmp_path}/in --axis coronal --checkpoint {tmp_path}/head.ckpt --num_workers 0 --out {tmp_path}/out "
        "--save nifti,overlay,map --pixel_threshold 0.5".split()
    )
    spoken = said()
    assert code == 0, spoken
    assert len(list((tmp_path / "out/nifti").glob("*.nii.gz"))) == 4
    assert leaks(tmp_path / "out", spoken) == []
    header = nibabel.load(tmp_path / "out/nifti/volume-0001.nii.gz").header
    assert not header.extensions
    assert {header[name].item() for name in ("descrip", "aux_file", "intent_name", "db_name")} == {b""}


def test_an_image_without_its_volume_says_nothing_either(tmp_path: Path, said: Callable[[], str]) -> None:
    from afclip_runtime.images.reader import read

    (path, *_) = write_series(tmp_path / "in", phantom(), "LPS", own=affine())
    marked(path)
    said()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        picture = read(path)
    assert picture.shape == (11, 9)
    assert leaks(tmp_path / "none", said() + "\n".join(str(warning.message) for warning in warned)) == []


def test_a_library_is_kept_from_quoting(said: Callable[[], str]) -> None:
    def quote() -> None:
        warnings.warn(TOKEN, stacklevel=1)
        for name in ("pydicom", "nibabel.global"):
            logging.getLogger(name).warning(TOKEN)
        raise ValueError(TOKEN)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(DatasetError) as error, silenced("a.dcm", "DICOM"):
            quote()
    assert error.value.__cause__ is None
    assert "a.dcm: cannot be read as DICOM (ValueError)" in str(error.value)
    assert TOKEN not in said() + str(error.value) + "".join(str(warning.message) for warning in warned)
    logging.getLogger("pydicom").warning("heard again")
    assert "heard again" in said()
