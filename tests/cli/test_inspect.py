"""The commands inspect and calibrate: tables that survive a stop, unique file names, errors per image."""

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from afclip_lightning import __version__, load
from afclip_lightning.cli import calibrate, evaluate
from afclip_lightning.cli import inspect as command
from afclip_lightning.cli.model_options import split_model_arguments
from afclip_lightning.engine.factory import Backbones
from afclip_runtime.errors import UserError
from afclip_runtime.files import only_writer
from afclip_runtime.images.maps import read_map
from afclip_runtime.inspection.calibration import Calibration
from afclip_runtime.inspection.inputs import Input, count_left_out, find_inputs
from afclip_runtime.inspection.table import Table
from tests.support import REPOSITORY
from tests.support.small_head import MODEL_OPTIONS, picture, write_head, write_pictures

Row = dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    backbones: Backbones = {}
    return write_head(tmp_path_factory.mktemp("run") / "head.ckpt", backbones).read_bytes()


@pytest.fixture
def folder(trained: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a head, where commands run."""
    (tmp_path / "head.ckpt").write_bytes(trained)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def inspect(*args: str) -> int:
    return command.main(["--checkpoint", "head.ckpt", "--num_workers", "0", "--out", "out", *args])


def rows(output: str = "out") -> list[Row]:
    """Returns the rows of the JSON lines, after checking that the CSV has the same."""
    found = [json.loads(line) for line in Path(output, "inspections.jsonl").read_text().splitlines()]
    with Path(output, "inspections.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["path"] for row in table] == [row["path"] for row in found]
    assert [row["score"] for row in table] == ["" if row["score"] is None else str(row["score"]) for row in found]
    assert [json.loads(row["regions"] or "null") for row in table] == [row["regions"] for row in found]
    return found


@pytest.mark.slow
def test_a_folder_gets_a_table_and_pictures(folder: Path) -> None:
    write_pictures(folder / "images" / "sub dir ü", 3)
    given = ["images", "--threshold", "0.2", "--pixel_threshold", "0.45", "--save", "map,npy,mask,overlay"]
    assert inspect(*given) == 0
    found = rows()
    assert [row["name"] for row in found] == [f"images/sub dir ü/00{i}" for i in range(3)]
    for row in found:
        assert row["error"] == ""
        assert row["threshold"] == 0.2
        assert row["verdict"] == ("anomalous" if row["score"] > 0.2 else "normal")
        anomaly_map = np.load(f"out/npy/{row['name']}.npy")
        assert anomaly_map.shape == (60, 80)
        scaled = read_map(Path(f"out/maps/{row['name']}.png"))
        assert np.abs(scaled - anomaly_map).max() <= np.ptp(anomaly_map) / 65535
        mask = np.array(Image.open(f"out/masks/{row['name']}.png")) > 0
        assert np.array_equal(mask, anomaly_map > 0.45)
        assert row["area"] == pytest.approx(mask.mean())
        assert sum(region["area"] for region in row["regions"]) == mask.sum()
        assert Image.open(f"out/overlays/{row['name']}.jpg").size == (80, 60)
    assert len({row["score"] for row in found}) == 3


def write_bad_images(place: Path) -> None:
    place.mkdir()
    image = Image.fromarray(picture(30, 40))
    image.save(place / "good.png")
    image.convert("CMYK").save(place / "cmyk.jpg")
    image.save(place / "animated.gif", save_all=True, append_images=[image])
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50).save(place / "deep.png")
    image.resize((1, 1)).save(place / "dot.png")
    image.resize((20000, 2)).save(place / "wide.png")
    (place / "zero.png").write_bytes(b"")
    (place / "text.png").write_text("no image")
    (place / "cut.png").write_bytes((place / "good.png").read_bytes()[:-100])
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (60000).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    (place / "bomb.png").write_bytes(header + b"\x8c\x1c\x9d\x2e")
    (place / "empty").mkdir()


@pytest.mark.slow
def test_bad_images_cost_a_line_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bad_images(folder / "bad")
    (folder / "notes.txt").write_text("no image either")
    assert inspect("bad", "bad/empty", "notes.txt", "nothing.png", "--batch_size", "3") == 1
    assert "6 inspected, 7 failed, 0 done before" in capsys.readouterr().out
    found = {row["path"]: row for row in rows()}
    fine = {"good.png", "cmyk.jpg", "animated.gif", "deep.png", "dot.png", "wide.png"}
    assert {path for path, row in found.items() if not row["error"]} == {f"bad/{name}" for name in fine}
    for path, words in {
        "bad/zero.png": "cannot be read as an image",
        "bad/text.png": "not an image in a supported format",
        "bad/cut.png": "cannot be read as an image",
        "bad/bomb.png": "",  # whichever is noticed first, its size or its end
        "bad/empty": "the folder has no image",
        "notes.txt": "cannot be read as an image",
        "nothing.png": "does not exist",
    }.items():
        assert path in found[path]["error"]
        assert words in found[path]["error"]
        assert found[path]["score"] is None
    Image.fromarray(picture(30, 40)).save(folder / "bad" / "zero.png")  # mended
    assert inspect("bad", "--batch_size", "3") == 1
    assert "1 inspected, 3 failed, 6 done before" in capsys.readouterr().out


def test_sources_of_which_none_exists_end_the_command_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # without a model
    assert inspect("none") == 2
    assert capsys.readouterr().err == "error: none does not exist. Check the path.\n"
    assert inspect("none.png", "no/*.jpg") == 2
    assert "none of the 2 named sources exists, the first is none.png. Check their paths." in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_stopped_run_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(folder / "images", 4)
    assert inspect("images", "--save", "npy") == 0
    whole = rows()
    lines = Path("out/inspections.jsonl").read_text().splitlines(keepends=True)
    Path("out/inspections.jsonl").write_text("".join(lines[:2]) + lines[2][:40])  # killed in the third line
    Path("out/inspections.csv").write_text("path,sco")
    kept = Path("out/npy/images/000.npy").stat().st_mtime_ns
    assert inspect("images", "--save", "npy") == 0
    assert "2 inspected, 0 failed, 2 done before" in capsys.readouterr().out
    assert rows() == whole
    assert Path("out/npy/images/000.npy").stat().st_mtime_ns == kept
    assert inspect("images", "--save", "npy", "--tiles", "2") == 2
    assert "holds inspections with another model" in capsys.readouterr().err
    Path("out/inspections.jsonl").write_text("{}\n" + lines[0])
    assert inspect("images", "--save", "npy") == 2
    assert "inspections.jsonl, line 1: there is no path" in capsys.readouterr().err


@pytest.mark.slow
def test_a_replaced_image_is_judged_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (latest,) = write_pictures(folder / "in", 1)
    write_pictures(folder / "in", 3, seed=5)
    Image.fromarray(picture(60, 80)).save(latest)
    assert inspect("in", "--save", "npy") == 0
    before = {row["path"]: row for row in rows()}
    Image.fromarray(picture(60, 80, 99)).save(latest)
    os.utime(latest, ns=(0, before["in/000.png"]["mtime_ns"] + 1))
    assert inspect("in", "--save", "npy") == 0
    out = capsys.readouterr().out
    assert "1 inspected, 0 failed, 2 done before" in out
    assert "1 of these were inspected before and have been replaced since" in out
    now = {row["path"]: row for row in rows()}
    assert now["in/000.png"]["score"] != before["in/000.png"]["score"]
    assert now["in/000.png"]["name"] == "in/000"  # its files take the place of the old ones
    assert len(list(Path("out/npy").rglob("*.npy"))) == 3
    assert {**now, "in/000.png": 0} == {**before, "in/000.png": 0}
    latest.unlink()
    assert inspect("in/000.png", "in/001.png", "--save", "npy") == 1  # the first is gone, so its verdict goes too
    assert {row["path"]: row["error"] != "" for row in rows()}["in/000.png"]


@pytest.mark.slow
def test_a_watched_folder_is_judged_as_a_folder_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(folder / "in" / "sub", 3)
    given = ["--threshold", "0.2", "--pixel_threshold", "0.45", "--save", "npy,labelstudio"]
    assert inspect("in", *given) == 0
    watching = ["--watch", "in", "--watch_quiet", "0", "--watch_idle", "0"]
    assert inspect(*watching, *given) == 0  # the same table goes on, and all is done
    assert "0 inspected, 0 failed, 0 left out" in capsys.readouterr().out
    assert inspect(*watching, *given, "--out", "watched") == 0
    assert sorted(rows("watched"), key=lambda row: str(row["path"])) == rows()
    for path in Path("out").rglob("*.*"):
        if path.suffix in (".npy", ".json") and path.name != "labelstudio.json":
            assert Path("watched", path.relative_to("out")).read_bytes() == path.read_bytes()
    assert inspect(*watching, *given, "--move_to", "good/,bad/") == 2
    assert "--save labelstudio and coco record paths of images, and --move_to moves them" in capsys.readouterr().err
    assert inspect(*watching, *given[:4], "--move_to", "good/,bad/", "--out", "moved") == 0
    assert {Path(row["moved_to"]).parent.name for row in rows("moved")} == {"sub"}
    assert not list(Path("in").rglob("*.png"))
    assert inspect(*watching, "--axis", "axial") == 2
    assert "cut volumes in a run of their own" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        inspect("--feedback", "normal")
    assert "name files or folders" in capsys.readouterr().err
    for by_hand in ("--threshold", "--pixel_threshold"):
        assert inspect("images", "--feedback", "normal", by_hand, "0.5") == 2
        assert "not one by hand: leave --threshold out" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        inspect("images", "--calibration", "bolt", "--no_calibration")
    assert "--no_calibration: not allowed with argument --calibration" in capsys.readouterr().err
    assert inspect("in", *given, "--threshold", "0.123") == 2
    assert "holds inspections with another threshold" in capsys.readouterr().err


@pytest.mark.slow
def test_tables_of_earlier_versions_go_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(folder / "in", 2)
    assert inspect("in") == 0
    lines = [json.loads(line) for line in Path("out/inspections.jsonl").read_text().splitlines()]
    old = [{key: value for key, value in line.items() if key not in ("size", "mtime_ns")} for line in lines]
    Path("out/inspections.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    assert inspect("in") == 0
    assert "0 inspected, 0 failed, 2 done before" in capsys.readouterr().out
    assert rows() == old


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("score", "high"),
        ("score", math.nan),
        ("score", True),
        ("path", 3),
        ("name", None),
        ("verdict", "maybe"),
        ("regions", {"box": 1}),
        ("regions", [{"box": [1, 2, 3], "area": 1, "score": 1.0}]),
        ("mtime_ns", "now"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    row = {"path": "a.png", "score": 0.5, "error": "", "name": "a", field: value}
    (tmp_path / "inspections.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=rf"inspections\.jsonl, line 1: {field}.*Remove the line"):
        Table(tmp_path, several=False)


@pytest.mark.slow
def test_damaged_settings_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(folder / "in", 1)
    Path("out").mkdir()
    for content in (b"[1]", b"{", b"\xff\xfe", b"[" * 100_000, b""):
        Path("out/inspect.json").write_bytes(content)
        assert inspect("in") == 2
        assert "inspect.json" in capsys.readouterr().err


def test_of_volumes_that_are_left_out_their_option_is_said(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    for name in ("a.nii.gz", "b.NII.GZ", "c.mha"):
        (tmp_path / name).write_bytes(b"\0")
    said = count_left_out(find_inputs([str(tmp_path)], tmp_path / "out"))
    assert said == "3 left out (.mha 1, .nii.gz 2; --axis axial cuts volumes into slices)"


@pytest.mark.slow
def test_left_out_files_are_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(folder / "photos", 2)
    for name in ("a.heic", "b.HEIC", "c.cr2", ".hidden.heic", "Thumbs.db", "notes.txt"):
        (folder / "photos" / name).write_bytes(b"\0")
    assert inspect("photos") == 1
    assert "2 inspected, 0 failed, 0 done before, 3 left out (.cr2 1, .heic 2)" in capsys.readouterr().out
    errors = {row["path"]: row["error"] for row in rows() if row["error"]}
    assert set(errors) == {f"photos/{name}" for name in ("a.heic", "b.HEIC", "c.cr2")}
    assert "left out, as a file of the kind .heic is not read here" in errors["photos/a.heic"]
    assert inspect("photos", "--ignore", "*.heic", "--ignore", "*.HEIC", "--ignore", "*.cr2") == 0
    assert "0 inspected, 0 failed, 2 done before, 0 left out" in capsys.readouterr().out


def test_a_closed_or_looping_folder_costs_a_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("in", "in/closed", "in/open"):
        write_pictures(folder / place, 1)
    (folder / "in" / "again").symlink_to("..", target_is_directory=True)
    scan = os.scandir

    def scandir(place: Any) -> Any:
        if Path(place).name == "closed":  # the tests may run as root, whom no folder is closed to
            raise PermissionError(13, "Permission denied")
        return scan(place)

    monkeypatch.setattr("os.scandir", scandir)
    assert inspect("in") == 1
    found = {row["path"]: row["error"] for row in rows()}
    assert {path for path, error in found.items() if not error} == {"in/000.png", "in/open/000.png"}
    assert "Permission denied" in found["in/closed"]
    assert any("leads back to" in error for error in found.values())
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: 2 failed, the first: ")]
    assert note.split(": ", 2)[2].startswith(next(error for error in found.values() if error))
    assert note.endswith(" The others: column error of out/inspections.csv.")


@pytest.mark.slow
def test_long_and_odd_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "in").mkdir()
    names = [b"x" * 251 + b".png", b"x" * 251 + b".bmp", "ü".encode() * 125 + b".png", b"caf\xe9.png", b"=1+1.png"]
    for seed, name in enumerate(names):
        with open(b"in/" + name, "wb") as file:
            Image.fromarray(picture(30, 40, seed)).save(file, "PNG")
    os.mkfifo(folder / "in" / "pipe.png")
    assert inspect("in", "--save", "map,npy,mask,overlay", "--pixel_threshold", "0.4") == 1
    assert "5 inspected, 1 failed" in capsys.readouterr().out
    lines = [json.loads(line) for line in Path("out/inspections.jsonl").read_text("utf-8").splitlines()]
    assert {os.fsencode(row["path"]) for row in lines} == {b"in/" + name for name in [*names, b"pipe.png"]}
    assert len({row["name"] for row in lines}) == 6
    for row in lines:
        if not row["error"]:
            assert Path(f"out/npy/{row['name']}.npy").is_file()
            assert Path(f"out/overlays/{row['name']}.jpg").is_file()
    assert "is a named pipe" in next(row["error"] for row in lines if row["error"])
    table = list(csv.DictReader(Path("out/inspections.csv").read_text("utf-8").splitlines()))
    assert any("caf\\xe9" in row["path"] for row in table)
    assert inspect("in", "--save", "map,npy,mask,overlay", "--pixel_threshold", "0.4") == 1  # each is known again
    assert "0 inspected, 1 failed, 5 done before" in capsys.readouterr().out


def test_names_that_a_file_system_takes_for_one(tmp_path: Path) -> None:
    table = Table(tmp_path, several=False)
    given = [tmp_path / "a" / name for name in ("pru\u0308f.png", "pr\u00fcf.png", "PR\u00dcF.png")]
    names = [table.free_name(Input(path, path.stem)) for path in given]
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) == 3
    assert [table.free_name(Input(path, path.stem)) for path in given] == names


def test_one_writer_at_a_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(folder / "in", 1)
    with only_writer(folder / "out"):
        assert inspect("in") == 2
    assert "out: another process is writing there" in capsys.readouterr().err
    assert inspect("in") == 0


def test_a_head_that_gives_nan_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(folder / "in", 10)
    model = load(folder / "head.ckpt", device="cpu")
    with torch.no_grad():
        next(model.method.parameters()).fill_(math.nan)
    assert any("AFCLIP gives a score" in str(outcome) for _, outcome in model.stream([folder / "in" / "000.png"]))
    with pytest.raises(UserError, match=r"000\.png: AFCLIP gives a score or a map that is not finite"):
        model.predict(folder / "in" / "000.png")


@pytest.mark.slow
def test_equal_names_do_not_meet(folder: Path) -> None:
    for place, seed in (("a", 0), ("b", 10)):
        write_pictures(folder / place, 1, seed=seed)
    Image.fromarray(picture(30, 40)).save(folder / "a" / "000.jpg")
    assert inspect("a/000.png", "--save", "npy") == 0
    assert inspect("b/000.png", "a", "a/000.png", "--save", "npy") == 0  # from another folder on, and one twice
    names = {row["path"]: row["name"] for row in rows()}
    assert set(names) == {"a/000.png", "a/000.jpg", "b/000.png"}
    assert names["a/000.png"] == "000"
    arrays = [np.load(f"out/npy/{name}.npy") for name in names.values()]
    assert len({array.tobytes() for array in arrays}) == 3
    assert inspect("b/000.png", "a", "--save", "npy") == 0  # and each is known again
    assert len(rows()) == 3


@pytest.mark.slow
def test_lists_patterns_and_the_output_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(folder / "images", 3)
    monkeypatch.setattr(sys, "stdin", io.StringIO("images/000.png\n\nimages/002.png\n"))
    assert inspect("-") == 0
    assert [row["path"] for row in rows()] == ["images/000.png", "images/002.png"]
    assert inspect("images/*1.png") == 0
    assert [row["path"] for row in rows()][2:] == ["images/001.png"]
    inside = [
        "--checkpoint",
        "head.ckpt",
        "--num_workers",
        "0",
        "--save",
        "overlay",
        "--out",
        "images/out",
        "images",
    ]
    assert [command.main(inside) for _ in range(2)] == [0, 0]
    assert len(rows("images/out")) == 3  # its own overlays are no images


@pytest.mark.slow
def test_several_methods_share_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(folder / "images", 2)
    args = ["--methods", "CLIP,AnoVL", *MODEL_OPTIONS, "--model.temperature", "0.1", "--out", "out", "--save", "npy"]
    assert command.main([*args, "--num_workers", "0", "images"]) == 0
    found = rows()
    assert [(row["method"], row["name"]) for row in found] == [
        (method, f"images/00{i}") for method in ("CLIP", "AnoVL") for i in range(2)
    ]
    assert {path.name for path in Path("out").iterdir() if path.is_dir()} == {"CLIP", "AnoVL"}
    assert Path("out/CLIP/npy/images/001.npy").is_file()
    assert "note: CLIP, AnoVL: prompts call the product 'object'; --category names it.\n" in capsys.readouterr().err
    assert command.main([*args, "--num_workers", "0", "images", "--out", "named", "--category", "nut"]) == 0
    assert "--category" not in capsys.readouterr().err


def test_maps_are_scored_by_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("good", "hole"):
        write_pictures(folder / "bolt" / "test" / kind, 2)
    masks = folder / "bolt" / "ground_truth" / "hole"
    masks.mkdir(parents=True)
    for i in range(2):
        mask = np.zeros((60, 80), np.uint8)
        mask[10:30, 20:40] = 255
        Image.fromarray(mask).save(masks / f"{i:03d}_mask.png")
    assert inspect("bolt/test", "--save", "map,npy") == 0
    for kind in ("maps", "npy"):
        assert evaluate.main(["--maps", f"out/{kind}", "--masks", "bolt", "--out", f"{kind}.csv"]) == 0
    tables = [list(csv.DictReader(Path(f"{kind}.csv").read_text().splitlines())) for kind in ("maps", "npy")]
    for one, other in zip(*tables, strict=True):
        assert (one["normal"], one["anomalous"]) == ("2", "2")
        assert float(one["pixel_auroc"]) == pytest.approx(float(other["pixel_auroc"]), abs=1e-4)


@pytest.mark.slow
def test_calibrated_verdicts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(folder / "good", 14)
    command = ["--checkpoint", "head.ckpt", "--num_workers", "0", "--normal", "good"]
    assert calibrate.main([*command, "--fpr", "0.05"]) == 0
    said = capsys.readouterr().out
    assert "tail fitted to 14 normal images, which are few for this rate" in said
    assert "90% confidence interval: " in said
    assert "Never report results on the images" in said
    following = "--checkpoint head.ckpt --calibration head.calibration.json IMAGES"
    assert said.endswith(f"Type: python -m afclip_lightning inspect {following}\n")
    kept = Calibration.read(folder / "head.calibration.json")
    assert kept.pixel is not None
    assert inspect("good", "--save", "mask") == 0
    for row in rows():
        assert row["threshold"] == pytest.approx(kept.image.value, rel=1e-6)
        assert (row["probability"] > 0.5) == (row["score"] > row["threshold"]) == (row["verdict"] == "anomalous")
    anomalous = sum(row["verdict"] == "anomalous" for row in rows())
    scores = [row["score"] for row in rows()]
    facts = f"scores {min(scores):.4g} to {max(scores):.4g}, threshold {kept.image.value:.4g}"
    line = f"In the table: {anomalous} anomalous, {14 - anomalous} normal ({facts})"
    assert line in capsys.readouterr().out.splitlines()
    areas = [row["area"] for row in rows()]
    assert np.mean(areas) <= 0.001
    assert inspect("good", "--tiles", "2", "--out", "tiled") == 2
    assert "tiling: " in capsys.readouterr().err
    assert inspect("good", "--tiles", "2", "--out", "tiled", "--no_calibration") == 0
    assert calibrate.main([*command, "--threshold", "0.25"]) == 2
    assert "head.calibration.json already exists (object, 20" in capsys.readouterr().err
    assert calibrate.main([*command, "--threshold", "0.25", "--overwrite"]) == 0
    assert Calibration.read(folder / "head.calibration.json").image.method == "fixed"


@pytest.mark.slow
@pytest.mark.parametrize("table", [False, True])
def test_labelled_images(folder: Path, table: bool, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write_pictures(folder / "set" / "good", 10), write_pictures(folder / "set" / "scratch", 3, seed=50)
    source = "set"
    if table:
        lines = [f"{path.relative_to(folder)},{int(path in bad)}" for path in [*good, *bad]]
        Path(source := "labels.csv").write_text("\n".join(["path,label", *lines]))
    command = ["--checkpoint", "head.ckpt", "--num_workers", "0", "--labelled", source]
    assert calibrate.main([*command, "--criterion", "f1", "--out", "c.json"]) == 0
    assert "of 3 anomalous images and" in capsys.readouterr().out
    kept = Calibration.read(folder / "c.json")
    assert (kept.image.method, kept.image.n) == ("f1", 13)
    assert kept.pixel is not None
    assert kept.pixel.n == 10


def test_mistakes_are_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(folder / "images", 3)
    (folder / "labels.csv").write_text("path,label\nimages/000.png,good\n")
    for args, message in {
        ("images", "--save", "mask"): "needs a pixel threshold",
        ("images", "--save", "picture"): "--save takes map, npy, mask, overlay, nifti, labelstudio, coco, got picture",
        (
            "images",
            "--methods",
            "CLIP",
            "--threshold",
            "1",
        ): "a threshold or a calibration belongs to one model, and several are named",
        ("images", "--model.k_shots", "1"): "k_shots",
        ("images", "--model.k_shot"): "--model.k_shot needs a value",
        (
            "images",
            "--few_shot_dir",
            "nowhere",
        ): "nowhere, the folder of few-shot images, does not exist. Check",
        ("images", "--tiles", "0"): "tiles must be at least 1",
        ("images", "--out", "head.ckpt"): "head.ckpt: cannot be written",
    }.items():
        assert inspect(*args) == 2, args
        assert message in capsys.readouterr().err
    start = ["--checkpoint", "head.ckpt", "--num_workers", "0"]
    for options, message in {
        (): "name normal images",
        ("--normal", "images"): "3 normal images are too few",
        ("--normal", "images", "--few_shot_dir", "images"): "is also in --few_shot_dir",
        ("--normal", "images", "--criterion", "f1"): "needs labelled images",
        ("--labelled", "labels.csv"): "labels.csv, line 2: needs the columns path and label",
        ("--normal", "imagse"): "imagse, the folder of normal images, does not exist. Check the path.",
        (
            "--normal",
            "labels.csv",
        ): "labels.csv, the folder of normal images, is a file. Name the folder",
    }.items():
        assert calibrate.main([*start, *options]) == 2
        assert message in capsys.readouterr().err
    assert not (folder / "head.calibration.json").exists()


@pytest.mark.slow
def test_calibrations_are_of_products(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--checkpoint", "head.ckpt", "--num_workers", "0"]
    for product, seed in (("bolt", 0), ("nut", 50)):
        write_pictures(folder / product, 10, seed=seed)
        assert calibrate.main([*command, "--normal", product, "--product", product]) == 0
    kept = Calibration.read(folder / "head.bolt.calibration.json")
    assert kept.origin is not None
    assert (kept.origin.product, kept.origin.source, kept.origin.images) == ("bolt", "bolt", 10)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", kept.origin.date)
    assert kept.origin.version == __version__
    capsys.readouterr()
    assert inspect("bolt") == 2
    said = capsys.readouterr().err
    assert "name a calibration" in said
    assert "head.bolt.calibration.json: bolt, 20" in said
    assert inspect("bolt", "--calibration", "bolt") == 0
    said = capsys.readouterr().err
    assert re.search("thresholds of head.bolt.calibration.json .bolt, 20.*, 10 images from bolt", said)
    assert inspect("bolt", "--calibration", "screw") == 2
    assert "there is no calibration of screw" in capsys.readouterr().err
    assert inspect("bolt", "--calibration", "head.nut.calibration.json", "--out", "other") == 0
    assert calibrate.main([*command, "--normal", "nut", "--product", "bolt"]) == 2
    assert "head.bolt.calibration.json already exists (bolt, 20" in capsys.readouterr().err
    assert calibrate.main([*command, "--normal", "nut", "--category", "a/b"]) == 2
    assert "'a/b' cannot be part of a file name" in capsys.readouterr().err
    assert Calibration.read(folder / "head.bolt.calibration.json") == kept
    (folder / "head.2.ckpt").write_bytes((folder / "head.ckpt").read_bytes())  # its calibrations are none of head.ckpt
    (folder / "head.2.calibration.json").write_text("{}")
    (folder / "head.nut.calibration.json").unlink()
    assert inspect("bolt") == 0


@pytest.mark.slow
def test_a_stream_of_another_product_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_pictures(folder / "all", 30)
    scores = [one.score for one in load(folder / "head.ckpt", device="cpu").predict_many(paths)]
    ranked = [paths[index] for index in np.argsort(scores)]
    for place, part in (("good", ranked[-12:]), ("other", ranked[:14])):
        (folder / place).mkdir()
        for path in part:
            path.rename(folder / place / path.name)
    assert calibrate.main(["--checkpoint", "head.ckpt", "--num_workers", "0", "--normal", "good"]) == 0
    capsys.readouterr()
    assert inspect("good") == 0
    assert "note" not in capsys.readouterr().err
    assert inspect("other", "--out", "out2") == 3
    said = capsys.readouterr().err
    assert "note: AFCLIP: the calibration no longer holds: scores are lower than those of its 12 normal images" in said
    assert inspect("other", "--out", "out2") == 3  # though nothing is left to do
    assert said.splitlines()[-1] == capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_feedback_moves_the_threshold_of_later_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_pictures(folder / "all", 31)
    scores = [one.score for one in load(folder / "head.ckpt", device="cpu").predict_many(paths)]
    highest = str(paths[int(np.argmax(scores))].rename(folder / "highest.png").relative_to(folder))
    command = ["--checkpoint", "head.ckpt", "--num_workers", "0", "--normal", "all", "--fpr", "0.1"]
    assert calibrate.main(command) == 0
    made = Path("head.calibration.json").read_bytes()
    assert inspect(highest, "all") == 0
    first = {row["path"]: row for row in rows()}
    assert first[highest]["verdict"] == "anomalous"
    assert inspect("--feedback", "normal", "--feedback_by", "Ada", highest) == 0
    said = capsys.readouterr().out
    assert "normal (score" in said
    assert "written to head.feedback.jsonl" in said
    assert inspect("--feedback", "normal", highest) == 2
    assert "is already marked as normal" in capsys.readouterr().err
    (folder / "new.png").write_bytes((folder / highest).read_bytes())
    assert inspect(highest, "all", "new.png") == 0  # the folder of the output goes on
    assert "1 mark of feedback: threshold" in capsys.readouterr().err
    later = {row["path"]: row for row in rows()}
    assert later[highest] == first[highest]
    assert later["new.png"]["threshold"] > first[highest]["threshold"]
    assert inspect("--feedback", "undo", highest) == 0
    assert Path("head.calibration.json").read_bytes() == made
    assert inspect("new.png", "--out", "out2") == 0
    assert rows("out2")[0]["threshold"] == first[highest]["threshold"]
    assert inspect("--feedback", "anomalous", "--no_calibration", highest) == 2
    assert "there is no calibration" in capsys.readouterr().err
    assert inspect("--feedback", "normal", "--feedback_to", "memory", highest) == 2
    assert "--few_shot_dir" in capsys.readouterr().err


@pytest.mark.slow
def test_feedback_joins_the_few_shot_images_and_the_thresholds_must_be_made_anew(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, *few = write_pictures(folder / "all", 13)[:3]
    (folder / "few").mkdir()
    for path in few:
        path.rename(folder / "few" / path.name)
    wrong = wrong.rename(folder / "wrong.png")
    config = str(REPOSITORY / "configs/anomalydino_demo.yaml")
    model = ["--checkpoint", config, "--num_workers", "0", "--few_shot_dir", "few"]
    assert calibrate.main([*model, "--normal", "all", "--out", "c.json"]) == 0
    given = [*model, "--calibration", "c.json", str(wrong)]
    assert command.main([*given, "--out", "before"]) == 0
    assert command.main([*given, "--feedback", "normal", "--feedback_to", "memory"]) == 0
    assert "Calibrate again" in capsys.readouterr().out
    assert command.main([*given, "--out", "after"]) == 2
    assert "c.json does not fit" in capsys.readouterr().err
    assert command.main([*model, "--no_calibration", str(wrong), "--out", "after"]) == 0
    assert rows("after")[0]["score"] < rows("before")[0]["score"]  # it is one of the few-shot images now
    assert command.main([*given, "--feedback", "undo", "--feedback_to", "memory"]) == 0
    assert command.main([*given, "--out", "before"]) == 0  # all is as it was
    without = ["--feedback", "normal", "--feedback_to", "memory", "--few_shot_dir", "few", str(wrong)]
    assert command.main(["--checkpoint", str(REPOSITORY / "configs/clip_demo.yaml"), *without]) == 2
    assert "takes no few-shot images" in capsys.readouterr().err


@pytest.mark.slow
def test_copies_count_once_and_too_few_images_are_reported_early(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *_ = write_pictures(folder / "good", 9)
    (folder / "good" / "copy.png").write_bytes(first.read_bytes())
    (folder / "good" / "raw.heic").write_bytes(b"\0")
    command = ["--checkpoint", "head.ckpt", "--num_workers", "0"]
    assert calibrate.main([*command, "--normal", "good"]) == 0
    said = capsys.readouterr().err
    assert "1 image is a copy of another one, and is counted once" in said
    assert "1 file is of a kind that is not read here, and left out: 1 .heic" in said
    kept = Calibration.read(folder / "head.calibration.json")
    assert (kept.image.n, kept.origin and kept.origin.images) == (9, 9)
    for name in range(8):
        (folder / "one").mkdir(exist_ok=True)
        (folder / "one" / f"{name}.png").write_bytes(first.read_bytes())
    (folder / "both" / "bad").mkdir(parents=True)
    (folder / "both" / "bad" / "0.png").write_bytes(first.read_bytes())
    (folder / "both" / "good").mkdir()
    (folder / "both" / "good" / "0.png").write_bytes(first.read_bytes())

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(calibrate, "load_models", never)
    (folder / "taken").write_text("")
    for options, message in {
        ("--normal", "one"): "1 normal image is too few",
        ("--normal", "good"): "already exists",
        ("--normal", "good", "--out", "taken/c.json"): "taken/c.json: cannot be written",
        ("--normal", "good", "--out", "one"): "is a folder",
        ("--labelled", "one", "--criterion", "f1"): "must be of both kinds",
        ("--labelled", "both"): "one is called normal and the other anomalous",
    }.items():
        overwrite = [] if options == ("--normal", "good") else ["--overwrite"]
        assert calibrate.main([*command, *options, *overwrite]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "x"])
def test_thresholds_are_finite(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    for run, options in ((command.main, ["a.png"]), (calibrate.main, [])):
        for name in ("--threshold", "--pixel_threshold"):
            with pytest.raises(SystemExit) as stop:
                run(["--checkpoint", "head.ckpt", *options, f"{name}={value}"])
            assert stop.value.code == 2
            assert f"argument {name}: must be a finite number, got {value}" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "1", "5", "nan", "5%"])
def test_rates_are_shares(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("--fpr", "--pixel_fpr"):
        with pytest.raises(SystemExit) as stop:
            calibrate.main(["--checkpoint", "head.ckpt", "--normal", "good", f"{name}={value}"])
        assert stop.value.code == 2
        words = f"argument {name}: must be above 0 and at most 0.5 (0.01 is 1 %), got {value}"
        assert words in capsys.readouterr().err


def test_arguments_of_the_method_are_split_off() -> None:
    args = ["a.png", "--model.names", "class_name", "--tiles", "2", "--model.backbone.image_size=112"]
    assert split_model_arguments(args) == (
        ["a.png", "--tiles", "2"],
        {"names": "class_name", "backbone.image_size": 112},
    )
    with pytest.raises(UserError, match=r"--model\.names needs a value"):
        split_model_arguments(["--model.names", "--tiles"])


@pytest.mark.parametrize("module", ["inspect", "calibrate"])
def test_help_needs_no_torch(module: str) -> None:
    code = f"import sys; from afclip_lightning.cli.{module} import _parser; _parser(); "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
