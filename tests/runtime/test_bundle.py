"""A bundle gives the files of `afclip inspect` without torch, and reports its faults in one message."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

import afclip_runtime
from afclip_lightning import load
from afclip_lightning.cli import calibrate as calibrate_with_torch
from afclip_lightning.cli import export as export_command
from afclip_lightning.cli import inspect as inspect_with_torch
from afclip_lightning.inspection import bundle as writing
from afclip_lightning.inspection.bundle import REQUIRED, export_bundle
from afclip_runtime.cli import calibrate, check, inspect
from afclip_runtime.engines import GRAPH_ENGINES
from afclip_runtime.engines.onnx import OnnxEngine
from afclip_runtime.errors import UserError
from afclip_runtime.images.maps import read_map
from afclip_runtime.inspection.bundle import CALIBRATION, CARD, GRAPH, SUMS, open_bundle
from afclip_runtime.inspection.calibration import Calibration
from afclip_runtime.types import Tiling
from tests.support.deploy import runtime_project
from tests.support.photos import photos
from tests.support.small_models import write_head

BOUND = 1e-4
HEAVY = ("torch", "lightning", "open_clip", "cv2", "scipy", "yaml", "tifffile", "albumentations", "afclip_lightning")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a head, photos, and a bundle of the head with a calibration."""
    folder = tmp_path_factory.mktemp("made")
    write_head(folder, "AFCLIP").rename(folder / "head.ckpt")
    for kind, count in (("normal", 4), ("line", 1)):
        (folder / kind).mkdir()
        for index, photo in enumerate(photos()[:: 2 if kind == "normal" else 1]):
            for turn in range(count):
                Image.fromarray(np.ascontiguousarray(np.rot90(photo, turn))).save(folder / kind / f"{index}_{turn}.png")
    (folder / "line" / "broken.png").write_bytes(b"no picture")
    there = os.getcwd()
    os.chdir(folder)
    try:
        assert calibrate_with_torch.main(["--checkpoint", "head.ckpt", "--normal", "normal", "--tiles", "2"]) == 0
        given = ["--checkpoint", "head.ckpt", "--to", "bundle", "--out", "bundle", "--tiles", "2"]
        assert export_command.main(given) == 0
    finally:
        os.chdir(there)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, the working folder of commands."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(output, "inspections.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("engine", list(GRAPH_ENGINES))
def test_a_bundle_gives_the_files_and_exit_codes_of_inspect(
    folder: Path, capsys: pytest.CaptureFixture[str], engine: str
) -> None:
    pytest.importorskip(GRAPH_ENGINES[engine].package)
    given = ["line", "--save", "map,npy,mask,overlay"]
    assert inspect_with_torch.main([*given, "--checkpoint", "head.ckpt", "--tiles", "2", "--out", "torch"]) == 1
    assert inspect.main([*given, "--bundle", "bundle", "--engine", engine, "--out", "graph"]) == 1
    said = capsys.readouterr()
    assert f"AFCLIP of bundle, run by {engine}" in said.err
    assert "thresholds of bundle/bundle.json (object, " in said.err
    assert "8 inspected, 1 failed, 0 done before, 0 left out: graph/inspections.csv" in said.out
    wanted, got = rows("torch"), rows("graph")
    assert len(wanted) == len(got) == 9
    numbers = {"score", "probability", "threshold", "area", "regions"}
    for a, b in zip(wanted, got, strict=True):
        assert {k: v for k, v in a.items() if k not in numbers} == {k: v for k, v in b.items() if k not in numbers}
        if a["error"]:
            continue
        assert abs(a["score"] - b["score"]) <= BOUND
        assert a["threshold"] == b["threshold"]
        maps = [np.load(f"{output}/npy/{a['name']}.npy") for output in ("torch", "graph")]
        np.testing.assert_allclose(*maps, atol=BOUND, rtol=0)
        np.testing.assert_allclose(
            *(read_map(Path(f"{output}/maps/{a['name']}.png")) for output in ("torch", "graph")), atol=BOUND, rtol=0
        )
        masks = [np.asarray(Image.open(f"{output}/masks/{a['name']}.png")) for output in ("torch", "graph")]
        pixel = Calibration.read(Path("head.calibration.json")).pixel
        assert pixel is not None
        sure = np.abs(maps[0] - pixel.value) > BOUND
        np.testing.assert_array_equal(masks[0][sure], masks[1][sure])
        overlays = [np.asarray(Image.open(f"{output}/overlays/{a['name']}.jpg")) for output in ("torch", "graph")]
        assert overlays[0].shape == overlays[1].shape
    assert {row["verdict"] for row in got if not row["error"]} <= {"normal", "anomalous"}
    assert inspect.main([*given, "--bundle", "bundle", "--engine", engine, "--out", "graph"]) == 1
    assert "0 inspected, 1 failed, 8 done before" in capsys.readouterr().out
    assert inspect_with_torch.main([*given, "--checkpoint", "bundle", "--engine", engine, "--out", "large"]) == 1
    assert [row["score"] for row in rows("large")] == [row["score"] for row in got]


