"""Files that a dataset does not read are reported: by `datasets check`, by a warning of a run, and in its folder."""

import json
import os
import warnings
from pathlib import Path

import pytest

from afclip_lightning.cli.datasets import main as datasets
from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.doctor import examine, render
from afclip_lightning.datasets.aitex import AITEX
from afclip_lightning.datasets.bmad import BMAD
from afclip_lightning.datasets.dagm import CLASSES, DAGM
from afclip_lightning.datasets.elpv import ELPV
from afclip_lightning.datasets.folder import Folder
from afclip_lightning.datasets.headct import HeadCT
from afclip_lightning.datasets.medical import Medical
from afclip_lightning.datasets.mvtec import MVTecAD
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.engine.app import main
from afclip_runtime.errors import DatasetError
from tests.support.clips import small_config
from tests.support.commands import arguments
from tests.support.layouts import write_image, write_mask
from tests.support.layouts.aitex import write_aitex
from tests.support.layouts.bmad import write_bmad
from tests.support.layouts.dagm import write_dagm
from tests.support.layouts.medical import write_medical
from tests.support.layouts.mvtec import write_mvtec
from tests.support.layouts.tables import write_elpv, write_headct


def left_out(dataset: AnomalyDataModule) -> dict[str, str]:
    """Returns the files that both splits leave out, as relative path to reason."""
    found = [item for split in ("train", "test") for item in dataset.left_out(split)]  # type: ignore[arg-type]
    return {item.path.relative_to(dataset.root).as_posix(): item.reason for item in found}


def test_images_of_several_cameras(tmp_path: Path) -> None:
    for name in ("test/good/0", "test/good/cam2/0", "test/crack/0", "test/crack/cam2/0", "test/crack/cam2/deep/0"):
        write_image(tmp_path / f"c/{name}.png")
    for name in ("0", "cam2/0", "cam2/deep/0"):
        write_mask(tmp_path / f"c/ground_truth/crack/{name}_mask.png")
    dataset = MVTecLayout(tmp_path)
    samples = dataset.samples("test")
    assert [s.label for s in samples].count(0) == 2
    masks = {s.image_path.relative_to(tmp_path / "c/test"): s.mask_path for s in samples if s.label}
    assert len(masks) == 3
    for image, mask in masks.items():
        assert mask == tmp_path / "c/ground_truth" / image.with_name("0_mask.png")
    assert not left_out(dataset)
    stray = write_image(tmp_path / "c/test/stray.png")
    assert left_out(dataset) == {"c/test/stray.png": "where no image is looked for"}
    report = examine(dataset)
    assert "1 left out, where no image is looked for: c/test/stray.png." in report.problems
    assert report.left_out[0].path == stray
    assert "Nothing is wrong" not in render(report)
    (tmp_path / "c/ground_truth/crack/cam2/0_mask.png").rename(tmp_path / "c/ground_truth/crack/1_mask.png")
    with pytest.raises(DatasetError, match=r"crack/1_mask\.png: no image"):
        dataset.samples("test")  # masks belong to images of the same subfolder


def test_folders_of_masks_or_depths_beside_images_are_not_read(tmp_path: Path) -> None:
    for kind in ("good", "crack"):
        for part in ("rgb", "xyz", "gt", "Depth", "mask_2"):
            write_image(tmp_path / f"c/test/{kind}/{part}/0.png")
    dataset = MVTecLayout(tmp_path)
    assert {s.image_path.parent.name for s in dataset.samples("test")} == {"rgb"}
    named = left_out(dataset)
    assert len(named) == 8
    assert set(named.values()) == {"in a folder whose name means masks, labels or depths"}


def test_whatever_else_lies_in_mvtecs_layout(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path, ["a"])
    images = ["stray.png", "a/stray.png", "a/ground_truth/0_mask.png", "a/train/0.png"]
    folders = ["b/train/good/0.png", "c/0.png", "a/Test/good/0.png", "a/val/0.png"]
    for name in images:
        write_image(root / name)
    for name in folders:
        write_image(root / name)
    for name in ("a/test/good/1.heic", "a/test/crack/2.CR2", "a/train/good/3", "a/ground_truth/crack/000_mask.webm"):
        (root / name).write_bytes(b"\0")
    for name in (
        "README.md",
        "a/license.txt",
        "a/test/Thumbs.db",
        "a/test/good/.x.png",
        "a/test/good/x.json",
        "LICENSE",
    ):
        (root / name).write_text("no image by nature")
    write_image(root / "a/ground_truth/good/000_mask.png")  # of a normal image: read by nobody, on purpose
    suffix = "of a kind that is not read as an image"
    assert left_out(MVTecLayout(root)) == {
        **dict.fromkeys(("a/test/good/1.heic", "a/test/crack/2.CR2", "a/train/good/3"), suffix),
        "a/ground_truth/crack/000_mask.webm": suffix,
        "a/train/0.png": "where no image is looked for",
        **dict.fromkeys(images[:3], "in no folder of a kind (normal, or a defect)"),
        **dict.fromkeys(("a/Test", "a/val"), "folders of a category that are not read"),
        **dict.fromkeys(("b", "c"), "folders that are no category, having no folder `test`"),
    }
    assert "b" not in left_out(MVTecLayout(write_mvtec(root, ["b"])))


