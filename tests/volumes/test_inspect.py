"""`inspect --axis`: a verdict per slice and per volume, and maps in the volume's own frame."""

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from afclip_lightning.cli import inspect as command
from afclip_lightning.inspection.volumes import score_of
from afclip_lightning.report.inspections import render
from afclip_lightning.volumes.cutting import Cutting, cut_volume
from afclip_lightning.volumes.find import Source
from afclip_lightning.volumes.grid import AXES, Axis
from afclip_lightning.volumes.maps import map_path, put_back
from tests.support.dicom_volumes import write_series
from tests.support.small_head import write_head, write_pictures
from tests.support.volumes import affine, all_codes, lesion, phantom, stored, write_nifti


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_head(tmp_path_factory.mktemp("run") / "head.ckpt", {}).read_bytes()


@pytest.fixture
def folder(trained: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "head.ckpt").write_bytes(trained)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def inspect(*args: str) -> int:
    return command.main(["--checkpoint", "head.ckpt", "--num_workers", "0", "--out", "out", *args])


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("out", name).read_text().splitlines()]


@pytest.mark.parametrize("codes", all_codes())
def test_maps_are_put_back_voxel_by_voxel(codes: str, tmp_path: Path) -> None:
    values, own = phantom().astype(np.float32), affine((1, 1, 1), (3, -4, 5))
    path = write_nifti(tmp_path / "a.nii.gz", phantom(), codes, own)
    original = nibabel.load(path)
    for axis in AXES:
        record = cut_volume(Source((path,)), ("v", "p"), "", tmp_path / axis, Cutting(axis))
        for index in record.indices:
            # the map of a slice: the number of each voxel, taken from where the slice is seen
            seen = np.array(_slice(values, axis, index))
            place = map_path(tmp_path / axis / "held", index)
            place.parent.mkdir(exist_ok=True)
            np.save(place, seen)
        put_back(record, tmp_path / axis / "held", tmp_path / f"{axis}.nii.gz", tmp_path)
        found = nibabel.load(tmp_path / f"{axis}.nii.gz")
        np.testing.assert_array_equal(found.affine, original.affine)
        np.testing.assert_array_equal(np.asarray(found.dataobj), stored(values, codes, own)[0])
        assert found.get_data_dtype() == np.float32
        assert nibabel.aff2axcodes(found.affine) == tuple(codes)


def _slice(values: np.ndarray, axis: Axis, index: int) -> np.ndarray:
    """Returns a slice of values `[R, A, S]` in upright view."""
    number = {"sagittal": 0, "coronal": 1, "axial": 2}[axis]
    return np.take(values, index, axis=number).T[::-1, ::-1]


