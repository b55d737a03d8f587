"""`evaluate`: saved maps of any method, scored without Lightning."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from afclip_lightning.cli.evaluate import main
from afclip_lightning.inspection.saved_maps import pair_maps
from afclip_lightning.metrics import AnomalyMetrics
from afclip_runtime.images.maps import read_map


def save(path: Path, values: np.ndarray) -> np.ndarray:
    """Writes a map or a mask in the format that its suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)
    return values


def write_tree(root: Path, test: str = "test", truth: str = "ground_truth") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Writes maps and masks of two categories in MVTec's layout; returns them by category, `[B, H, W]`."""
    rng = np.random.default_rng(0)
    written = {}
    for category, suffix in (("bottle", ".npy"), ("cable", ".tiff")):
        maps, masks = [], []
        for i in range(5):
            mask = np.zeros((12, 10), np.uint8)
            mask[2:5, 3 + i // 2 : 8] = 255 * (i > 1)
            kind = "crack" if i > 1 else "good"
            values = (rng.random(mask.shape) + mask / 500).astype(np.float32)
            maps.append(save(root / "maps" / category / test / kind / f"{i:03}{suffix}", values))
            masks.append(mask)
            if i > 1:
                save(root / "data" / category / truth / kind / f"{i:03}_mask.png", mask)
        save(root / "data" / category / "train/good/000.png", masks[0])  # of the dataset, and no mask
        written[category] = np.stack(maps), np.stack(masks)
    return written


def run(root: Path, *options: str) -> int:
    return main(["--maps", str(root / "maps"), "--masks", str(root / "data"), *options])


def test_the_table_of_two_categories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = write_tree(tmp_path)
    assert run(tmp_path, "--out", str(tmp_path / "t.csv"), "--out", str(tmp_path / "t.json")) == 0
    output = capsys.readouterr().out
    with (tmp_path / "t.csv").open() as file:
        rows = {row["category"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["bottle", "cable", "mean"]
    for category, (maps, masks) in written.items():
        metrics = AnomalyMetrics()
        metrics.update(maps, masks, maps.max((1, 2)))
        for key, value in metrics.compute().items():
            assert float(rows[category][key]) == value
        assert rows[category]["anomalous"] == "3"
    header = "dataset category normal anomalous I-AUROC I-AP I-F1 P-AP P-AUROC P-F1 P-PRO"
    assert output.splitlines()[0].replace("|", " ").split() == header.split(" ")
    assert "mean of 2" in output
    assert f"{100 * float(rows['cable']['pixel_pro']):.1f}" in output
    entries = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert entries[0]["thresholds"].keys() == {"image_f1_max", "pixel_f1_max"}
    assert entries[0]["error_bounds"].keys() == {f"pixel_{key}" for key in ("ap", "auroc", "f1_max", "pro", "pro_05")}


def test_the_same_numbers_from_other_layouts_and_exact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path / "mvtec")
    assert run(tmp_path / "mvtec", "--tolerance=1") == 0
    table = capsys.readouterr().out
    write_tree(tmp_path / "plain", test=".", truth=".")
    (tmp_path / "plain/data/bottle/train/good/000.png").unlink()
    (tmp_path / "plain/data/cable/train/good/000.png").unlink()
    assert run(tmp_path / "plain", "--exact") == 0
    assert capsys.readouterr().out == table
    folders = [str(tmp_path / "mvtec" / name / "bottle") for name in ("maps", "data")]
    assert main(["--maps", folders[0], "--masks", folders[1], "--exact", "--pro_definition=mvtec"]) == 0
    one = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in one[2:]] == ["all", "mean of 1"]
    assert one[2].split("|")[5:11] == table.splitlines()[2].split("|")[5:11]  # all but PRO


def test_an_undefined_metric_is_absent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path)
    for path in (tmp_path / "maps/cable/test/good").iterdir():
        path.unlink()
    assert run(tmp_path, "--out", str(tmp_path / "t.csv")) == 0
    output = capsys.readouterr().out
    cable, mean = (line.split("|") for line in output.splitlines()[3:5])
    assert [cell.strip() for cell in cable[5:8]] == ["n/a"] * 3
    assert mean[5].strip().endswith("(1)")
    assert "(" not in mean[8]
    assert (tmp_path / "t.csv").read_text().splitlines()[2].startswith("maps,cable,0,3,,,,0.")