def test_only_names_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_mvtec(tmp_path, ["a"])
    write_image(root / "a/test/stray.png")
    (root / "a/test/good/x.heic").write_bytes(b"x")
    monkeypatch.setattr("PIL.Image.open", lambda *_: pytest.fail("an image was opened"))
    assert len(left_out(MVTecLayout(root))) == 2


def test_a_pipe_and_a_dead_link_with_the_name_of_an_image(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path, ["a"])
    os.mkfifo(root / "a/test/good/pipe.png")
    (root / "a/test/good/loop").symlink_to(root / "a/test")
    with pytest.raises(DatasetError, match="leads back"):
        MVTecLayout(root).samples("test")
    (root / "a/test/good/loop").unlink()
    assert root / "a/test/good/pipe.png" in [s.image_path for s in MVTecLayout(root).samples("test")]  # and an error


@pytest.mark.parametrize(
    ("kind", "doubtful"),
    [
        *((name, True) for name in ("ok", "OK", "Good", "normal", "Normal_2", "defect-free", "no defect", "gut", "iO")),
        *((name, False) for name in ("crack", "not_good", "fine_scratch", "no_cap", "abnormal", "ko", "bad")),
    ],
)
def test_folder_that_could_be_normal(kind: str, doubtful: bool, tmp_path: Path) -> None:
    write_image(tmp_path / "a/test/good/0.png")
    write_image(tmp_path / f"a/test/{kind}/0.png")
    dataset = MVTecLayout(tmp_path)
    assert [s.label for s in dataset.samples("test")].count(1) == 1
    assert bool(dataset.doubts("test")) == doubtful
    found = [p for p in examine(dataset).problems if "its name says normal" in p]
    assert len(found) == doubtful
    if doubtful:
        assert f"test/{kind}: its 1 images count as anomalous" in found[0]
        write_mask(tmp_path / "a/ground_truth/crack/0_mask.png")
        with pytest.raises(DatasetError, match=rf"If the images in .*test/{kind} are normal, move them to 'good'"):
            dataset.samples("test")
        (tmp_path / "a/ground_truth/crack").rename(tmp_path / "a/ground_truth" / kind)
        assert not dataset.doubts("test")  # its masks say what it is


def test_a_set_with_another_word_for_normal(tmp_path: Path) -> None:
    write_image(tmp_path / "bottle/test/good/0.png")
    write_image(tmp_path / "bottle/test/ok/0.png")
    assert len(MVTecAD(tmp_path, categories=["bottle"]).doubts("test")) == 1


def test_folders(tmp_path: Path) -> None:
    for name in ("fine/0.png", "bad/0.png", "bad/deep/1.png", "other/0.png", "first/0.png"):
        write_image(tmp_path / name)
    for name in ("masks/0.png", "masks/deep/1.png"):
        write_mask(tmp_path / name)
    for name in ("fine/a.heic", "bad/deep/b.dng", "masks/c.xyz", "first/d.raw", "other/e.heic", "fine/notes.txt"):
        (tmp_path / name).write_text("x")
    whole = Folder(tmp_path, "fine", "bad", "masks", "first")
    assert set(left_out(whole)) == {"fine/a.heic", "bad/deep/b.dng", "masks/c.xyz", "first/d.raw"}
    assert set(left_out(Folder(tmp_path / "other"))) == {"e.heic"}
    (tmp_path / "masks/0.png").unlink()  # unpaired: that is an error of its own, and no image is called left out
    assert set(left_out(whole)) == {"fine/a.heic", "bad/deep/b.dng", "masks/c.xyz", "first/d.raw"}


