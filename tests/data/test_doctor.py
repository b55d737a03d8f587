"""`datasets check`: its report on an intact set and on every kind of fault."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from afclip_lightning.__main__ import main as command_line
from afclip_lightning.cli.datasets import main
from afclip_lightning.data.doctor import Report, examine, render
from afclip_lightning.data.published import Counts
from afclip_lightning.datasets.folder import Folder
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.datasets.synthetic import Synthetic
from tests.support.layouts.visa import write_visa

MASK = np.zeros((14, 20), np.uint8)
MASK[2:6, 10:16] = 255


class Parts(MVTecLayout):
    """A published set: 2 training, 1 normal and 2 anomalous images per category."""

    name = "parts"
    published_counts: Mapping[str, Counts] = {"bolt": (2, 1, 2), "nut": (None, 1, 2)}
    published = tuple(published_counts)
    licence = "CC BY 4.0"


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An intact copy of the set with different pictures."""
    generator = np.random.default_rng(0)
    for category in Parts.published:
        for name in ("train/good/0", "train/good/1", "test/good/0", "test/crack/0", "test/crack/1"):
            save(tmp_path / category / f"{name}.png", generator.integers(0, 256, (14, 20, 3), dtype=np.uint8))
        for i in (0, 1):
            save(tmp_path / category / f"ground_truth/crack/{i}_mask.png", MASK)
    return tmp_path


def problem(report: Report) -> str:
    (only,) = report.problems
    return only


def test_a_sound_set(root: Path) -> None:
    report = examine(Parts(root), threads=2)
    assert not report.problems
    assert not report.notes
    assert [row.found for row in report.categories] == [(2, 1, 2), (2, 1, 2)]
    assert [(row.masks, row.sizes) for row in report.categories] == [(2, (20, 14, 20, 14))] * 2
    text = render(report)
    assert text.endswith("Nothing is wrong.")
    assert "Licence: CC BY 4.0" in text
    assert "20×14 to 20×14" in text


def test_counts_that_are_not_the_published_ones(root: Path) -> None:
    (root / "bolt/train/good/1.png").unlink()
    (root / "nut/train/good/1.png").unlink()  # not published, so not wrong
    report = examine(Parts(root))
    assert problem(report) == "bolt: 1 normal training images, published are 2."
    assert "1 (of 2)" in render(report)
    assert not examine(Parts(root, categories=["nut"])).problems


def test_published_total(root: Path) -> None:
    class Whole(MVTecLayout):
        name = "whole"
        published = ("bolt", "nut")
        published_total = (None, 2, 5)

    assert problem(examine(Whole(root))) == "All categories: 4 anomalous test images, published are 5."
    assert not examine(Whole(root, categories=["bolt"])).problems


def test_published_total_of_what_has_no_number_by_category(root: Path) -> None:
    class Mixed(Parts):
        name = "mixed"
        published_counts: Mapping[str, Counts] = {"bolt": (None, 1, 2), "nut": (None, 1, 2)}
        published_total = (5, 2, 4)

    assert problem(examine(Mixed(root))) == "All categories: 4 normal training images, published are 5."
    (root / "nut/test/good/0.png").unlink()
    first, second = examine(Mixed(root)).problems
    assert first == "nut: 0 normal test images, published are 1."  # and not once more in the total
    assert second == "All categories: 4 normal training images, published are 5."


