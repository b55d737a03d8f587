"""Held-out normal images, KolektorSDD's thirds and AITEX's squares, each from a raw set in its true layout."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import train_test_split

from afclip_lightning.data.images import read_mask
from afclip_lightning.datasets.aitex import AITEX
from afclip_lightning.datasets.kolektor import KolektorSDD, KolektorSDDThirds
from afclip_lightning.datasets.tiled_layout import TiledLayout, complete_folder, hold_out
from afclip_runtime.errors import DatasetError
from tests.support.layouts.aitex import write_aitex
from tests.support.layouts.kolektor import DEFECT, HEIGHT, write_kolektor, write_kolektor_split


@pytest.mark.parametrize("count", [1, 8, 9, 1143, 1508])
def test_the_recipes_seed_holds_out_the_same_items(count: int) -> None:
    train, test = train_test_split(range(count + 1), test_size=0.25, random_state=42)
    assert hold_out(range(count + 1)) == (sorted(train), sorted(test))


def test_published_numbers_of_held_out_items() -> None:
    assert len(hold_out(range(3 * 399 - 54))[1]) == 286
    assert len(hold_out(range(1508))[1]) == 377


def test_thirds_of_kolektor(tmp_path: Path) -> None:
    raw = write_kolektor(tmp_path / "raw")
    before = sorted(raw.rglob("*"))
    dataset = KolektorSDDThirds(tmp_path / "tiles", raw)
    (tmp_path / "tiles").mkdir()  # an empty folder is as good as none
    dataset.check()  # before the tiles are there
    dataset.prepare_data()
    dataset.setup("fit")
    assert sorted(raw.rglob("*")) == before
    assert [len(dataset.samples("train")), len(dataset.samples("test"))] == [8, 4]  # 11 normal thirds, 3 held out

    (sample,) = (s for s in dataset.samples("test") if s.label)
    assert sample.image_path.name == "kos02_Part1_0000_0010.png"
    mask = read_mask(sample.mask_path or Path())
    assert np.flatnonzero(mask.any(axis=1)).tolist() == [row - HEIGHT // 3 for row in DEFECT]
    assert np.flatnonzero(mask.any(axis=0)).tolist() == [2, 3, 4]
    shades = np.asarray(Image.open(sample.image_path))[:, 0, 0]
    assert len(shades) == 2 * HEIGHT // 3 - HEIGHT // 3
    assert abs(int(shades[0]) - 8 * (HEIGHT // 3)) <= 4  # JPEG
    heights = {Image.open(s.image_path).height for s in dataset.samples("train")}
    assert heights == {10, 11}


def test_tiles_do_not_depend_on_the_machine_and_are_made_once(tmp_path: Path) -> None:
    raw = write_kolektor(tmp_path / "raw")
    first, second = (KolektorSDDThirds(tmp_path / name, raw) for name in "ab")
    for dataset in (first, second):
        dataset.prepare_data()
    names = [[s.image_path.name for s in dataset.samples("test")] for dataset in (first, second)]
    assert names[0] == names[1]
    shutil.rmtree(raw)
    first.prepare_data()  # nothing left to do
    KolektorSDDThirds(tmp_path / "a").check()


def test_label_missing_leaves_no_half_set(tmp_path: Path) -> None:
    raw = write_kolektor(tmp_path / "raw")
    (raw / "kos02/Part0_label.bmp").unlink()
    with pytest.raises(DatasetError, match=r"kos02/Part0\.jpg"):
        KolektorSDDThirds(tmp_path / "tiles", raw).prepare_data()
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("cls", [KolektorSDDThirds, AITEX])
def test_the_raw_set_is_never_written_to(cls: type[TiledLayout], tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "inner"):
        with pytest.raises(ValueError, match="never written to"):
            cls(root, tmp_path)


def test_neither_tiles_nor_raw_set(tmp_path: Path) -> None:
    dataset = KolektorSDDThirds(tmp_path / "tiles", tmp_path / "raw")
    assert dataset.is_absent()
    with pytest.raises(DatasetError, match=r"raw.*\n.*kos01/Part0\.jpg.*\n.*vicos"):
        dataset.check()
    (tmp_path / "raw").mkdir()
    with pytest.raises(DatasetError, match="nothing to cut"):
        dataset.prepare_data()


def test_a_set_that_fails_half_way_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), complete_folder(tmp_path / "set") as folder:  # noqa: PT012
        (folder / "0.png").touch()
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_split_of_anomalyclip(tmp_path: Path) -> None:
    dataset = KolektorSDD(write_kolektor_split(tmp_path))
    dataset.check()
    samples = dataset.samples("test")
    assert [(s.label, s.mask_path and s.mask_path.name) for s in samples if s.label] == [
        (1, f"kos03_Part{i}_label.bmp") for i in range(3)
    ]
    assert (len(samples), len(dataset.samples("train"))) == (4, 2)
    assert dataset.name != KolektorSDDThirds("x").name
    assert dataset.class_name_of("electrical commutators") == "electrical commutator"


def test_squares_of_aitex(tmp_path: Path) -> None:
    dataset = AITEX(tmp_path / "tiles", write_aitex(tmp_path / "raw"))
    with pytest.warns(UserWarning, match=r"no mask: 0094_027_05\.png"):
        dataset.prepare_data()
    dataset.setup("fit")
    found = {s.image_path.relative_to(dataset.root).as_posix(): s for s in dataset.samples("test")}
    assert [name for name, sample in found.items() if sample.label] == [
        "test/defect_002/Defect_images_0003_002_00_0000_0000.png",
        "test/defect_002/Defect_images_0003_002_00_0008_0000.png",
        "test/defect_019/Defect_images_0044_019_04_0000_0000.png",
        "test/defect_019/Defect_images_0044_019_04_0024_0000.png",
    ]
    assert sum(not sample.label for sample in found.values()) == 2  # of 8 normal squares
    assert len(dataset.samples("train")) == 6
    areas = [int(read_mask(s.mask_path).sum()) for s in found.values() if s.mask_path]
    assert areas == [6, 6, 6, 6]  # 3 rows, 2 columns in each: the first mask is cut at the edge


def test_faults_of_aitex(tmp_path: Path) -> None:
    raw = write_aitex(tmp_path / "raw")
    (raw / "Mask_images/0003_002_00_mask.png").rename(raw / "Mask_images/0009_002_00_mask.png")
    with pytest.raises(DatasetError, match=r"0009_002_00_mask\.png: no image"):
        AITEX(tmp_path / "tiles", raw).prepare_data()
    shutil.rmtree(raw / "Mask_images")
    with pytest.raises(DatasetError, match=r"not there: .*Mask_images"):
        AITEX(tmp_path / "tiles", raw).prepare_data()