@pytest.mark.parametrize("kind", ["uint8.png", "uint16.png", "float32.tiff", "uint16.tif", "float16.npy", "int64.npy"])
def test_maps_are_read_as_they_were_saved(tmp_path: Path, kind: str) -> None:
    values = np.arange(12).reshape(3, 4).astype(kind.partition(".")[0]) * 21
    save(tmp_path / kind, values)
    np.testing.assert_array_equal(read_map(tmp_path / kind), values)


def test_a_saved_batch_of_one_is_a_map(tmp_path: Path) -> None:
    values = save(tmp_path / "a.npy", np.ones((1, 1, 3, 4), np.float32))
    np.testing.assert_array_equal(read_map(tmp_path / "a.npy"), values[0, 0])


def test_masks_are_paired_by_name_and_folder(tmp_path: Path) -> None:
    for name in ("a/1.npy", "a/2.npy", "b/1.npy", "good/1.npy"):
        save(tmp_path / "maps" / name, np.zeros((2, 2)))
    for name in ("a/1_mask.png", "a/2.png", "b/1.png"):
        save(tmp_path / "masks" / name, np.ones((2, 2), np.uint8))
    pairs = pair_maps(tmp_path / "maps", tmp_path / "masks", unmasked_are_normal=False)
    shown = [(str(a.relative_to(tmp_path)), b and str(b.relative_to(tmp_path))) for a, b in pairs.items()]
    assert shown == [
        ("maps/a/1.npy", "masks/a/1_mask.png"),
        ("maps/a/2.npy", "masks/a/2.png"),
        ("maps/b/1.npy", "masks/b/1.png"),
        ("maps/good/1.npy", None),
    ]


NUMBERS = np.zeros((12, 10), np.float32)
COLOURS = np.zeros((12, 10, 3), np.uint8)


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("maps/bottle/test/crack/002.npy", NUMBERS[1:], "002.npy: the map is 10×11 pixels and its mask"),
        ("maps/bottle/test/crack/002.npy", NUMBERS * np.nan, "002.npy: its anomaly map has NaN"),
        ("maps/bottle/test/crack/002.npy", COLOURS, "002.npy: expected numbers [H, W], got uint8 [12, 10, 3]"),
        ("maps/bottle/test/crack/002.npy", b"no array", "002.npy: cannot be read as an array"),
        ("maps/bottle/test/crack/002.png", COLOURS, "002.png: is a colour image (RGB), not a map"),
        ("maps/cable/test/crack/002.tiff", b"no image", "002.tiff: cannot be read as an image"),
        ("maps/cable/test/crack/002.tiff", None, "002_mask.png: no image has the name of this mask"),
        ("data/cable/ground_truth/crack/002_mask.png", None, "add --unmasked_are_normal"),
        ("data/cable/ground_truth/good/000_mask.png", COLOURS + 1, "000.tiff: its label is 0 (normal), but its mask"),
        ("data/cable/ground_truth/crack/002.png", COLOURS, "002.tiff: has two masks, '002.png' and '002_mask.png'"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, content: np.ndarray | bytes | None, message: str
) -> None:
    write_tree(tmp_path)
    if path.endswith("002.png") and path.startswith("maps"):
        (tmp_path / path).with_suffix(".npy").unlink()
    if content is None:
        (tmp_path / path).unlink()
    elif isinstance(content, bytes):
        (tmp_path / path).write_bytes(content)
    else:
        save(tmp_path / path, content)
    assert run(tmp_path) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_maps_without_masks_may_be_declared_normal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path)
    (tmp_path / "data/cable/ground_truth/crack/002_mask.png").unlink()
    assert run(tmp_path, "--unmasked_are_normal") == 0
    assert [cell.strip() for cell in capsys.readouterr().out.splitlines()[3].split("|")[3:5]] == ["3", "2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pro_definition=legacy_cflow",), "needs exact=True"),
        (("--fpr_limit=2",), "fpr_limit must be in (0, 1]"),
        (("--fpr_limit=nan",), "fpr_limit must be in (0, 1]"),
        (("--tolerance=nan",), "tolerance must be in [0, infinity)"),
        (("--mask_threshold=-1",), "--mask_threshold must not be negative"),
        (("--maps=absent",), "absent is not a folder"),
        (("--out=/dev/null/t.csv",), "t.csv: cannot be written"),
    ],
)
def test_bad_options_are_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    write_tree(tmp_path)
    assert run(tmp_path, *options) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_maps_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "maps/cable").mkdir(parents=True)
    assert run(tmp_path) == 2
    assert "maps has no map: no .npy, .png, .tif, .tiff file" in capsys.readouterr().err


