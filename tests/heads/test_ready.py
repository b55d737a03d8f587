"""Ready models: found by name, with their own thresholds, which are named as such wherever they are used."""

import json
from pathlib import Path

import numpy as np
import pytest

from afclip_lightning import load
from afclip_lightning.cli import calibrate, export, head, serve
from afclip_lightning.cli import inspect as inspect_command
from afclip_lightning.engine.factory import Backbones
from afclip_lightning.heads import ready
from afclip_lightning.inspection.predictor import Predictor
from afclip_runtime.cli.parser import Command
from afclip_runtime.errors import UserError
from afclip_runtime.types import Tiling
from tests.support.ready_model import NAME, PIXEL_THRESHOLD, THRESHOLD, use, write_ready
from tests.support.small_head import picture, write_pictures

BACKBONES: Backbones = {}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ready(tmp_path_factory.mktemp("models"), BACKBONES).parent


@pytest.fixture(autouse=True)
def place(models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Provides one ready model, and an empty working folder for commands."""
    use(models, monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def model(**options: object) -> Predictor:
    return load(NAME, backbones=BACKBONES, device="cpu", **options)  # type: ignore[arg-type]


def test_a_name_loads_the_model_with_its_own_thresholds() -> None:
    ready_one = model()
    assert ready_one.thresholds == (THRESHOLD, PIXEL_THRESHOLD)
    assert ready_one.thresholds_from == ("default", "default")
    found = ready_one.predict(picture(60, 80))
    assert found.anomalous == (found.score > THRESHOLD)
    assert found.threshold_from == found.pixel_threshold_from == "default"
    assert found.probability is not None


def test_thresholds_by_hand_go_before_the_default() -> None:
    ready_one = model(threshold=0.3)
    assert ready_one.thresholds == (0.3, PIXEL_THRESHOLD)
    assert ready_one.thresholds_from == ("hand", "default")
    assert ready_one.predict(picture(60, 80)).at(None, 0.1).threshold_from is None


def test_default_thresholds_hold_as_they_were_chosen_only() -> None:
    assert model(tiling=Tiling(tiles=2)).thresholds == (None, None)
    assert model(arguments={"map_sigma": 2.0}).thresholds == (None, None)
    assert model(arguments={"backbone.weights": "embedded"}).thresholds == (THRESHOLD, PIXEL_THRESHOLD)


def test_a_picture_says_that_its_scale_is_the_heads() -> None:
    found = model().predict(picture(300, 400))
    by_hand = found.at(THRESHOLD, PIXEL_THRESHOLD).overlay()
    captioned = found.overlay()
    changed = np.flatnonzero((captioned != by_hand).any(axis=(1, 2)))
    assert changed.min() > 200  # the band at the foot
    assert len(changed) > 10


def test_an_unknown_name_gets_all_that_there_is() -> None:
    with pytest.raises(UserError) as caught:
        load("toys")
    said = str(caught.value)
    assert "there is no file, ready model or method called toys. Did you mean toy?" in said
    assert "--model toy  A small head for tests" in said
    assert "WinCLIP" in said
    with pytest.raises(UserError, match=r"there is no ready model 'nope'\. These come ready:"):
        ready.path_of("nope")


def test_what_lies_on_disk_goes_before_a_name(place: Path) -> None:
    (place / NAME).mkdir()
    with pytest.raises(UserError, match=r"has neither head\.ckpt nor head\.safetensors"):
        load(NAME)


@pytest.mark.parametrize(
    ("main", "args"),
    [
        (inspect_command.main, ["photos/a b", "more"]),
        (calibrate.main, ["--normal", "photos"]),
        (export.main, ["--to", "onnx"]),
    ],
)
def test_without_a_model_the_ready_ones_are_offered(
    main: Command, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: name a model: --model NAME")
    assert "--model toy  A small head for tests" in said
    assert "\nType: python -m afclip_lightning " in said


def test_the_offer_says_exactly_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_command.main(["photos/a b"]) == 2
    assert "\nType: python -m afclip_lightning inspect --model toy 'photos/a b'\n" in capsys.readouterr().err
    assert inspect_command.main(["photos", "--model", "toy", "--checkpoint", "x"]) == 2
    assert "give one of them" in capsys.readouterr().err
    assert inspect_command.main(["photos", "--model", "NearestNeighbours"]) == 2
    assert "NearestNeighbours is a method: use --checkpoint NearestNeighbours." in capsys.readouterr().err


def test_no_ready_model_is_said(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(place, monkeypatch)
    assert inspect_command.main(["photos"]) == 2
    assert "No model comes ready with this version." in capsys.readouterr().err
    assert serve.main([]) == 2
    assert "name a model" in capsys.readouterr().err


def test_inspect_names_the_default_threshold_and_calibrate_replaces_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(place / "photos", 2)
    write_pictures(place / "normal", 8, seed=10)
    given = ["photos", "--model", NAME, "--num_workers", "0", "--out"]
    assert inspect_command.main([*given, "first"]) == 0
    assert (
        "the head's default thresholds, which were not made for your product and may miss its defects"
        in capsys.readouterr().err
    )
    rows = [json.loads(line) for line in (place / "first/inspections.jsonl").read_text().splitlines()]
    assert [row["threshold_from"] for row in rows] == ["default", "default"]
    assert all(row["verdict"] in ("normal", "anomalous") for row in rows)
    assert "threshold,threshold_from,verdict" in (place / "first/inspections.csv").read_text()

    assert calibrate.main(["--model", NAME, "--normal", "normal", "--num_workers", "0", "--product", "bolt"]) == 0
    assert (place / f"{NAME}.bolt.calibration.json").is_file()
    assert inspect_command.main([*given, "second"]) == 0
    assert f"thresholds of {NAME}.bolt.calibration.json (bolt" in capsys.readouterr().err
    rows = [json.loads(line) for line in (place / "second/inspections.jsonl").read_text().splitlines()]
    assert [row["threshold_from"] for row in rows] == ["calibration", "calibration"]


def test_head_show_takes_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert head.main(["show", NAME]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Head         A small head for tests\n")
    assert "image score 0.2, map 0.45" in said
    assert head.main(["show", NAME, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["card"]["licence"] == "Apache-2.0"
    assert head.main(["show", "nope"]) == 2
    assert "there is no file nope, and there is no ready model 'nope'" in capsys.readouterr().err
