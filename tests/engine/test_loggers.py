"""Runs in Weights & Biases, TensorBoard and CSV: written offline, and read back from the files."""

import csv
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from afclip_lightning.engine.app import main
from afclip_lightning.engine.loggers import prepare
from afclip_lightning.engine.run_folder import git_revision
from tests.support import REPOSITORY
from tests.support.clips import small_config
from tests.support.commands import arguments, subprocess_of, table
from tests.support.layouts.mvtec import write_mvtec
from tests.support.layouts.visa import write_visa

CATEGORIES = ["candle", "capsules"]
VISA = json.dumps([{"class_path": "VisA", "init_args": {"root": "data/visa", "categories": CATEGORIES}}])
SMALL = [*arguments(), "--data.train.categories=[bottle]", f"--data.test={VISA}", "--pictures.count=1"]
TENSORBOARD = REPOSITORY / "configs/loggers/tensorboard.yaml"
BLOCK = 32768  # of the file's format, which is LevelDB's log


def without_key(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Makes a working folder with miniature datasets, without any login."""
    patch.chdir(folder)
    patch.delenv("AFCLIP_DATA", raising=False)
    for variable in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        patch.delenv(variable, raising=False)
    patch.setenv("NETRC", str(folder / "netrc"))
    wandb.teardown()  # it reads the variables once


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a finished run, `run`, of a shipped config."""
    folder = tmp_path_factory.mktemp("tracking")
    with pytest.MonkeyPatch.context() as patch:
        without_key(patch, folder)
        write_mvtec(folder / "data/mvtec", ["bottle"])
        write_visa(folder / "data/visa", CATEGORIES)
        small_config(folder)
        assert main(["fit", *SMALL]) == 0
    yield folder
    wandb.teardown()


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_key(monkeypatch, folder)


def records(path: Path) -> Iterator[Record]:
    """Yields what a `.wandb` file holds."""
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK  # the rest of a block, too short for a header
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def values(records: list[Record], kind: str) -> dict[str, Any]:
    """Returns the last values of `config` or `summary` records by their keys, nested ones joined by a dot."""
    return {
        item.key or ".".join(item.nested_key): json.loads(item.value_json)
        for record in records
        if record.WhichOneof("record_type") == kind
        for item in getattr(record, kind).update
    }


def offline_files(run: Path) -> list[Path]:
    wandb.teardown()  # a finished run's records may still be on their way to the file
    return sorted(run.glob("wandb/offline-run-*/run-*.wandb"))


def of_kind(records: list[Record], kind: str) -> Any:
    (record,) = [record for record in records if record.WhichOneof("record_type") == kind]
    return getattr(record, kind)


def media(run: Path, path: str) -> Any:
    (file,) = run.glob(f"wandb/offline-run-*/files/{path}")
    return json.loads(file.read_text())


@pytest.mark.slow
def test_an_offline_run_holds_all_that_the_run_was(folder: Path) -> None:
    (file,) = offline_files(folder / "run")
    kept = list(records(file))
    run, config, summary = of_kind(kept, "run"), values(kept, "config"), values(kept, "summary")
    assert (run.project, run.display_name) == ("afclip_lightning", f"{folder.name}/run")
    assert (run.run_group, run.job_type, set(run.tags)) == (folder.name, "fit", {"AFCLIP", "mvtec", "visa"})
    assert config["model"]["class_path"].endswith("AFCLIP")
    assert config["model"]["init_args"]["backbone"]["image_size"] == 28
    assert config["run"] == json.loads((folder / "run/run.json").read_text())
    assert config["run"]["git_revision"] == git_revision()
    assert config["run"]["versions"]["torch"]
    results = table(folder / "run/results.csv")
    for (dataset, category), row in results.items():
        for metric in ("image_auroc", "pixel_pro"):
            assert summary[f"test/{dataset}/{category}/{metric}"] == pytest.approx(float(row[metric]))
    assert of_kind(kept, "exit").exit_code == 0
    assert not list(folder.glob("wandb"))  # nothing beside the run folder


@pytest.mark.slow
def test_table_curves_pictures_and_nearest_words(folder: Path) -> None:
    run = folder / "run"
    (file,) = offline_files(run)
    summary = values(list(records(file)), "summary")
    shown = media(run, summary["results.path"])
    with (run / "results.csv").open() as text:
        rows = list(csv.reader(text))
    assert shown["columns"] == rows[0]
    assert [row[:2] for row in shown["data"]] == [row[:2] for row in rows[1:]]
    assert shown["data"][0][4] == pytest.approx(float(rows[1][4]))
    curves = json.loads((run / "curves.json").read_text())
    assert curves
    for kind in ("image_roc", "image_pr", "pixel_roc", "pixel_pr", "pixel_pro"):
        points = media(run, summary[f"curves/visa/{kind}_table.path"])
        assert {line for _, line, _ in points["data"]} == set(CATEGORIES)
        assert all(0 <= x <= 1 and 0 <= y <= 1 for x, _, y in points["data"])
    assert summary["pictures.count"] == len(list((run / "pictures").glob("*.png"))) == 2
    with (run / "nearest_words.csv").open() as text:
        words = list(csv.reader(text))
    assert len(words) == 1 + 12 * 3  # AF-CLIP's tokens, three words each
    shown = media(run, summary["nearest_words.path"])
    assert [[str(cell) for cell in row] for row in [shown["columns"], *shown["data"]]] == words


@pytest.mark.slow
def test_who_continues_a_run_continues_its_id(folder: Path) -> None:
    resumed = [*SMALL, "--ckpt_path=run/checkpoints/last.ckpt", "--trainer.max_epochs=2", "--test_after_fit=false"]
    assert main(["fit", *resumed]) == 0
    first, second = offline_files(folder / "run")
    ids = {of_kind(list(records(file)), "run").run_id for file in (first, second)}
    assert ids == {(folder / "run/wandb/run_id").read_text()}


@pytest.mark.slow
def test_a_failed_run_is_marked_as_failed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = folder / "data/visa/candle/Data/Images/Anomaly/000.JPG"
    whole = image.read_bytes()
    image.write_bytes(b"not an image")
    try:
        assert main(["test", *SMALL, "--out=failed"]) == 2
    finally:
        image.write_bytes(whole)
    assert str(image.relative_to(folder)) in capsys.readouterr().err
    (file,) = offline_files(folder / "failed")
    assert of_kind(list(records(file)), "exit").exit_code == 1


@pytest.mark.slow
def test_runs_at_once_do_not_meet_and_two_processes_are_one_run(folder: Path) -> None:
    ddp = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.limit_test_batches=1"]
    runs = {"together/one": [], "together/two": ddp}
    started = [subprocess_of(["test", *SMALL, f"--out={run}", *more]) for run, more in runs.items()]
    for process in started:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    ids = set()
    for run in runs:
        (file,) = offline_files(folder / run)
        kept = of_kind(list(records(file)), "run")
        assert kept.run_group == "together"
        ids.add(kept.run_id)
    assert len(ids) == 2
    assert not list(folder.glob("together/wandb")) + list(folder.glob("wandb"))


@pytest.mark.slow
def test_tensorboard_and_csv_by_config(folder: Path) -> None:
    assert main(["fit", *SMALL, f"--config={TENSORBOARD}", "--out=board"]) == 0
    events = EventAccumulator(str(folder / "board/tensorboard")).Reload()
    results = table(folder / "board/results.csv")
    (shown,) = events.Scalars("test/visa/candle/image_auroc")
    assert shown.value == pytest.approx(float(results["visa", "candle"]["image_auroc"]))
    assert events.Scalars("train/total")
    with (folder / "board/log/metrics.csv").open() as file:
        logged = [row["test/visa/candle/image_auroc"] for row in csv.DictReader(file)]
    assert float(logged[-1]) == pytest.approx(shown.value)
    assert not (folder / "board/wandb").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "netrc", "mode"),
    [
        ({}, "", "offline"),
        ({}, "machine other.org login user password secret", "offline"),
        ({}, "machine api.wandb.ai login user password secret", None),
        ({"WANDB_BASE_URL": "https://own.org"}, "machine api.wandb.ai login user password secret", "offline"),
        ({"WANDB_BASE_URL": "https://own.org"}, "machine own.org login user password secret", None),
        ({"WANDB_API_KEY": "secret"}, "", None),
        ({"WANDB_MODE": "online"}, "", None),  # asked for: W&B says what is missing
    ],
)
def test_offline_only_where_there_is_no_key(
    environment: dict[str, str], netrc: str, mode: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text(netrc)
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    logger = WandbLogger(project="x")
    prepare(logger, tmp_path / "run", "fit", ["AFCLIP"])
    assert logger._wandb_init.get("mode") == mode


@pytest.mark.slow
def test_what_the_user_says_of_a_run_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    monkeypatch.setenv("WANDB_RUN_ID", "of-an-agent")
    logger = WandbLogger(name="given", save_dir=tmp_path / "elsewhere", offline=True)
    prepare(logger, tmp_path / "runs/a", "fit", ["AFCLIP"])
    init = logger._wandb_init
    assert (init["name"], init["dir"]) == ("given", str(tmp_path / "elsewhere"))
    assert init.get("group") is None
    assert init["id"] is None
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_refusal_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")  # without a key
    assert main(["test", *SMALL, "--out=refused"]) == 2
    message = capsys.readouterr().err
    assert "error: Weights & Biases: No API key configured." in message
    assert "WANDB_MODE=offline" in message