def test_an_anomalous_image_with_a_black_mask_is_refused_as_in_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path)
    black = tmp_path / "data/cable/ground_truth/crack/002_mask.png"
    save(black, np.zeros((12, 10), np.uint8))
    assert run(tmp_path) == 2
    error = capsys.readouterr().err
    assert f"{black}: the mask marks nothing, but its image" in error
    assert "--empty_masks normal" in error
    assert run(tmp_path, "--empty_masks=normal") == 0
    assert [cell.strip() for cell in capsys.readouterr().out.splitlines()[3].split("|")[3:5]] == ["3", "2"]


def write_one_category(root: Path, kinds: tuple[str, ...] = ("crack", "scratch"), normal: str = "good") -> None:
    """Writes the content of MVTec's `test` and `ground_truth` folders: defect types, and normal images."""
    rng = np.random.default_rng(1)
    mask = np.zeros((12, 10), np.uint8)
    mask[2:5, 3:8] = 255
    for kind in (normal, *kinds):
        for i in range(2):
            save(root / f"maps/{kind}/{i:03}.npy", rng.random(mask.shape) + (mask / 500 if kind != normal else 0))
            if kind != normal:
                save(root / f"data/{kind}/{i:03}_mask.png", mask)


def categories(output: str) -> list[str]:
    return [line.split("|")[2].strip() for line in output.splitlines()[2:] if line.startswith("|")]


def test_a_folder_named_good_makes_its_neighbours_kinds_of_defects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_one_category(tmp_path)
    assert run(tmp_path) == 0
    output = capsys.readouterr().out
    assert categories(output) == ["all", "mean of 1"]
    assert [cell.strip() for cell in output.splitlines()[2].split("|")[3:5]] == ["2", "4"]
    assert run(tmp_path, "--layout=category") == 0
    assert capsys.readouterr().out == output
    assert run(tmp_path, "--layout=categories") == 0
    assert categories(capsys.readouterr().out) == ["crack", "good", "scratch", "mean of 3"]


def test_normal_images_under_another_name_are_not_taken_for_a_category(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_one_category(tmp_path, normal="ok")
    assert run(tmp_path, "--unmasked_are_normal") == 2
    error = capsys.readouterr().err
    assert "ok holds maps of normal images only and crack of anomalous ones only" in error
    assert "--layout category (all is one) or --layout categories" in error
    assert run(tmp_path, "--unmasked_are_normal", "--layout=category") == 0
    assert categories(capsys.readouterr().out) == ["all", "mean of 1"]
    assert run(tmp_path, "--unmasked_are_normal", "--layout=categories") == 0
    assert categories(capsys.readouterr().out) == ["crack", "ok", "scratch", "mean of 3"]


@pytest.mark.parametrize("stray", ["good/000.npy", "test/good/000.npy", "000.npy"])
def test_what_could_be_a_category_or_a_kind_of_defect_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stray: str
) -> None:
    write_tree(tmp_path)
    save(tmp_path / "maps" / stray, np.zeros((12, 10)))
    assert run(tmp_path) == 2
    error = capsys.readouterr().err
    assert f"{stray.split('/')[0]} lies beside bottle, which looks like a category of its own" in error
    assert "--layout categories" in error
    if stray == "good/000.npy":
        assert run(tmp_path, "--layout=categories") == 0
        assert categories(capsys.readouterr().out) == ["bottle", "cable", "good", "mean of 3"]