def test_half_copied_set(root: Path) -> None:
    for path in sorted(root.glob("nut/**/*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    report = examine(Parts(root))
    assert "not there" in problem(report)
    assert str(root / "nut/test") in problem(report)
    assert report.categories[0].found == (2, 1, 2)


def test_wrong_root(tmp_path: Path) -> None:
    assert "does not exist" in problem(examine(Parts(tmp_path / "nowhere")))
    assert "there is no such folder" in problem(examine(Synthetic(tmp_path / "nowhere")))
    assert "no category 'pin'" in problem(examine(MVTecLayout(tmp_path, categories=["pin"])))


def test_every_unpaired_file_is_listed(root: Path) -> None:
    (root / "bolt/ground_truth/crack/0_mask.png").unlink()
    save(root / "bolt/ground_truth/crack/7_mask.png", MASK)
    report = examine(Parts(root))
    assert len(report.problems) == 2
    assert "crack/7_mask.png: no image" in report.problems[0]
    assert "crack/0.png: this anomalous image has no mask" in report.problems[1]
    assert report.categories[0].found == (2, None, None)


def test_unreadable_files(root: Path) -> None:
    (root / "bolt/test/good/0.png").write_text("damaged")
    (root / "nut/ground_truth/crack/1_mask.png").write_text("damaged")
    report = examine(Parts(root))
    first, second = report.problems
    assert "bolt/test/good/0.png: cannot be read" in first
    assert "nut/ground_truth/crack/1_mask.png: cannot be read" in second
    assert report.categories[0].found == (2, 1, 2)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MASK * 0, "0_mask.png: the mask is empty"),
        (MASK[:, :10] | 255, "0_mask.png: the mask is 10×14 pixels and its image 20×14"),
        (MASK // 255 * np.arange(100, 120, dtype=np.uint8), "0_mask.png: the mask is not binary: 6 values above 0"),
    ],
)
def test_masks(mask: np.ndarray, message: str, root: Path) -> None:
    save(root / "bolt/ground_truth/crack/0_mask.png", mask)
    if "binary" in message:
        mask = mask.copy()
        mask[2, 10] = 200
        save(root / "bolt/ground_truth/crack/0_mask.png", mask)
    found = problem(examine(Parts(root)))
    assert message.replace("6 values", "7 values") in found


