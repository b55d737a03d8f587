"""A benchmark as a user runs it: real cells on drawn pictures, one reproducible table."""

import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from afclip_lightning.benchmark import runner
from afclip_lightning.benchmark.runner import command_line
from afclip_lightning.benchmark.table import read_results
from afclip_lightning.cli import benchmark as command
from afclip_runtime.launch import Ended, Outcome, Where
from afclip_runtime.launch.signals import STOPPED
from afclip_runtime.launch.where import Report
from afclip_runtime.launch.worker import run_claimed
from tests.support import REPOSITORY, matrices
from tests.support.fake_cells import run
from tests.support.layouts.mvtec import write_mvtec

DRAWN = "root: drawn, image_size: 112, train_normal: 2, test_normal: 2, test_anomalous: 2"
MATRIX = f"""
methods:
  AF-CLIP: {{configs: [configs/afclip_demo.yaml], shots: [0, 1]}}
  Dual-Image: {{configs: [configs/dual_image_demo.yaml], options: [--model.steps=0], trains: false}}
datasets:
  one: {{class_path: Synthetic, init_args: {{{DRAWN}, categories: [cloth]}}}}
  two: {{class_path: Synthetic, init_args: {{{DRAWN}, categories: [metal]}}}}
  mvtec: configs/data/mvtec.yaml
transfers: [{{train: one, test: [two, mvtec]}}]
options: [--trainer.max_epochs=1, --data.batch_size=2]
published: {REPOSITORY / "experiments/published"}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the project's configs. Cells run in this process, which has imported everything."""
    matrices.enter(tmp_path, MATRIX, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["afclip_lightning"])

    monkeypatch.setattr(runner, "launch", launch_here)
    return tmp_path


def launch_here(job: runner.Cells, where: Where, folder: Path, report: Report) -> Ended:
    """Runs cells as a worker does, without the process."""
    while (unit := job.claim(())) is not None:
        report(unit.name, run_claimed(job, unit))
    return Ended()


@pytest.mark.slow
def test_two_benchmarks_give_the_same_table_and_so_does_a_cells_own_script(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tables = []
    for out in ("first", "second"):
        assert command.main(["--config", "matrix.yaml", "--out", out]) == 0
        tables.append((folder / out / "results.csv").read_bytes())
    assert tables[0] == tables[1]
    lines = tables[0].decode().splitlines()
    assert lines[0] == "cell,method,train,dataset,category,shots,seed,metric,value,backbone"
    assert len(lines) == 1 + 3 * 2 * 8  # three tests, of a category and the mean, each with 8 metrics
    text = (folder / "first/tables.md").read_text()
    assert "Not on disk: mvtec (data/mvtec)" in text
    assert "| AF-CLIP | one | 1 | 1 |" in text
    assert "## AF-CLIP, Table 1" in text
    assert "**Not comparable: AF-CLIP ran on tiny-8-112 (" in text
    assert "AF-CLIP (ours, tiny-8-112)" in text
    assert "ours − printed" not in text
    told = capfd.readouterr().out
    assert "2 of 2 cells are done." in told
    assert "## Measured on two" in told
    assert "Seed set to" not in told  # that is in the logs

    cell = folder / "first/cells/AF-CLIP_one_0"
    for line in (cell / "commands.sh").read_text().splitlines()[3:]:
        assert command_line(shlex.split(line.replace('"$1"', "again"))[3:]) == 0
    for test in ("two-0", "two-1"):
        assert read_results(folder / "again" / test) == read_results(cell / test)


@pytest.mark.slow
def test_failures_are_reported_and_the_table_has_the_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(arguments: list[str]) -> int:
        if "fit" in arguments:
            raise MemoryError("no memory left")
        return run(arguments)

    def launch(job: runner.Cells, *rest: Any) -> Ended:
        job.step = broken
        return launch_here(job, *rest)

    monkeypatch.setattr(runner, "launch", launch)
    assert command.main(["--config", "matrix.yaml", "--out", "out"]) == 1
    told = capsys.readouterr().out
    assert "AF-CLIP_one_0: FAILED: fit: MemoryError: no memory left; log: out/cells/AF-CLIP_one_0/log.txt" in told
    assert "1 of 2 cells are done." in told
    assert "--retry: AF-CLIP_one_0" in (folder / "out/tables.md").read_text()
    assert {line.partition("_")[0] for line in (folder / "out/results.csv").read_text().splitlines()[1:]} == {
        "Dual-Image"
    }


def test_mistakes_end_with_one_message(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--config", "nothing.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: nothing.yaml")
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--jobs=0", "at least 1"),
        ("--jobs=x", "--jobs"),
        ("--time_limit=0", "above 0"),
        ("--time_limit=nan", "above 0"),
        ("--time_limit=-1", "above 0"),
    ],
)
def test_options_are_checked(option: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["--config", "matrix.yaml", option])
    assert stop.value.code == 2
    assert told in capsys.readouterr().err


def test_a_picture_that_is_trained_on_and_tested_on_is_refused_before_anything_is_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mvtec(folder / "first", ["bolt"])
    shutil.copytree(folder / "first/bolt", folder / "second/nut")
    sets = [f"datasets.{name}={{class_path: MVTecLayout, init_args: {{root: {name}}}}}" for name in ("first", "second")]
    changes = [*sets, "transfers=[{train: first, test: [second]}]"]
    assert command.main(["--config", "matrix.yaml", "--out", "out", *changes]) == 2
    said = capsys.readouterr().err
    assert "first/bolt/test/good/000.png" in said
    assert "second/nut/test/good/000.png" in said
    assert not Path("out/cells").exists()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("shots: [0, 1]", "published: [AF-CLAP]", "did you mean 'AF-CLIP'?"),
        (str(REPOSITORY / "experiments/published"), "nowhere", "nowhere is not a folder"),
    ],
)
def test_what_the_tables_need_is_checked_before_anything_is_run(
    folder: Path, old: str, new: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "matrix.yaml").write_text(MATRIX.replace(old, new))
    assert command.main(["--config", "matrix.yaml"]) == 2
    assert told in capsys.readouterr().err
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_a_benchmark_that_is_asked_to_end_says_so_and_ends_with_75(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in command.SIGNALS:
        before = signal.signal(number, signal.SIG_DFL)  # under nohup one is ignored

        def asked(*_: object, number: int = number, **options: object) -> None:
            os.kill(os.getpid(), number)
            time.sleep(10)  # a signal is handled between two steps

        monkeypatch.setattr(command, "run_cells", asked)
        assert command.main(["--config", "matrix.yaml", "--out", "out"]) == STOPPED
        assert "Stopped: the same command goes on from here." in capsys.readouterr().out
        assert signal.signal(number, before) == signal.SIG_DFL


@pytest.mark.parametrize("status", ["elsewhere", "stopped"])
def test_cells_that_are_left_are_not_taken_for_done(
    folder: Path, status: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def launch(job: runner.Cells, where: Where, folder: Path, report: Report) -> Ended:
        for name in job.cells if status == "stopped" else ():
            report(name, Outcome("stopped"))
        return Ended()

    monkeypatch.setattr(runner, "launch", launch)
    assert command.main(["--config", "matrix.yaml", "--out", "out"]) == STOPPED
    told = capsys.readouterr().out
    assert "0 of 2 cells are done." in told
    assert "the same command goes on from here" in told