def test_a_category_may_be_called_all_and_not_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path)
    for name in ("maps", "data"):
        (tmp_path / name / "bottle").rename(tmp_path / name / "all")
    assert run(tmp_path) == 0
    assert categories(capsys.readouterr().out) == ["all", "cable", "mean of 2"]
    for name in ("maps", "data"):
        (tmp_path / name / "all").rename(tmp_path / name / "mean")
    assert run(tmp_path) == 2
    assert "maps/mean: a category is called 'mean', and so is the mean of all categories" in capsys.readouterr().err


def test_left_out_files_are_reported_with_their_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path)
    np.savez(tmp_path / "maps/cable/test/good/007.npz", np.zeros(3))
    save(tmp_path / "maps/cable/test/good/008.jpg", np.zeros((12, 10), np.uint8))
    save(tmp_path / "maps/bottle/train/good/000.npy", np.zeros((12, 10)))
    save(tmp_path / "maps/bottle/test/good/000.jpg", np.zeros((12, 10), np.uint8))  # a picture of a map that is read
    (tmp_path / "maps/screw/test/good").mkdir(parents=True)
    save(tmp_path / "data/zipper/ground_truth/crack/000_mask.png", np.ones((12, 10), np.uint8))
    assert run(tmp_path, "--out", str(tmp_path / "t.json")) == 1
    output, error = capsys.readouterr()
    assert categories(output) == ["bottle", "cable", "mean of 2"]
    notes = error.splitlines()
    assert f"note: 1 file left out of {tmp_path}/maps/bottle: 1 outside test; the first is" in notes[0]
    assert f"note: 2 files left out of {tmp_path}/maps/cable: 1 .jpg, 1 .npz; the first is" in notes[1]
    assert notes[2] == "note: 1 folder below --maps without a map: screw."
    assert notes[3].startswith("note: 1 category with masks and without maps: zipper.")
    assert [f"note: {line}" for line in json.loads((tmp_path / "t.json").read_text())["notes"]] == notes
    assert len(notes) == 4


def test_folders_below_the_normal_one_are_normal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path)
    path = tmp_path / "maps/cable/test/good/cam2/000.tiff"
    save(path, np.zeros((12, 10), np.float32))
    assert run(tmp_path, "--out", str(tmp_path / "t.json")) == 0
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert [row["normal"] for row in rows[:2]] == [2, 3]
    save(tmp_path / "data/cable/ground_truth/good/cam2/000_mask.png", np.full((12, 10), 255, np.uint8))
    assert run(tmp_path) == 2
    assert f"{path}: its label is 0 (normal), but its mask is not empty" in capsys.readouterr().err


def test_unread_masks_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path)
    path = tmp_path / "data/cable/ground_truth/crack/002_mask.png"
    np.save(path.with_suffix(".npy"), np.asarray(Image.open(path)))  # another copy of a mask that is read
    assert run(tmp_path) == 0
    assert "left out" not in capsys.readouterr().err
    path.unlink()
    said = f"1 file left out of {tmp_path}/data/cable: 1 .npy; the first is {path.with_suffix('.npy')}."
    assert run(tmp_path) == 2
    assert said in capsys.readouterr().err
    assert run(tmp_path, "--unmasked_are_normal") == 1
    assert said in capsys.readouterr().err


def test_several_pages_are_one_mask_with_a_word_and_no_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path)
    path = tmp_path / "data/cable/ground_truth/crack/002_mask.png"
    mask = np.asarray(Image.open(path))
    path.unlink()
    tifffile.imwrite(path.with_suffix(".tif"), np.stack([mask, mask.T.reshape(mask.shape)]), photometric="minisblack")
    assert run(tmp_path) == 0
    said = "note: cable: 1 mask holds several full-size pages, of which the first is read."
    assert said in capsys.readouterr().err
    path = tmp_path / "maps/cable/test/good/000.tiff"
    tifffile.imwrite(path, np.stack([np.zeros(mask.shape, np.float32)] * 2), photometric="minisblack")
    assert run(tmp_path) == 2
    assert f"{path}: holds several full-size pages" in capsys.readouterr().err