def test_maps_of_square_pixels_get_back_to_their_voxels(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", phantom(), "SAL", affine((1, 1, 3)))
    record = cut_volume(Source((path,)), ("v", "p"), "", tmp_path / "set", Cutting("coronal"))
    assert record.slice_size == (39, 9)
    for index in record.indices:
        place = map_path(tmp_path / "held", index)
        place.parent.mkdir(exist_ok=True)
        np.save(place, np.repeat(_slice(phantom().astype(np.float32), "coronal", index), 3, axis=0))
    put_back(record, tmp_path / "held", tmp_path / "map.nii.gz", tmp_path)
    found = nibabel.load(tmp_path / "map.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), stored(phantom(), "SAL")[0])


@pytest.mark.parametrize(("code", "unit"), [(0, "mm"), (1, "meter"), (2, "mm"), (3, "micron")])
def test_maps_have_the_unit_of_the_volume(code: int, unit: str, tmp_path: Path) -> None:
    own = affine((50, 50, 80))
    path = write_nifti(tmp_path / "a.nii.gz", phantom(), own=own, xyzt_units=code)
    record = cut_volume(Source((path,)), ("v", "p"), "", tmp_path / "set", Cutting())
    for index in record.indices:
        place = map_path(tmp_path / "held", index)
        place.parent.mkdir(exist_ok=True)
        np.save(place, np.zeros(record.slice_size, np.float32))
    put_back(record, tmp_path / "held", tmp_path / "map.nii.gz", tmp_path)
    found = nibabel.load(tmp_path / "map.nii.gz")
    assert found.header.get_xyzt_units()[0] == unit == record.unit
    np.testing.assert_array_equal(found.affine, own)


@pytest.mark.slow
def test_volumes_and_images_have_verdicts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(folder / "in", 1)
    for name, codes in (("a", "RAS"), ("b", "PIL")):
        write_nifti(folder / f"in/{name}.nii.gz", phantom() if name == "a" else phantom()[::-1], codes)
    write_nifti(folder / "in/a_seg.nii.gz", lesion())
    (folder / "in/broken.nii.gz").write_bytes(b"no gzip")
    given = ["in", "--axis", "axial", "--threshold", "0.2", "--pixel_threshold", "0.45", "--save", "nifti,mask"]
    assert inspect(*given, "--volume_score", "mean_top_3") == 1
    rows, volumes = lines("inspections.jsonl"), lines("volumes.jsonl")
    assert len([row for row in rows if row.get("volume") is None]) == 1
    assert [row["volume"] for row in volumes] == ["volume-0003", "volume-0001", "volume-0002"]
    assert "is not a NIfTI file" in volumes[0]["error"]
    for volume in volumes[1:]:
        own = {row["slice"]: row["score"] for row in rows if row.get("volume") == volume["volume"]}
        assert sorted(own) == list(range(13))
        best = sorted(own.values())[-3:]
        assert volume["score"] == pytest.approx(np.mean(best), rel=1e-6)
        assert volume["verdict"] == ("anomalous" if volume["score"] > 0.2 else "normal")
        assert volume["highest_slice"] == max(own, key=lambda index: own[index])
        assert volume["anomalous_slices"] == sum(score > 0.2 for score in own.values())
        found, original = nibabel.load(Path("out", volume["map"])), nibabel.load(volume["path"])
        np.testing.assert_array_equal(found.affine, original.affine)
        assert found.shape == original.shape
    masks = [Path("out/masks/volume-0001", f"axial-{index:04d}.png") for index in range(13)]
    first = np.asarray(nibabel.load("out/nifti/volume-0001.nii.gz").dataobj)  # RAS
    for index, path in enumerate(masks):
        np.testing.assert_array_equal(_slice(first, "axial", index) > 0.45, np.asarray(Image.open(path)) > 0)
    page = render(folder / "out")
    assert "mean top 3 of its slices" in page
    assert "volume-0002" in page
    with Path("out/volumes.csv").open(newline="") as file:
        assert [row["verdict"] for row in csv.DictReader(file)][1:] == [v["verdict"] for v in volumes[1:]]
    capsys.readouterr()
    write_nifti(folder / "in/0.nii.gz", phantom()[:, ::-1])  # sorted before the others, and numbered after them
    assert inspect(*given, "--volume_score", "mean_top_3") == 1
    assert "13 inspected, 1 failed" in capsys.readouterr().out
    assert {row["volume"]: Path(row["path"]).name for row in lines("volumes.jsonl")} == {
        "volume-0001": "a.nii.gz",
        "volume-0002": "b.nii.gz",
        "volume-0003": "broken.nii.gz",
        "volume-0004": "0.nii.gz",
    }
    assert not list(Path("out").rglob(".s*"))


@pytest.mark.slow
def test_dicom_files_are_a_volume_or_images(folder: Path) -> None:
    write_series(folder / "in/scan", phantom(), order=[*range(12, -1, -1)])
    write_series(folder / "in/alone", phantom()[:, :, :1])
    write_pictures(folder / "photos", 1)
    write_nifti(folder / "one_mask.nii", phantom())
    assert inspect("in", "photos/000.png", "--axis", "axial") == 0
    rows, (volume,) = lines("inspections.jsonl"), lines("volumes.jsonl")
    assert (volume["slices"], Path(volume["path"]).name) == (13, "scan")
    assert [Path(row["path"]).parent.name for row in rows if row.get("volume") is None] == ["alone", "photos"]
    assert inspect("one_mask.nii", "--axis", "axial") == 0  # a file that is named alone is no mask
    assert len(lines("inspections.jsonl")) == len(rows) + 13


@pytest.mark.slow
def test_volumes_wait_for_an_axis(folder: Path) -> None:
    write_pictures(folder / "in", 1)
    write_nifti(folder / "in/a.nii.gz", phantom())
    write_nifti(folder / "in/b.nii", phantom())
    assert inspect("in") == 1
    errors = [row["error"] for row in lines("inspections.jsonl") if row["error"]]
    assert len(errors) == 2
    assert all("--axis" in error for error in errors)


def test_scores_of_volumes() -> None:
    scores = [0.1, 0.9, 0.5, 0.7]
    assert score_of(scores, "highest") == 0.9
    assert score_of(scores, "mean") == pytest.approx(0.55)
    assert score_of(scores, "mean_top_2") == pytest.approx(0.8)
    assert score_of(scores, "mean_top_9") == pytest.approx(0.55)


@pytest.mark.parametrize(
    "options", [("--volume_score", "best"), ("--save", "nifti"), ("--axis", "axial", "--window", "dark")]
)
def test_options_that_are_wrong(options: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect("in", *options) == 2
    assert options[0] in capsys.readouterr().err or "--window" in options
