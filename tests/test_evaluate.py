"""`evaluate`: saved maps of any method, scored without Lightning."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afclip_lightning.data.maps import read_map
from afclip_lightning.evaluate import main, pair_maps
from afclip_lightning.metrics import PixelMetrics


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
    assert run(tmp_path, "--csv", str(tmp_path / "t.csv"), "--json", str(tmp_path / "t.json")) == 0
    output = capsys.readouterr().out
    with (tmp_path / "t.csv").open() as file:
        rows = {row["category"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["bottle", "cable", "mean"]
    for category, (maps, masks) in written.items():
        metrics = PixelMetrics()
        metrics.update(maps, masks, maps.max((1, 2)))
        for key, value in metrics.compute().items():
            assert float(rows[category][key]) == value
        assert rows[category]["anomalous"] == "3"
    header = "dataset category normal anomalous I-AUROC I-AP I-F1 P-AUROC P-AP P-F1 P-PRO"
    assert output.splitlines()[0].replace("|", " ").split() == header.split(" ")
    assert "mean of 2" in output
    assert f"{100 * float(rows['cable']['pixel_pro']):.1f}" in output
    entries = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert entries[0]["thresholds"].keys() == {"image_f1_max", "pixel_f1_max"}
    assert entries[0]["error_bounds"].keys() == {"pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_pro"}


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
    assert run(tmp_path, "--csv", str(tmp_path / "t.csv")) == 0
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
        ("data/cable/ground_truth/crack/002.png", COLOURS, "002.tiff: has two masks, 002.png and 002_mask.png"),
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
        (("--maps=absent",), "absent is not a folder"),
        (("--csv=/dev/null/t.csv",), "t.csv: cannot be written"),
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


def test_the_command_does_without_lightning(tmp_path: Path) -> None:
    write_tree(tmp_path)
    code = "import runpy, sys; sys.argv[0] = 'x'\ntry: runpy.run_module('afclip_lightning', run_name='__main__')\n"
    code += "except SystemExit as end: sys.exit(end.code or ('lightning' in sys.modules) * 5)"
    command = [sys.executable, "-c", code, "evaluate", f"--maps={tmp_path}/maps", f"--masks={tmp_path}/data"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "mean of 2" in done.stdout