def test_only_maps_of_suffixes_that_are_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path)
    for path in [*(tmp_path / "maps").rglob("*.npy"), *(tmp_path / "maps").rglob("*.tiff")]:
        path.rename(path.with_suffix(".npz"))
    assert run(tmp_path) == 2
    error = capsys.readouterr().err
    assert "maps has no map" in error
    assert "5 files left out of" in error


def test_two_maps_of_one_normal_image_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path)
    save(tmp_path / "maps/bottle/test/good/000.png", np.zeros((12, 10), np.uint8))
    assert run(tmp_path) == 2
    assert "000.png: 000.npy beside it has the same name. Keep one map of each image." in capsys.readouterr().err


def test_masks_that_mark_most_of_their_picture_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path)
    for i in (2, 3, 4):
        path = tmp_path / f"data/cable/ground_truth/crack/{i:03}_mask.png"
        save(path, 255 - np.asarray(Image.open(path)))
    assert run(tmp_path) == 0
    error = capsys.readouterr().err
    assert "note: cable: 3 masks mark more than half of the picture, the first is" in error
    assert "bottle" not in error


def test_masks_may_be_cut_higher(tmp_path: Path) -> None:
    write_tree(tmp_path)
    path = tmp_path / "data/cable/ground_truth/crack/002_mask.png"
    values = np.asarray(Image.open(path)).copy()
    values[values == 0] = 9  # as a lossy format leaves it
    save(path, values)
    tables = []
    for threshold in ("0", "127"):
        assert run(tmp_path, f"--mask_threshold={threshold}", "--out", str(tmp_path / "t.csv")) == 0
        tables.append((tmp_path / "t.csv").read_text())
    assert tables[0] != tables[1]


@pytest.mark.parametrize(
    "form",
    ["f2.npy", "f4.npy", ">f8.npy", "f8.npy", "i8.npy", "u8.npy", "f2.tif", ">f4.tif", "f8.tiff", "i8.tif", "u8.tif"],
)
def test_scores_are_ranked_in_the_precision_that_they_were_saved_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    number, suffix = form.split(".")
    rng = np.random.default_rng(0)
    mask = np.zeros((64, 64), np.uint8)
    mask[10:30, 10:30] = 255
    for kind in ("good", "bad"):
        values = rng.random(mask.shape) / 2 + (0.45 * (mask > 0) if kind == "bad" else 0)
        if number in ("i8", "u8"):
            values = (values * 1000).astype(number) + 2**40
        elif number.endswith("8"):
            values = 1 - 1e-9 * (1 - values)
        path = tmp_path / f"maps/test/{kind}/0.{suffix}"
        if suffix == "npy":
            save(path, values.astype(number))
        else:
            path.parent.mkdir(parents=True)
            tifffile.imwrite(path, values.astype(number), byteorder=">" if number.startswith(">") else "<")
    save(tmp_path / "data/bad/0_mask.png", mask)
    assert run(tmp_path, "--out", str(tmp_path / "t.csv"), "--out", str(tmp_path / "t.json")) == 0
    with (tmp_path / "t.csv").open() as file:
        row = next(csv.DictReader(file))
    assert float(row["pixel_auroc"]) > 0.98
    assert float(row["image_auroc"]) == 1
    bounds = json.loads((tmp_path / "t.json").read_text())["rows"][0]["error_bounds"]
    assert all(bound < 1e-3 for bound in bounds.values())


def test_paths_with_the_name_of_a_map_that_are_not_files_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path)
    path = tmp_path / "maps/bottle/test/good/009.npy"
    path.symlink_to(tmp_path / "nowhere.npy")
    assert run(tmp_path) == 2
    assert str(path) in capsys.readouterr().err
    path.unlink()
    os.mkfifo(path)
    assert run(tmp_path) == 2
    assert str(path) in capsys.readouterr().err


def test_folders_of_defects_without_normal_images_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_one_category(tmp_path)
    for path in (tmp_path / "maps/good").iterdir():
        path.unlink()
    (tmp_path / "maps/good").rmdir()
    assert run(tmp_path) == 0
    output, error = capsys.readouterr()
    assert categories(output) == ["crack", "scratch", "mean of 2"]
    assert "note: No category has a map of a normal image." in error
    assert "--layout category" in error