def test_published_sets(tmp_path: Path) -> None:
    def add(root: Path, *names: str) -> Path:
        for name in names:
            write_image(root / name) if name.endswith((".png", ".jpg")) else (root / name).write_text("x")
        return root

    dagm = add(write_dagm(tmp_path / "dagm", CLASSES[:1]), "Class1/Test/deep/0.png", "Class1/Train/x.heic")
    bmad = add(write_bmad(tmp_path / "bmad"), "test/good/1.png", "test/Ungood/img/deep/1.png", "test/good/label/x.heic")
    isic = add(write_medical(tmp_path / "isic", "isic"), "ISBI2016_ISIC_Part1_Test_Data/x.heic", "elsewhere.png")
    lag = write_medical(tmp_path / "lag", "lag")  # with folders that are not this set's
    elpv = add(write_elpv(tmp_path / "elpv"), "images/x.png", "images/y.heic")
    headct = add(write_headct(tmp_path / "headct"), "head_ct/x.heic", "head_ct/deep/x.png")
    assert set(left_out(DAGM(dagm, categories=["Class1"]))) == {"Class1/Test/deep/0.png", "Class1/Train/x.heic"}
    assert set(left_out(BMAD("resc", bmad))) == {
        "test/good/1.png",
        "test/Ungood/img/deep/1.png",
        "test/good/label/x.heic",
    }
    assert set(left_out(Medical("isic", isic))) == {"ISBI2016_ISIC_Part1_Test_Data/x.heic"}
    assert not left_out(Medical("lag", lag))
    assert set(left_out(ELPV(elpv))) == {"images/x.png", "images/y.heic"}
    assert set(left_out(HeadCT(headct))) == {"head_ct/x.heic", "head_ct/deep/x.png"}


def test_a_raw_set_of_which_something_is_not_cut(tmp_path: Path) -> None:
    raw = write_aitex(tmp_path / "raw")
    write_image(raw / "NODefect_images/stray.png")
    (raw / "Defect_images/Defect_images/x.heic").write_text("x")
    with pytest.warns(UserWarning, match=r"aitex, raw set .*of which no tile is cut: .*stray\.png.*x\.heic"):
        AITEX(tmp_path / "tiles", raw).prepare_data()


def test_exit_codes_of_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path
    for name in ("train/good/0", "test/good/1", "test/crack/2"):
        write_image(root / f"a/{name}.png")
    command = ["check", "MVTecLayout", "--root", str(root)]
    assert datasets(command) == 0
    (root / "a/test/good/x.heic").write_text("x")
    capsys.readouterr()
    assert datasets([*command, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["left_out"] == [
        {"path": str(root / "a/test/good/x.heic"), "reason": "of a kind that is not read as an image"}
    ]
    assert datasets(["check", "nothing"]) == 2


@pytest.mark.slow
def test_a_run_says_once_what_it_does_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small_config(tmp_path)
    root = write_mvtec(tmp_path / "set", ["a"])
    (root / "a/test/good/x.heic").write_text("x")
    write_image(root / "a/test/stray.png")
    write_image(root / "a/train/stray.png")
    options = ["--model=AFCLIP", "--data=MVTecLayout", "--data.root=set", "--data.num_workers=0"]
    options += [a for a in arguments() if not a.startswith(("--data", "--config"))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(["test", *options]) == 0
        assert main(["fit", *options, "--out=fit", "--data.train_split=train"]) == 0
    said = [str(w.message) for w in caught if "left out" in str(w.message)]
    assert len(said) == 3  # the test split in each run, the training split in one
    assert said[0].startswith("set, test split: 1 left out, where no image is looked for: a/test/stray.png; ")
    assert "1 left out, of a kind that is not read as an image: a/test/good/x.heic" in said[0]
    record = json.loads((tmp_path / "run/left_out.json").read_text())
    assert [(item["split"], Path(item["path"]).name) for item in record] == [("test", "stray.png"), ("test", "x.heic")]
    record = json.loads((tmp_path / "fit/left_out.json").read_text())
    assert ("train", "stray.png") in [(item["split"], Path(item["path"]).name) for item in record]


def test_names_that_are_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train/good/0", "test/good/1", "test/ok\udcff/3", "test/crack/2\udcff"):
        write_image(tmp_path / f"a/{name}.png")
    write_image(tmp_path / "a/test/\udcfe\x1b[1m.png")
    command = ["check", "MVTecLayout", "--root", str(tmp_path)]
    assert datasets(command) == 1
    shown = capsys.readouterr().out
    assert r"a/test/\xfe\x1b[1m.png" in shown
    assert r"test/ok\xff: its 1 images count as anomalous" in shown
    assert datasets([*command, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["left_out"][0]["path"].endswith("\udcfe\x1b[1m.png")  # as the system has it
    with pytest.warns(UserWarning, match=r"\\xfe"):
        MVTecLayout(tmp_path).setup("test")
