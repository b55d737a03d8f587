"""Slices and maps of the same phantom, stored in each of the 48 orders of axes."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from afclip_lightning.volumes.find import Source
from afclip_lightning.volumes.grid import AXES, Axis, Grid
from afclip_lightning.volumes.opening import open_volume
from afclip_lightning.volumes.raw import Raw
from afclip_lightning.volumes.volume import Reading, Slices, Volume
from afclip_runtime.errors import DatasetError
from tests.support.volumes import affine, all_codes, phantom, seen, stored, write_nifti


def opened(path: Path, scratch: Path) -> Volume:
    return open_volume(Source((path,)), scratch, Reading())


@pytest.mark.parametrize("codes", all_codes())
def test_slices_are_the_same_whatever_the_order_of_the_axes(codes: str, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", phantom(), codes)
    volume = opened(path, tmp_path)
    assert volume.grid.codes == codes
    for axis in AXES:
        slices = Slices(volume, axis, tmp_path / axis)
        for found, wanted in zip(slices, seen(phantom(), axis), strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("codes", all_codes())
def test_slices_know_their_voxels_and_spacing(codes: str, tmp_path: Path) -> None:
    spacing = (0.5, 0.75, 3.0)
    path = write_nifti(tmp_path / "a.nii.gz", phantom(), codes, affine(spacing))
    data = np.asarray(nibabel.load(path).dataobj)
    for axis, (rows, columns) in {"axial": (0.75, 0.5), "coronal": (3.0, 0.5), "sagittal": (3.0, 0.75)}.items():
        slices = Slices(opened(path, tmp_path), axis, tmp_path / axis)
        cut = slices.cut
        np.testing.assert_allclose(cut.spacing, (rows, columns), rtol=1e-6)
        assert cut.square == (
            round(cut.shape[0] * rows / min(rows, columns)),
            round(cut.shape[1] * columns / min(rows, columns)),
        )
        for index in (0, 3):
            plane = np.take(data, cut.voxel(index), axis=cut.stored)
            np.testing.assert_array_equal(cut.lying(slices[index]), plane.T)


def test_an_oblique_volume_is_cut_along_its_own_nearest_axes(tmp_path: Path) -> None:
    angle = np.radians(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    path = write_nifti(tmp_path / "a.nii", phantom(), "LPS", turn @ affine())
    volume = opened(path, tmp_path)
    assert volume.grid.codes == "LPS"
    assert volume.grid.obliquity == pytest.approx(20, abs=1e-3)
    np.testing.assert_array_equal(Slices(volume, "axial", tmp_path / "p")[4], list(seen(phantom(), "axial"))[4])


def test_grids_differ_by_more_than_the_order_of_their_axes() -> None:
    values, own = phantom(), affine((1, 1, 2))
    grids = [Grid(data.shape, place) for data, place in (stored(values, codes, own) for codes in ("RAS", "ILP"))]
    assert grids[0].difference(grids[1]) == ""
    moved = own + np.array([[0, 0, 0, 0.4], [0] * 4, [0] * 4, [0] * 4])
    assert "0.4 mm apart" in grids[0].difference(Grid(values.shape, moved))
    assert "9 × 11 × 13 voxels (R × A × S) and 9 × 11 × 12" in grids[0].difference(Grid((9, 11, 12), own))
    assert "1 × 1 × 2 mm (R × A × S) and 1 × 1 × 2.5 mm" in grids[0].difference(Grid(values.shape, affine((1, 1, 2.5))))
    for broken in (np.zeros((4, 4)), np.full((4, 4), np.nan)):
        with pytest.raises(DatasetError, match="geometry"):
            Grid(values.shape, broken)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("held", [1, 400, 10**6])
def test_axes_are_turned_on_disk_and_back(
    axis: int, held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afclip_lightning.volumes.raw.HELD", held)
    values = phantom()
    (tmp_path / "a").write_bytes(b"head" + values.tobytes())
    raw = Raw(tmp_path / "a", 4, values.dtype, values.shape).check("a")
    turned = raw.brought_first(axis, tmp_path / "b")
    np.testing.assert_array_equal(turned.read(0, turned.shape[0]), np.moveaxis(values, axis, 0))
    back = turned.brought_back(axis, tmp_path / "c")
    assert back.shape == values.shape
    np.testing.assert_array_equal(back.read(0, back.shape[0]), values)


def test_axes_are_named() -> None:
    axes: tuple[Axis, ...] = ("axial", "coronal", "sagittal")
    assert axes == AXES