def test_a_loop_of_links_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path)
    (tmp_path / "maps/cable/test/again").symlink_to(tmp_path / "maps/cable")
    assert run(tmp_path) == 2
    assert "this link leads back to" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_does_without_lightning(tmp_path: Path) -> None:
    write_tree(tmp_path)
    code = "import runpy, sys; sys.argv[0] = 'x'\ntry: runpy.run_module('afclip_lightning', run_name='__main__')\n"
    code += "except SystemExit as end: sys.exit(end.code or ('lightning' in sys.modules) * 5)"
    command = [sys.executable, "-c", code, "evaluate", f"--maps={tmp_path}/maps", f"--masks={tmp_path}/data"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "mean of 2" in done.stdout


def test_intervals_of_saved_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path)
    table = str(tmp_path / "t.json")
    assert run(tmp_path, "--intervals=100", "--out", table) == 0
    assert "bottle: it has 2 normal and 3 anomalous images, and an interval needs 5 of each" in capsys.readouterr().err
    assert "intervals" not in json.loads(Path(table).read_text())["rows"][0]
    rng = np.random.default_rng(1)
    for kind in ("good", "crack"):
        for i in range(10, 18):
            mask = np.zeros((12, 10), np.uint8)
            mask[2:5, 3:8] = 255 * (kind == "crack")
            save(tmp_path / f"maps/bottle/test/{kind}/{i:03}.npy", rng.random(mask.shape) + mask / 500)
            if kind == "crack":
                save(tmp_path / f"data/bottle/ground_truth/crack/{i:03}_mask.png", mask)
    assert run(tmp_path, "--intervals=100", "--interval_kind=percentile", "--out", table) == 0
    captured = capsys.readouterr()
    assert "95 % intervals, by resampling the images:" in captured.out
    assert "No interval of the mean of maps, where a category has none: I-AUROC" in captured.err
    bottle, cable, mean = json.loads(Path(table).read_text())["rows"]
    low, high = bottle["intervals"]["pixel_auroc"]
    assert 0.5 < low < bottle["metrics"]["pixel_auroc"] < high < 1
    assert "intervals" not in cable | mean
    for category in ("bottle", "cable"):
        for i in range(3):
            save(tmp_path / f"normal/{category}/{i}.npy", rng.random((12, 10)))
    fixed = ("--threshold=mean+1sd", "--normal_maps", str(tmp_path / "normal"))
    assert run(tmp_path, "--intervals=100", *fixed, "--out", table) == 0
    assert "95 % intervals at these thresholds" in capsys.readouterr().out
    bottle, cable, mean = json.loads(Path(table).read_text())["rows"]
    low, high = bottle["intervals"]["pixel_fixed_f1"]
    assert 0 < low < bottle["operating_points"]["pixel"]["f1"] < high < 1
    assert "intervals" not in cable | mean


def test_intervals_that_cannot_be_found_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path)
    assert run(tmp_path, "--intervals=10") == 2
    assert "0 or at least 100 samples, got 10" in capsys.readouterr().err
    assert run(tmp_path, "--intervals=100", "--exact", "--pro_definition=mvtec") == 2
    assert "leave out --pro_definition mvtec" in capsys.readouterr().err


def test_aupimo_of_saved_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maps, masks = write_tree(tmp_path)["bottle"]
    assert run(tmp_path, "--aupimo") == 0
    captured = capsys.readouterr()
    assert "No AUPIMO of maps/bottle: undefined with 240 pixels of normal images" in captured.err
    assert "AUPIMO" not in captured.out
    mask = np.zeros((400, 400), np.uint8)
    mask[:20, :30] = 255
    found = np.zeros(mask.shape)
    found[:20, :22] = 2
    save(tmp_path / "maps/bottle/test/good/010.npy", np.linspace(0, 1, mask.size).reshape(mask.shape))
    save(tmp_path / "maps/bottle/test/crack/010.npy", found)
    save(tmp_path / "data/bottle/ground_truth/crack/010_mask.png", mask)
    assert run(tmp_path, "--aupimo", "--out", str(tmp_path / "t.json")) == 0
    assert "P-AUPIMO" in capsys.readouterr().out
    of_images = [22 / 30, *((values > 1)[mask > 0].mean() for values, mask in zip(maps[2:], masks[2:], strict=True))]
    bottle = json.loads((tmp_path / "t.json").read_text())["rows"][0]
    assert bottle["metrics"]["pixel_aupimo"] == pytest.approx(np.mean(of_images), abs=1e-3)  # nothing normal is above 1


