"""Your own images, in folders of any names."""

from pathlib import Path

import pytest

from afclip_lightning.datasets.folder import Folder
from afclip_lightning.engine.app import main
from afclip_lightning.types import UNKNOWN
from afclip_runtime.errors import DatasetError
from tests.support.clips import small_config
from tests.support.commands import arguments
from tests.support.layouts import write_image, write_mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "bolts"
    for name in ("fine/0.png", "fine/1.JPG", "bad/7.jpg", "bad/crack/7.png", "bad/crack/deep/8.png", "first/a.png"):
        write_image(root / name)
    for name in ("masks/7_mask.png", "masks/crack/7.png", "masks/crack/deep/8.png"):
        write_mask(root / name)
    return root


def test_everything(root: Path) -> None:
    dataset = Folder(root, "fine", "bad", "masks", "first")
    dataset.check()
    assert (dataset.name, dataset.selected_categories()) == ("bolts", ["bolts"])
    found = {
        s.image_path.relative_to(root).as_posix(): s.mask_path and s.mask_path.relative_to(root).as_posix()
        for s in dataset.samples("test")
    }
    assert found == {
        "bad/7.jpg": "masks/7_mask.png",
        "bad/crack/7.png": "masks/crack/7.png",
        "bad/crack/deep/8.png": "masks/crack/deep/8.png",
        "fine/0.png": None,
        "fine/1.JPG": None,
    }
    assert all(s.label == ("bad" in s.image_path.parts) for s in dataset.samples("test"))
    assert all(s.mask_known for s in dataset.samples("test"))
    assert [s.image_path.name for s in dataset.few_shot(1, seed=0)["bolts", "bolts"]] == ["a.png"]


def test_subfolders_of_anomalous_images_are_defect_types_where_there_are_several(root: Path) -> None:
    folder = Folder(root, "fine", "bad")
    assert {sample.defect_type for sample in folder.samples("test")} == {""}  # one tells nothing
    write_image(root / "bad/dent/9.png")
    write_image(root / "fine/crack/2.png")
    types = {s.image_path.relative_to(root).as_posix(): s.defect_type for s in folder.samples("test")}
    assert types == {
        "bad/7.jpg": "",
        "bad/crack/7.png": "crack",
        "bad/crack/deep/8.png": "crack",
        "bad/dent/9.png": "dent",
        "fine/0.png": "",
        "fine/1.JPG": "",
        "fine/crack/2.png": "",
    }


def test_name_is_that_of_the_category_too(root: Path) -> None:
    samples = Folder(root, normal_dir="fine", name="M4 bolt").samples("test")
    assert {(s.dataset, s.category) for s in samples} == {("M4 bolt", "M4 bolt")}


def test_parts_alone(root: Path) -> None:
    assert [s.label for s in Folder(root, normal_dir="fine").samples("test")] == [0, 0]
    anomalous = Folder(root, abnormal_dir="bad").samples("test")
    assert [(s.label, s.mask_path, s.mask_known) for s in anomalous] == [(1, None, False)] * 3
    assert Folder(root, abnormal_dir="bad").find_samples("bolts", "train") == []
    with pytest.raises(DatasetError, match="0 normal training images"):
        Folder(root, abnormal_dir="bad").few_shot(1, seed=0)


def test_folder_inside_another(root: Path) -> None:
    write_mask(root / "bad/gt/7.png")
    write_mask(root / "bad/gt/crack/7.png")
    write_mask(root / "bad/gt/crack/deep/8.png")
    assert len(Folder(root, abnormal_dir="bad", mask_dir="bad/gt").samples("test")) == 3


def test_folder_around_the_others(root: Path) -> None:
    write_image(root / "2.png")
    whole = Folder(root, normal_dir=".", abnormal_dir="bad", mask_dir="masks", train_dir="first")
    labels = [s.label for s in whole.samples("test")]
    assert (labels.count(0), labels.count(1)) == (3, 3)


def test_unpaired_files(root: Path) -> None:
    (root / "masks/crack/7.png").unlink()
    with pytest.raises(DatasetError, match=r"bad/crack/7\.png: .*no mask"):
        Folder(root, abnormal_dir="bad", mask_dir="masks").samples("test")
    write_mask(root / "masks/crack/7.png")
    write_mask(root / "masks/stain/7.png")
    with pytest.raises(DatasetError, match=r"masks/stain/7\.png: no image"):
        Folder(root, abnormal_dir="bad", mask_dir="masks").samples("test")


def test_absent_folder_is_named(root: Path) -> None:
    with pytest.raises(DatasetError, match="bolts/good"):
        Folder(root, normal_dir="good").check()


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"train_dir": "."}, "one role"),
        ({"normal_dir": "fine", "mask_dir": "masks"}, "no abnormal_dir"),
        ({"normal_dir": "fine", "train_dir": "fine"}, "one role"),
    ],
)
def test_senseless_combinations(folders: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Folder(tmp_path, **folders)  # type: ignore[arg-type]


def test_unlabelled_images_are_for_prediction_alone(root: Path) -> None:
    dataset = Folder(root, train_dir="first")
    dataset.check("predict")
    samples = dataset.samples("test")
    assert len(samples) == 5 + 3  # the masks' folder is not named, so they are images
    assert {(s.label, s.mask_path, s.mask_known) for s in samples} == {(UNKNOWN, None, False)}
    assert [s.image_path.name for s in dataset.few_shot(1, seed=0)["bolts", "bolts"]] == ["a.png"]
    for stage in ("fit", "validate", "test"):
        with pytest.raises(DatasetError, match=f"have no labels, .* not used to {stage}"):
            dataset.check(stage)


@pytest.mark.slow
def test_prediction_of_a_flat_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small_config(tmp_path)
    for name in ("b.JPG", "a.png"):
        write_image(tmp_path / "photos" / name)
    chosen = ["--model=AFCLIP", "--data=Folder", "--data.root=photos", "--data.num_workers=0"]
    options = chosen + [a for a in arguments() if not a.startswith(("--data", "--config"))]
    assert main(["test", *options]) == 2
    assert main(["predict", *options]) == 0
    lines = (tmp_path / "run/predictions.csv").read_text().splitlines()
    assert [line.split(",")[:4] for line in lines[1:]] == [
        ["photos/a.png", "photos", "photos", ""],
        ["photos/b.JPG", "photos", "photos", ""],
    ]