def test_class_numbers_are_not_smooth_edges(root: Path) -> None:
    save(root / "bolt/ground_truth/crack/0_mask.png", MASK // 255 * np.arange(20, dtype=np.uint8))
    assert not examine(Parts(root)).problems


def test_the_same_picture_twice(root: Path) -> None:
    pixels = np.asarray(Image.open(root / "bolt/train/good/0.png"))
    (root / "bolt/test/good/0.png").unlink()
    save(root / "bolt/test/good/0.bmp", pixels)  # by content: another format, another name
    report = examine(Parts(root))
    assert (
        problem(report) == "The same picture is in training and in test: bolt/train/good/0.png, bolt/test/good/0.bmp."
    )

    save(root / "bolt/test/good/0.bmp", np.asarray(Image.open(root / "bolt/test/crack/0.png")))
    assert problem(examine(Parts(root))).startswith("The same picture is normal and anomalous: bolt/test/crack/0.png")

    save(root / "bolt/test/good/0.bmp", pixels // 2)
    save(root / "nut/test/good/0.png", pixels // 2)
    report = examine(Parts(root))
    assert not report.problems
    assert report.notes == ["1 images are pixel for pixel copies of others of the same split and label."]


def test_problems_beyond_the_first_are_counted(root: Path) -> None:
    report = Report("d", "r", "", problems=[f"number {i}" for i in range(50)])
    text = render(report)
    assert "50 PROBLEMS" in text
    assert "number 39" in text
    assert "number 40" not in text
    assert "… and 10 more" in text


def test_unlabelled_folder(root: Path) -> None:
    report = examine(Folder(root / "bolt/test"))
    assert not report.problems
    assert "3 images have no labels: they can be predicted only." in report.notes


def test_command_on_a_class_with_its_options(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = ["--normal_dir", "test/good", "--abnormal_dir=test/crack", "--mask_dir", "ground_truth/crack"]
    command = ["check", "folder", "--root", str(root / "bolt"), *folders]
    assert main(command) == 0
    assert "Nothing is wrong." in capsys.readouterr().out
    monkeypatch.setenv("AFCLIP_DATA", str(root))
    assert main(["check", "Folder", "--normal_dir", "bolt/test/good", "--root", str(root)]) == 0
    for name, folder in (("btad", "btad"), ("BTAD", "btad"), ("isic", "ISIC2016"), ("bmad_liver", "BMAD/Liver")):
        assert main(["check", name]) == 1
        assert f"in {root / folder}\n" in capsys.readouterr().out
    (root / "bolt/test/good/0.png").write_text("damaged")
    assert main(command) == 1
    assert "1 PROBLEM:" in capsys.readouterr().out
    assert main([*command, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert "good/0.png: cannot be read" in report["problems"][0]
    assert report["categories"][0]["found"] == [0, 1, 2]


def test_command_on_a_published_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_visa(tmp_path, ["candle", "pcb1"])
    assert main(["check", "visa", "--root", str(root), "--categories", "[candle]"]) == 1
    output = capsys.readouterr().out
    assert "candle: 1 normal test images, published are 100." in output
    assert "pcb1" not in output
    assert main(["check", "kvasir", "--root", str(root)]) == 1
    assert "'kvasir' was not found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "imagenet"], "There is no dataset 'imagenet'. There are: "),
        (["check", "mvtec", "--categoriez", "[a]"], "MVTecAD: "),
        (["check", "kvasir", "--subset", "isic"], "name the class Medical"),
        (["check", "Folder", "--root", "r", "--mask_dir", "m"], "no abnormal_dir"),
        (["check", "Folder", "--normal_dir", "good"], "Folder: root must be given: only a published dataset has one"),
        (["list", "--roots"], "list takes no --roots"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_list(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFCLIP_DATA", "elsewhere")
    assert main(["list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"mvtec", "visa", "btad", "isic", "kvasir", "synthetic"} <= rows.keys()
    assert (rows["mvtec"]["test_normal"], rows["mvtec"]["test_anomalous"]) == (467, 1258)
    assert rows["visa"]["licence"] == "CC BY 4.0"
    assert not {"", "elsewhere", "data"} & rows.keys()
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert "mvtec (MVTecAD): 15 categories, 467 / 1258 test images" in text
    assert "CC BY-NC-SA 4.0" in text


def test_the_command_is_one_of_the_package(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["afclip_lightning", "datasets", "check", "imagenet"])
    assert command_line() == 2
    assert "There is no dataset 'imagenet'" in capsys.readouterr().err


def test_masks_saved_with_loss_are_a_note(root: Path) -> None:
    for category in Parts.published:
        for path in (root / category / "ground_truth/crack").iterdir():
            big = np.kron(MASK, np.ones((10, 10), np.uint8))
            path.unlink()
            Image.fromarray(big).save(path.with_suffix(".jpg"), quality=60)
        for i in (0, 1):
            image = root / category / f"test/crack/{i}.png"
            Image.open(image).resize((200, 140)).save(image)
    report = examine(Parts(root))
    assert not report.problems
    (note,) = report.notes
    assert note.startswith(
        "4 masks were saved with loss, as JPEG does, which blurs their edges: values above 127 count"
    )
    assert note.endswith("The first: bolt/ground_truth/crack/0_mask.jpg.")


def test_masks_that_mark_most_of_their_picture(root: Path) -> None:
    save(root / "bolt/ground_truth/crack/0_mask.png", 255 - MASK)
    report = examine(Parts(root))
    assert not report.problems  # a defect may be large
    (note,) = report.notes
    assert note.startswith("bolt: 1 mask marks more than half of the picture, the first is ")
    save(root / "bolt/ground_truth/crack/1_mask.png", 255 - MASK)
    assert problem(examine(Parts(root))).startswith("bolt: 2 masks mark more than half of the picture")


def test_masks_of_several_pages_are_a_note(root: Path) -> None:
    path = root / "bolt/ground_truth/crack/0_mask.png"
    path.unlink()
    tifffile.imwrite(path.with_suffix(".tif"), np.stack([MASK, MASK[::-1]]), photometric="minisblack")
    report = examine(Parts(root))
    assert not report.problems
    assert report.notes == ["1 mask holds several full-size pages, of which the first is read."]


def test_a_boolean_mask_as_tifffile_writes_it(root: Path) -> None:
    for category in Parts.published:
        for i in (0, 1):
            (root / category / f"ground_truth/crack/{i}_mask.png").unlink()
            tifffile.imwrite(root / category / f"ground_truth/crack/{i}_mask.tif", MASK > 0)  # says: white is zero
    report = examine(Parts(root))
    assert [p.partition(":")[0] for p in report.problems] == ["bolt", "nut"]
    assert all("2 masks mark more than half of the picture" in p for p in report.problems)


def test_images_that_use_little_of_their_range(root: Path) -> None:
    dark = np.random.default_rng(1).integers(0, 4096, (14, 20), dtype=np.uint16)
    (root / "bolt/test/good/0.png").unlink()
    tifffile.imwrite(root / "bolt/test/good/0.tif", dark)
    report = examine(Parts(root))
    assert not report.problems
    (note,) = report.notes
    assert note.startswith("1 image uses less than an eighth of its range")


def test_a_mask_that_lies_as_its_image_in_the_file(root: Path) -> None:
    pixels = np.asarray(Image.open(root / "bolt/test/crack/0.png"))
    (root / "bolt/test/crack/0.png").unlink()
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(root / "bolt/test/crack/0.jpg", exif=exif)
    assert not examine(Parts(root)).problems
