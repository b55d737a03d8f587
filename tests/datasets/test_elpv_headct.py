"""ELPV and HeadCT: labels in a table, no masks."""

from pathlib import Path

import pytest

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.datasets.elpv import ELPV
from afclip_lightning.datasets.headct import HeadCT
from afclip_runtime.errors import DatasetError
from tests.support.layouts import write_image
from tests.support.layouts.tables import write_elpv, write_headct


def counts(dataset: AnomalyDataModule) -> tuple[int, int, int]:
    """Returns the numbers of normal training, normal test and anomalous test images."""
    train, test = (dataset.find_samples(dataset.find_categories()[0], split) for split in ("train", "test"))
    assert all(not s.label for s in train)
    assert not {s.image_path for s in train} & {s.image_path for s in test}
    assert all(s.mask_known == (not s.label) for s in test)
    return len(train), sum(not s.label for s in test), sum(s.label for s in test)


def test_elpv(tmp_path: Path) -> None:
    dataset = ELPV(write_elpv(tmp_path))
    dataset.check()
    assert counts(dataset) == (6, 2, 3)
    used = {s.image_path.name for split in ("train", "test") for s in dataset.find_samples("solar_cell", split)}
    assert used == {f"cell{i:04}.png" for i in range(1, 12)}  # not those in between
    assert dataset.class_name_of("solar_cell") == "solar cell"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cell0002.png  0.0", "cell0002.png  none", r"labels\.csv, line 2: must be path"),
        ("cell0002.png  0.0", "cell0002.png  nan", r"labels\.csv, line 2: a probability must be from 0 to 1; got nan"),
        ("cell0002.png  0.0", "cell0002.png  7", r"labels\.csv, line 2: a probability must be from 0 to 1"),
        ("cell0002.png  0.0   poly", "cell0002.png,0.0,poly", r"labels\.csv, line 2: must be path"),
        ("cell0002.png", "cell0001.png", r"labels\.csv, line 2: .*already"),
        ("cell0002.png", "cell0099.png", r"labels\.csv, line 2: there is no file"),
        ("images/cell0002.png", "../images/cell0002.png", r"labels\.csv, line 2: .*leads out"),
    ],
)
def test_faulty_table_of_elpv(old: str, new: str, message: str, tmp_path: Path) -> None:
    table = write_elpv(tmp_path) / "labels.csv"
    table.write_text(table.read_text().replace(old, new, 1))
    with pytest.raises(DatasetError, match=message):
        ELPV(tmp_path).samples("test")


@pytest.mark.parametrize("folder", ["head_ct", "head_ct/head_ct"])
def test_headct(folder: str, tmp_path: Path) -> None:
    root = write_headct(tmp_path, folder)
    HeadCT(root).check()
    assert counts(HeadCT(root)) == (0, 8, 3)
    assert counts(HeadCT(root, test_normal="quarter")) == (6, 2, 3)
    assert HeadCT(root, class_names={"brain": "brain scan"}).class_name_of("brain") == "brain scan"
    assert HeadCT(root).class_name_of("brain") == "head CT"


def test_faulty_headct(tmp_path: Path) -> None:
    dataset = HeadCT(write_headct(tmp_path))
    extra = write_image(tmp_path / "head_ct/500.png")
    with pytest.raises(DatasetError, match=r"500\.png: labels\.csv has no line"):
        dataset.samples("test")
    extra.unlink()
    (tmp_path / "head_ct/001.png").unlink()
    with pytest.raises(DatasetError, match=r"labels\.csv, line 3: there is no file .*001\.png"):
        dataset.samples("test")
    (tmp_path / "labels.csv").write_text("id, hemorrhage\n0,yes\n")
    with pytest.raises(DatasetError, match=r"labels\.csv, line 2: must be a number and 0 or 1"):
        dataset.samples("test")
    (tmp_path / "labels.csv").unlink()
    with pytest.raises(DatasetError, match=r"labels\.csv"):
        dataset.check()
    with pytest.raises(ValueError, match="got 'half'"):
        HeadCT(tmp_path, test_normal="half")  # type: ignore[arg-type]