def test_rows_by_defect_type_of_saved_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path)
    assert run(tmp_path, "--defect_types") == 0
    captured = capsys.readouterr()
    assert "By defect type" not in captured.out
    assert "note: bottle: no rows by defect type, its anomalous maps do not lie in folders" in captured.err
    for name, truth in (("maps/bottle/test", ".npy"), ("data/bottle/ground_truth", "_mask.png")):
        for kind, i in (("stain", 3), ("stain/deep", 4)):
            (tmp_path / name / kind).mkdir()
            (tmp_path / name / f"crack/{i:03}{truth}").rename(tmp_path / name / kind / f"{i:03}{truth}")
    assert run(tmp_path, "--defect_types", *(f"--out={tmp_path / name}" for name in ("t.csv", "t.json"))) == 0
    captured = capsys.readouterr()
    assert "By defect type, all normal images against those of one type:" in captured.out
    assert "cable: no rows by defect type" in captured.err
    kept = json.loads((tmp_path / "t.json").read_text())
    assert [(row["category"], row["defect_type"], row["normal"], row["anomalous"]) for row in kept["by_type"]] == [
        ("bottle", "crack", 2, 1),
        ("bottle", "stain", 2, 2),
    ]
    shutil.rmtree(tmp_path / "maps/cable")
    shutil.rmtree(tmp_path / "maps/bottle/test/crack")
    shutil.rmtree(tmp_path / "data/bottle/ground_truth/crack")
    assert run(tmp_path, f"--out={tmp_path / 'stain.json'}") == 0
    alone = json.loads((tmp_path / "stain.json").read_text())["rows"][0]["metrics"]
    of_type = kept["by_type"][1]["metrics"]
    assert {key: of_type[key] for key in alone} == pytest.approx(alone, abs=1e-3)
    with (tmp_path / "t_by_type.csv").open() as file:
        line = list(csv.DictReader(file))[1]
    assert (line["defect_type"], float(line["pixel_ap"])) == ("stain", of_type["pixel_ap"])


def test_thresholds_fixed_on_other_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = write_tree(tmp_path)
    rng = np.random.default_rng(1)
    normal = {
        category: np.stack([save(tmp_path / f"normal/{category}/{i}.npy", rng.random((12, 10))) for i in range(3)])
        for category in written
    }
    fixed = ("--threshold", "mean+1sd", "--normal_maps", str(tmp_path / "normal"), "--out", str(tmp_path / "t.json"))
    assert run(tmp_path, *fixed) == 0
    assert "At thresholds fixed without labels (mean+1sd)" in capsys.readouterr().out
    for row in json.loads((tmp_path / "t.json").read_text())["rows"][:2]:
        values = normal[row["category"]]
        scores, point = values.max((1, 2)), row["operating_points"]
        assert point["pixel"]["threshold"] == pytest.approx(values.mean() + values.std(), rel=1e-9)
        assert point["image"]["threshold"] == pytest.approx(scores.mean() + scores.std(), rel=1e-9)
        maps, masks = written[row["category"]]
        above, marked = maps > point["pixel"]["threshold"], masks > 0
        assert point["pixel"]["f1"] == pytest.approx(
            2 * (above & marked).sum() / (above.sum() + marked.sum()), abs=point["pixel"]["f1_error"] + 1e-9
        )


def test_a_rule_without_normal_maps_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path)
    assert run(tmp_path, "--threshold", "mean+3sd") == 2
    assert "--threshold RULE fixes thresholds on --normal_maps DIR: give both" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(tmp_path, "--threshold", "mean+3sd", "--normal_maps", str(tmp_path / "empty")) == 2
    assert "needs the scores of normal images, and there are 0" in capsys.readouterr().err
    assert run(tmp_path, "--threshold", "best", "--normal_maps", str(tmp_path / "empty")) == 2
    assert "a rule is mean+3sd or q0.99" in capsys.readouterr().err
