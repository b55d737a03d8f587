"""DAGM: an image is anomalous if it has a mask, in both splits."""

import shutil
from pathlib import Path

import pytest

from afclip_lightning.datasets.dagm import DAGM
from afclip_runtime.errors import DatasetError
from tests.support.layouts.dagm import write_dagm


def test_masks_say_which_images_are_anomalous(tmp_path: Path) -> None:
    dataset = DAGM(write_dagm(tmp_path, ["Class7"]), categories=["Class7"])
    assert [(s.image_path.name, s.label, s.mask_path and s.mask_path.name) for s in dataset.samples("train")] == [
        ("0000.PNG", 1, "0000_label.PNG"),
        ("0001.PNG", 0, None),
    ]
    assert [s.image_path.name for s in dataset.few_shot(1, 0)["dagm", "Class7"]] == ["0001.PNG"]


def test_mask_without_image(tmp_path: Path) -> None:
    dataset = DAGM(write_dagm(tmp_path, ["Class7"]), categories=["Class7"])
    (tmp_path / "Class7/Test/0002.PNG").unlink()
    with pytest.raises(DatasetError, match=r"0002_label\.PNG: no image"):
        dataset.samples("test")


@pytest.mark.parametrize("split", ["Test", "Train"])
def test_lost_masks_do_not_turn_images_normal(split: str, tmp_path: Path) -> None:
    dataset = DAGM(write_dagm(tmp_path, ["Class7"]), categories=["Class7"])
    (tmp_path / f"Class7/{split}/Label").rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=f"Class7/{split}/Label"):
        dataset.check()


def test_train_is_not_needed_for_testing(tmp_path: Path) -> None:
    dataset = DAGM(write_dagm(tmp_path, ["Class7"]), categories=["Class7"])
    shutil.rmtree(tmp_path / "Class7/Train")
    dataset.check()
    assert len(dataset.samples("test")) == 5