@pytest.mark.slow
def test_a_bundle_watches_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main(["line", "--bundle", "bundle", "--out", "graph"]) == 1
    capsys.readouterr()
    given = ["--watch", "line", "--watch_quiet", "0", "--watch_idle", "0", "--move_to", "good,bad,unread"]
    assert inspect.main([*given, "--bundle", "bundle", "--out", "watched"]) == 1
    assert "8 inspected, 1 failed, 0 left out: watched/inspections.csv" in capsys.readouterr().out
    got = {row["path"]: row for row in rows("watched")}
    assert {path: {**row, "moved_to": 0} for path, row in got.items()} == {
        row["path"]: {**row, "moved_to": 0} for row in rows("graph")
    }
    folders = {"normal": "good", "anomalous": "bad", None: "unread"}
    for row in got.values():
        assert row["moved_to"] == f"{folders[row['verdict']]}/{Path(row['path']).name}"
        assert Path(row["moved_to"]).is_file()


@pytest.mark.slow
def test_it_runs_in_its_folder_without_heavy_packages(folder: Path) -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r})); import afclip_runtime.__main__ as program;"
        "print(program.__file__); sys.argv = ['afclip_runtime', *sys.argv[1:]]; sys.exit(program.main())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *args]
        return subprocess.run(command, cwd=folder / "bundle", env=environment, capture_output=True, text=True)

    done = run("inspect", "../line", "--out", "../out", "--save", "map,mask,overlay")
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith(str(folder / "bundle" / "afclip_runtime" / "__main__.py"))
    assert len(rows("out")) == 9
    assert run("calibrate", "--normal", "../normal").returncode == 0
    checked = run("check")
    assert checked.returncode == 0, checked.stderr
    assert "calibration model.calibration.json: object, " in checked.stdout
    for line in (folder / "bundle" / SUMS).read_text().splitlines():
        assert not line.endswith((".pyc", SUMS))


