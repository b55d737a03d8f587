"""Masks are paired by stem, never by position."""

from pathlib import Path

import pytest

from afclip_lightning.data.images import pair_masks
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_runtime.errors import DatasetError
from afclip_runtime.images.find import list_folders, list_images
from tests.support.layouts import write_image, write_mask
from tests.support.layouts.mvtec import write_mvtec


def test_order_does_not_matter() -> None:
    images = [Path("i/b.png"), Path("i/a.jpg"), Path("i/c_mask.png")]
    masks = [Path("m/c_mask_mask.bmp"), Path("m/a.png"), Path("m/b_mask.png")]
    paired = {Path("i/a.jpg"): masks[1], Path("i/b.png"): masks[2], Path("i/c_mask.png"): masks[0]}
    assert pair_masks(images, masks) == paired
    assert pair_masks(images[::-1], masks[::-1]) == paired


def test_equal_names_in_different_subfolders() -> None:
    images = [Path("i/x/0.png"), Path("i/y/0.png")]
    masks = [Path("m/y/0.png"), Path("m/x/0.png")]
    assert pair_masks(images, masks, roots=(Path("i"), Path("m"))) == {images[0]: masks[1], images[1]: masks[0]}


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (["a.png", "b.png"], ["a.png"], r"i/b\.png: .*no mask"),
        (["a.png"], ["a.png", "b_mask.png"], r"m/b_mask\.png: no image"),
        (["a.png"], ["a.png", "a_mask.png"], r"i/a\.png: has two masks"),
        (["a.png", "a.jpg"], ["a.png"], r"i/a\.jpg: a\.png beside it has the same name"),
        (["a.png"], ["a_Segmentation.png"], r"m/a_Segmentation\.png: no image"),
    ],
)
def test_unpaired_file_is_named(images: list[str], masks: list[str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        pair_masks([Path("i", name) for name in images], [Path("m", name) for name in masks])


def test_one_lost_file_does_not_shift_the_others(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path, ["a"])
    for i in range(2, 6):
        write_image(root / f"a/test/crack/{i:03}.png")
        write_mask(root / f"a/ground_truth/crack/{i:03}_mask.png")
    masks = {s.image_path: s.mask_path for s in MVTecLayout(root).samples("test") if s.mask_path}
    assert len(masks) == 7
    assert all(mask.stem == f"{image.stem}_mask" for image, mask in masks.items())
    (root / "a/ground_truth/crack/001_mask.png").unlink()
    with pytest.raises(DatasetError, match=r"crack/001\.png"):
        MVTecLayout(root).samples("test")
    (root / "a/test/crack/001.png").unlink()
    (root / "a/test/crack/004.png").unlink()
    with pytest.raises(DatasetError, match=r"crack/004_mask\.png"):
        MVTecLayout(root).samples("test")


def test_list_images_is_sorted_and_ignores_other_files(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "C.bmp"):
        write_image(tmp_path / name)
    (tmp_path / "d.png").mkdir()
    for name in ("Thumbs.db", ".hidden.png", "readme.txt"):
        (tmp_path / name).write_text("")
    assert [p.name for p in list_images(tmp_path)] == ["C.bmp", "a.png", "b.JPG"]
    assert list_images(tmp_path / "nowhere") == list_folders(tmp_path / "nowhere") == []


def test_hidden_folders_are_not_kinds_of_defects(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path, ["a"])
    write_image(root / "a/test/.ipynb_checkpoints/000.png")
    write_image(root / ".trash/test/good/000.png")
    assert MVTecLayout(root).selected_categories() == ["a"]
    assert len(MVTecLayout(root).samples("test")) == 4