@pytest.mark.slow
def test_a_calibration_holds_for_head_and_bundle_alike(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate.main(["--bundle", "bundle", "--normal", "normal"]) == 0
    with_torch, with_graph = (Calibration.read(Path(p)) for p in ("head.calibration.json", f"bundle/{CALIBRATION}"))
    assert with_graph.settings == with_torch.settings
    assert with_graph.checkpoint == with_torch.checkpoint
    assert abs(with_graph.image.value - with_torch.image.value) <= 10 * BOUND
    assert with_graph.pixel is not None
    assert with_torch.pixel is not None
    assert abs(with_graph.pixel.value - with_torch.pixel.value) <= BOUND
    for wanted in ("auto", "object"):  # by its name too it goes before the exported one
        assert open_bundle(Path("bundle"), calibration=wanted).calibrated_by == Path("bundle") / CALIBRATION
    assert open_bundle(Path("bundle"), calibration="head.calibration.json").calibration == with_torch
    assert load("head.ckpt", device="cpu", tiling=Tiling(tiles=2), calibration=f"bundle/{CALIBRATION}").calibration
    assert open_bundle(Path("bundle"), calibration=None).calibration is None
    assert calibrate.main(["--bundle", "bundle", "--normal", "normal"]) == 2
    assert "already exists (object, " in capsys.readouterr().err
    with pytest.raises(UserError, match=r"tiling: .*'tiles': 2.* when calibrated, .*'tiles': 1.* now"):
        open_bundle(Path("bundle"), tiling=Tiling())
    assert calibrate_with_torch.main(["--checkpoint", "bundle", "--normal", "normal", "--product", "nut"]) == 0
    assert open_bundle(Path("bundle"), calibration="nut").calibrated_by == Path("bundle/model.nut.calibration.json")


def test_the_exported_calibration_holds_without_a_file(folder: Path) -> None:
    model = open_bundle(Path("bundle"))
    assert model.calibration == Calibration.read(Path("head.calibration.json"))
    assert model.calibrated_by == Path("bundle") / CARD
    assert model.calibration is not None
    assert model.calibration.good is not None
    assert model.tiling == Tiling(tiles=2)


def change(name: str, do: Callable[[bytes], bytes], sums: bool = False) -> Callable[[Path], None]:
    """Returns a function that changes a file of a bundle, and optionally its checksum."""

    def damage(bundle: Path) -> None:
        (bundle / name).write_bytes(do((bundle / name).read_bytes()))
        if sums:
            writing.write_sums(bundle)

    return damage


def card(**fields: Any) -> Callable[[Path], None]:
    return change(CARD, lambda text: json.dumps({**json.loads(text), **fields}).encode(), sums=True)


@pytest.mark.slow
def test_feedback_on_a_bundle_needs_no_torch_and_holds_from_the_next_run_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["line", "--bundle", "bundle", "--out"]
    inspect.main([*given, "before"])
    wrong = max((row for row in rows("before") if not row["error"]), key=lambda row: float(row["score"]))
    meant = "normal" if wrong["verdict"] == "anomalous" else "anomalous"
    assert inspect.main([wrong["path"], "--bundle", "bundle", "--feedback", meant]) == 0
    assert "written to bundle/bundle.feedback.jsonl" in capsys.readouterr().out
    assert check.main(["--bundle", "bundle"]) == 0  # the bundle is whole all the same
    model = open_bundle(Path("bundle"))
    assert model.feedback is not None
    (entry,) = model.feedback.entries
    assert entry.mark == meant
    assert entry.threshold_before == pytest.approx(wrong["threshold"], rel=1e-8)  # a table has 9 digits
    assert model.thresholds[0] == entry.threshold_after != entry.threshold_before
    assert inspect.main([wrong["path"], "--bundle", "bundle", "--feedback", "undo"]) == 0
    assert open_bundle(Path("bundle")).thresholds[0] == entry.threshold_before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change(GRAPH, lambda b: b[: len(b) // 2]), r"model\.onnx: is not the file that was exported: its SHA-256"),
        (change(GRAPH, lambda b: b[:-9] + b"x" + b[-8:]), r"model\.onnx: is not the file that was exported"),
        (change(GRAPH, lambda b: b[: len(b) // 2], sums=True), r"model\.onnx: onnxruntime cannot read the graph"),
        (change(CARD, lambda b: b.replace(b'"tiles": 2', b'"tiles": 3')), r"bundle\.json: is not the file that was"),
        (
            change(CARD, lambda b: b[: len(b) // 2]),
            r"bundle\.json, line \d+: .*Copy the bundle again, or export it again\.",
        ),
        (card(tiling={"fit": "stretched"}), r"bundle\.json: tiling\.fit: invalid enum value 'stretched'"),
        (card(self_test={"scores": [], "maps": [], "tolerance": 1e-4}), r"bundle\.json: self_test: .*one score and 64"),
        (card(surprise=1), r"bundle\.json: there is an unknown field surprise"),
        (card(format=2, surprise=1), r"was written for afclip_runtime 0\.\d\.\d \(format 2\), and this is"),
        (card(runtime="99.1"), r"was written for afclip_runtime 99\.1 \(format 1\), and this is .*its own runtime"),
        (lambda b: (b / SUMS).unlink(), r"SHA256SUMS does not exist\. Copy the bundle again"),
        (lambda b: (b / SUMS).write_text("abc  model.onnx\n"), r"SHA256SUMS, line 1: is not a SHA-256 and a name"),
        (lambda b: (b / SUMS).write_text("0" * 64 + "  ../x\n"), r"SHA256SUMS, line 1: is not a SHA-256 and a name"),
        (lambda b: (b / SUMS).write_text(""), r"SHA256SUMS: has no checksum of bundle\.json"),
        (lambda b: (b / CARD).unlink(), r"is not a bundle: it has no bundle\.json\. `afclip export --to bundle"),
        (lambda b: (b / GRAPH).unlink(), r"model\.onnx does not exist\. Copy the bundle again"),
        (shutil.rmtree, r"bundle: there is no such folder\. --bundle takes a folder that"),
        (change(CALIBRATION, lambda b: b"{}"), r"model\.calibration\.json: there is no .*Calibrate again"),
    ],
)
def test_a_fault_of_a_bundle_is_one_clear_message(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    (folder / "bundle" / CALIBRATION).write_text("{}")
    damage(folder / "bundle")
    with pytest.raises(UserError, match=message) as error:
        open_bundle(folder / "bundle", engine="onnx")
    assert str(folder / "bundle") in str(error.value)
    assert str(error.value).count("\n") == 0


def test_an_engine_that_is_missing_or_differs_is_one_clear_message(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = OnnxEngine._run
    with monkeypatch.context() as patch:
        patch.setattr(OnnxEngine, "_run", lambda self, views: tuple(part + 0.01 for part in run(self, views)))
        for command in (inspect.main, check.main):
            given = ["line", "--engine", "onnx"] if command is inspect.main else []
            assert command([*given, "--bundle", "bundle"]) == 2
            said = capsys.readouterr().err
            assert "the engine onnx differs on this machine from the exported model by 1.0e-02" in said
    packages = {engine.package for engine in GRAPH_ENGINES.values()}

    def none(name: str, package: str | None = None) -> Any:
        return None if name in packages else find_spec(name, package)

    monkeypatch.setattr("importlib.util.find_spec", none)
    monkeypatch.setattr("afclip_runtime.inspection.bundle.find_spec", none)
    assert inspect.main(["line", "--bundle", "bundle"]) == 2
    assert "no engine is installed: pip install onnxruntime or openvino." in capsys.readouterr().err
    assert inspect.main(["line", "--bundle", "bundle", "--engine", "openvino"]) == 2
    assert (
        "openvino is not installed, and --engine openvino runs on it: pip install openvino" in capsys.readouterr().err
    )
    assert check.main(["--bundle", "bundle"]) == 2


def test_check_names_each_file_that_was_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--bundle", "bundle"]) == 0
    said = capsys.readouterr().out
    assert "bundle: AFCLIP on two-blocks" in said
    assert "onnx: differs from the exported model by " in said
    (folder / "bundle" / "requirements.txt").write_text("numpy\n")
    (folder / "bundle" / "afclip_runtime" / "types.py").unlink()
    assert check.main(["--bundle", "bundle"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "types.py does not exist" in first
    assert "requirements.txt: is not the file that was exported" in second


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--checkpoint", "head.ckpt", "--engine", "onnx"],
            "--engine onnx runs bundles, and head.ckpt is not one. Export",
        ),
        (["--checkpoint", "bundle", "--engine", "torch"], "--engine torch runs the head itself: name it in place of"),
        (
            ["--checkpoint", "bundle", "--category", "nut"],
            "--category does not go with bundle: a bundle runs on the CPU",
        ),
        (["--checkpoint", "bundle", "--few_shot_dir", "normal"], "--few_shot_dir does not go with bundle"),
        (["--checkpoint", "bundle", "--model.layers", "[1]"], "--model.layers does not go with bundle"),
        (["--checkpoint", "bundle", "--device", "cuda"], "--device does not go with bundle"),
        (["--checkpoint", "bundle", "--batch_size", "0"], "--batch_size must be at least 1"),
    ],
)
def test_options_that_a_bundle_cannot_follow_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    assert inspect_with_torch.main(["line", *given]) == 2
    assert message in capsys.readouterr().err


def test_commands_that_need_the_head_say_so_of_a_bundle(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_command.main(["--checkpoint", "bundle", "--to", "onnx"]) == 2
    assert "bundle is a bundle, and the head itself is needed here" in capsys.readouterr().err
    assert inspect.main(["line"]) == 2
    assert "name a bundle, --bundle DIR" in capsys.readouterr().err


def test_a_place_is_refused_before_anything_is_loaded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--checkpoint", "absent.ckpt", "--to", "bundle", "--out"]
    assert export_command.main([*given, "bundle"]) == 2
    assert "bundle already exists. Choose another --out, or --overwrite it." in capsys.readouterr().err
    assert export_command.main([*given, "normal", "--overwrite"]) == 2
    assert "normal already exists and is not a bundle. Choose another --out." in capsys.readouterr().err
    assert export_command.main([*given, "head.ckpt", "--overwrite"]) == 2
    assert "head.ckpt already exists and is not a bundle" in capsys.readouterr().err


@pytest.mark.slow
def test_a_bundle_is_replaced_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = folder / "bundle"
    shutil.copy("head.calibration.json", bundle / CALIBRATION)
    (bundle / "left.txt").write_text("of before")
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    model = load("head.ckpt", device="cpu", calibration=None)

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_sums", full)
        with pytest.raises(UserError, match=r"bundle: cannot be written \(No space left on device\)"):
            export_bundle(model, bundle, overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(writing, "compare", lambda *args: 0.01)
        with pytest.raises(UserError, match=r"bundle was not written: .* by up to 1\.0e-02, more than 0\.0001"):
            export_bundle(model, bundle, overwrite=True)
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
    assert export_bundle(model, bundle, overwrite=True) <= BOUND
    assert not (bundle / "left.txt").exists()
    assert (bundle / CALIBRATION).read_bytes() == before[bundle / CALIBRATION]
    assert open_bundle(bundle, calibration=None).tiling == Tiling()
    assert not [path for path in folder.iterdir() if path.name.startswith(".bundle")]


@pytest.mark.slow
def test_few_shot_images_region_and_white_level_go_with_it(tmp_path: Path) -> None:
    images = photos()
    model = load(
        write_head(tmp_path, "NearestNeighbours"), device="cpu", few_shot=images[::2], white=12, category="metal nut"
    )
    assert export_bundle(model, tmp_path / "bundle") <= BOUND
    with_graph = open_bundle(tmp_path / "bundle")
    assert with_graph.settings == model.settings
    assert with_graph.white == 4095
    for a, b in zip(model.predict_many(images), with_graph.predict_many(images), strict=True):
        assert abs(a.score - b.score) <= BOUND
    assert (
        "whether you may share features of the few-shot images: the graph holds them in its memory bank"
        in (tmp_path / "bundle" / "LICENCE.txt").read_text()
    )


def test_required_packages_are_those_that_the_runtime_declares() -> None:
    lines = [line.lstrip("# ") for line in REQUIRED.splitlines()]
    declared = runtime_project()
    stated = {str(Requirement(line)) for line in lines if re.match(r"[a-z-]+(\[\w+\])?[<>=]", line)}
    assert stated == {str(requirement) for extra in declared for requirement in declared[extra]}
    assert [line for line in REQUIRED.splitlines() if not line.startswith("#")] == [
        *map(str, declared[""]),
        *map(str, declared["onnx"]),
    ]


def test_the_package_in_a_bundle_is_this_one(made: Path) -> None:
    mine, copied = Path(afclip_runtime.__file__).parent, made / "bundle" / "afclip_runtime"
    sources = sorted(path.relative_to(mine) for path in mine.rglob("*.py"))
    assert sources == sorted(path.relative_to(copied) for path in copied.rglob("*.py"))
    assert all((mine / path).read_bytes() == (copied / path).read_bytes() for path in sources)
    assert (copied / "LICENSE").is_file()
