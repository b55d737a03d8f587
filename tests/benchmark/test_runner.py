"""Cells run in persistent processes; a fault of one cell affects no other; two benchmarks share the work."""

import csv
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from afclip_lightning.benchmark import runner, table
from afclip_lightning.benchmark.runner import State, run_cells
from afclip_lightning.benchmark.table import assemble
from afclip_runtime.errors import UserError
from afclip_runtime.files import take_lock
from afclip_runtime.launch.where import Ended
from tests.support import REPOSITORY
from tests.support.fake_cells import cell, run, run_here


@pytest.mark.slow
def test_a_fault_of_a_cell_affects_no_other(tmp_path: Path) -> None:
    cells = [
        cell(tmp_path, "first"),
        cell(tmp_path, "killed", "kill"),
        cell(tmp_path, "second"),
        cell(tmp_path, "memory", "raise:memory"),
        cell(tmp_path, "exits", "raise:system"),
        cell(tmp_path, "refused", "exit"),
        cell(tmp_path, "empty", "empty"),
        cell(tmp_path, "last", "raise:value", ""),
    ]
    seen = []
    outcomes = run_cells(cells, run=run, report=lambda cell, outcome: seen.append(cell.name))
    assert seen == [c.name for c in cells]
    assert {name: outcome.status for name, outcome in outcomes.items() if outcome.status == "done"} == {
        "first": "done",
        "second": "done",
    }
    assert "SIGKILL" in outcomes["killed"].error
    assert "MemoryError: no memory left" in outcomes["memory"].error
    assert "SystemExit: 3" in outcomes["exits"].error
    assert "exit code 2" in outcomes["refused"].error
    assert "has no results" in outcomes["empty"].error
    for c in cells:
        log = (c.folder / "log.txt").read_text()
        assert f"out of the cell, whose loaders start by {multiprocessing.get_start_method()}" in log
        assert "err of the cell" in log
    assert "Traceback" in (cells[3].folder / "log.txt").read_text()
    rows, damaged = assemble(tmp_path, cells)
    assert damaged == []
    # of a cell of which one test fails, the others are kept
    assert [row.cell for row in rows if row.category == "mean"] == ["first/set0-0", "last/set1-0", "second/set0-0"]


@pytest.mark.slow
def test_finished_cells_are_skipped_and_failed_ones_wait_for_a_retry(tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    cells = [cell(tmp_path, "good"), cell(tmp_path, "bad", f"once:{mended}")]
    assert run_cells(cells, run=run)["bad"].status == "failed"
    before = (cells[0].folder / "set0-0/done.json").stat().st_mtime_ns
    mended.touch()
    again = run_cells(cells, run=run)
    assert again["bad"].status == "failed"
    assert not again["bad"].ran
    assert again["good"] == State("done")
    assert run_cells(cells, run=run, retry=True)["bad"] == State("done", ran=True)
    assert (cells[0].folder / "set0-0/done.json").stat().st_mtime_ns == before
    assert not (cells[1].folder / "failed.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda sent: sent.name)
def test_however_a_benchmark_is_ended_its_worker_ends_and_leaves_the_cell_to_be_run(
    tmp_path: Path, sent: signal.Signals
) -> None:
    script = f"""
from pathlib import Path
from afclip_lightning.benchmark.runner import run_cells
from tests.support.fake_cells import cell, run
if __name__ == "__main__":
    run_cells([cell(Path({str(tmp_path)!r}), "slow", "sleep:60")], run=run)
"""
    (tmp_path / "benchmark.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "benchmark.py")], env=environment, stderr=subprocess.DEVNULL
    )
    log = tmp_path / "cells/slow/log.txt"
    while not (log.exists() and "out of the cell" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(sent)
    assert process.wait(30) != 0
    assert not (tmp_path / "cells/slow/failed.json").exists()
    for _ in range(100):  # 10 s
        if lock := take_lock(tmp_path / "cells/slow/lock"):
            return lock.release()
        time.sleep(0.1)
    pytest.fail("something of the worker is left")


@pytest.mark.slow
def test_a_worker_that_is_asked_to_stop_leaves_its_cell_to_be_run(tmp_path: Path) -> None:
    cells = [cell(tmp_path, "terminated", "terminate"), cell(tmp_path, "stopped", "stop"), cell(tmp_path, "last")]
    outcomes = run_cells(cells, run=run)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "terminated": "stopped",
        "stopped": "stopped",
        "last": "done",
    }
    assert not list(tmp_path.glob("cells/*/failed.json"))
    assert run_cells([cell(tmp_path, "stopped", "")], run=run)["stopped"].ran  # without --retry


@pytest.mark.slow
def test_what_the_command_line_said_is_the_reason_of_a_failure(tmp_path: Path) -> None:
    outcome = run_here(cell(tmp_path, "wrong", "refuse"))
    assert outcome.error == r"set0-0: exit code 2: the option \x1b[31m is none"
    (tmp_path / "cells/wrong/failed.json").unlink()
    assert run_here(cell(tmp_path, "wrong", "exit")).error == "set0-0: exit code 2"  # not of before


@pytest.mark.slow
def test_cells_that_others_have_finished_are_reported_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [cell(tmp_path, "finished"), cell(tmp_path, "left")]

    def interrupted(*_: object) -> Ended:
        monkeypatch.undo()
        run_cells(cells[:1], run=run)
        return Ended(signal.SIGINT)

    monkeypatch.setattr(runner, "launch", interrupted)
    seen = {}
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, run=run, report=lambda cell, state: seen.update({cell.name: state}))
    assert seen == {"finished": State("done")}


@pytest.mark.slow
def test_a_cell_over_the_time_limit_is_ended(tmp_path: Path) -> None:
    outcomes = run_cells([cell(tmp_path, "slow", "sleep:60"), cell(tmp_path, "quick")], run=run, time_limit=2)
    assert "limit of 2 s" in outcomes["slow"].error
    assert outcomes["quick"].status == "done"


def test_a_step_is_made_again_when_what_it_depends_on_has_changed(tmp_path: Path) -> None:
    run_cells([cell(tmp_path, "method")], run=run)
    changed = [cell(tmp_path, "method", digest="2")]
    assert assemble(tmp_path, changed) == ([], [])
    assert run_cells(changed, run=run)["method"].ran
    assert len(assemble(tmp_path, changed)[0]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"rows": [{"category": "gear", "metrics": {"image_auroc": 0.5', "is not valid JSON"),
        ('{"rows": [{"category": "gear", "metrics": {"image_auroc": 5.0}}]}', "gear has image_auroc 5.0"),
        ('{"rows": [{"category": "gear", "metrics": {"image_auroc": NaN}}]}', "gear has image_auroc nan"),
        ('{"rows": [{"metrics": {"image_auroc": 0.5}}]}', "category"),
        ('{"rows": [{"category": 3, "metrics": {"image_auroc": 0.5}}]}', "category"),
        ('{"rows": [{"category": "gear", "metrics": {"image_auroc": "0.5"}}]}', "metrics"),
        ('{"rows": [{"category": "gear", "metrics": {"image_auroc": true}}]}', "metrics"),
        ('{"rows": [{"category": "gear", "metrics": [0.5]}]}', "metrics"),
        ('{"rows": [{"category": "gear", "metrics": {"a": 0.5}}, {"category": "gear", "metrics": {}}]}', "gear twice"),
        ('{"rows": [{"category": "gear", "metrics": {"a": 0.5, "a": 0.6}}]}', "twice"),
        ('{"rows": {"gear": 0.5}}', "rows"),
        ('{"rows": []}', "no results"),
        ("[" * 100_000, "nested"),
        ("3", "mapping"),
        ("", "empty"),
    ],
)
def test_damaged_results_are_named_and_not_in_the_table(tmp_path: Path, content: str, told: str) -> None:
    cells = [cell(tmp_path, "good"), cell(tmp_path, "damaged")]
    for c in cells:  # as a worker does, without the process
        assert run_here(c).status == "done"
    path = cells[1].folder / "set0-0/results.json"
    good = path.read_text()
    path.write_text(content)
    rows, damaged = assemble(tmp_path, cells)
    assert {row.method for row in rows} == {"good"}
    [message] = damaged
    assert str(path) in message
    assert told in message
    outcome = run_cells(cells, run=run)["damaged"]
    assert outcome.status == "failed"
    assert str(path) in outcome.error
    assert run_here(cells[1], retry=True).status == "done"
    assert path.read_text() == good


@pytest.mark.slow
@pytest.mark.parametrize("name", ["done.json", "run.json", "results.json"])
@pytest.mark.parametrize("damage", ["cut", "binary", "list", "null", "types", "folder", "pipe"])
def test_whatever_is_damaged_of_a_run_is_named_and_made_again(tmp_path: Path, name: str, damage: str) -> None:
    cells = [cell(tmp_path, "good"), cell(tmp_path, "damaged")]
    for c in cells:
        assert run_here(c).status == "done"
    path = cells[1].folder / "set0-0" / name
    content = json.loads(path.read_text())
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "pipe":
        os.mkfifo(path)
    else:
        types = {key: [value] if isinstance(value, str) else "x" for key, value in content.items()}
        texts = {"cut": json.dumps(content)[:-3], "list": "[1]", "null": "null", "types": json.dumps(types)}
        path.write_bytes(texts[damage].encode() if damage in texts else b"\xff\0\x80")
    rows, damaged = assemble(tmp_path, cells)
    assert {row.method for row in rows} == {"good"}
    assert len(damaged) == 1
    assert str(path) in damaged[0]
    assert run_cells(cells, run=run)["damaged"].status == "failed"
    assert run_here(cells[1], retry=True).status == "done"
    assert assemble(tmp_path, cells)[1] == []


@pytest.mark.slow
def test_a_run_that_stands_in_anothers_folder_is_not_taken_for_it(tmp_path: Path) -> None:
    one = cell(tmp_path, "method")
    assert run_here(one).status == "done"
    path = one.folder / "set0-0/done.json"
    path.write_text(path.read_text().replace('"set0"', '"other"'))
    rows, damaged = assemble(tmp_path, [one])
    assert rows == []
    assert "belongs to another run" in damaged[0]


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "[]", '{"error": 3}', '{"error": "it was', "null"])
def test_a_damaged_note_of_a_failure_is_a_failure(tmp_path: Path, content: str) -> None:
    one = cell(tmp_path, "method")
    one.folder.mkdir(parents=True)
    (one.folder / "failed.json").write_text(content)
    assert "failed.json" in run_cells([one], run=run)["method"].error
    assert run_here(one, retry=True).status == "done"


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out"):
        assemble(tmp_path / "file", [])
    with pytest.raises(UserError, match=r"file.*--out"):
        run_cells([cell(tmp_path / "file", "method")], run=run)


def test_names_in_the_table_are_no_formulas_and_no_commands_of_a_terminal(tmp_path: Path) -> None:
    row = table.Measurement("c", "=1+2", "", "a\x1b[31m", "\udcff", 0, 0, "image_auroc", 0.0, "CLIP")
    lines = table.to_csv([row]).splitlines()
    assert lines[1] == r"c,'=1+2,,'a\x1b[31m,'\xff,0,0,image_auroc,0.0,CLIP"


@pytest.mark.slow
def test_two_benchmarks_share_the_cells_and_lose_no_row(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from afclip_lightning.benchmark.runner import run_cells
from afclip_lightning.benchmark.table import assemble
from tests.support.fake_cells import cell, run
out = Path({str(tmp_path)!r})
cells = [cell(out, f"method_{{i}}", {f"count:{tmp_path / 'ran'}"!r}) for i in range(30)]
if __name__ == "__main__":
    run_cells(cells, run=run)
    assemble(out, cells)
"""
    path = tmp_path / "benchmark.py"
    path.write_text(script)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    both = [subprocess.Popen([sys.executable, str(path)], env=environment) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert Counter((tmp_path / "ran").read_text().split()) == {f"method_{i}": 1 for i in range(30)}
    with (tmp_path / "results.csv").open() as file:
        assert len({row["cell"] for row in csv.DictReader(file)}) == 30


@pytest.mark.slow
def test_on_a_full_disk_what_is_finished_stays_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [cell(tmp_path, "before"), cell(tmp_path, "after")]
    assert run_here(cells[0]).status == "done"
    rows, _ = assemble(tmp_path, cells)
    kept = (tmp_path / "results.csv").read_text()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)  # every file of ours passes through it
    with pytest.raises(UserError, match="No space left"):
        run_here(cells[1])
    with pytest.raises(UserError, match="No space left"):
        assemble(tmp_path, cells)
    assert (tmp_path / "results.csv").read_text() == kept
    monkeypatch.undo()
    assert assemble(tmp_path, cells) == (rows, [])
    assert run_here(cells[1]).status == "done"
    assert len(assemble(tmp_path, cells)[0]) == 4


@pytest.mark.slow
def test_the_table_is_also_written_as_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    run_here(cell(tmp_path, "method"))
    rows, _ = assemble(tmp_path, [])
    assert [table.Measurement(**row) for row in parquet.read_table(tmp_path / "results.parquet").to_pylist()] == rows


@pytest.mark.slow
def test_the_state_of_a_step_is_what_it_was_run_as(tmp_path: Path) -> None:
    run_here(cell(tmp_path, "method"))
    done = json.loads((tmp_path / "cells/method/set0-0/done.json").read_text())
    assert done.pop("seconds") >= 0
    assert done == {"method": "method", "train": "", "seed": 0, "dataset": "set0", "shots": 0, "digest": "1"}


@pytest.mark.slow
def test_a_full_disk_is_not_a_fault_of_a_cell(tmp_path: Path) -> None:
    space = tmp_path / "space"
    cells = [cell(tmp_path, "good"), cell(tmp_path, "large", f"full:{space}"), cell(tmp_path, "next")]
    with pytest.raises(UserError, match=r"large: .*last\.ckpt.*\. The same command goes on from here\."):
        run_cells(cells, run=run)
    assert not list(tmp_path.rglob("failed.json"))
    space.touch()
    assert {state.status for state in run_cells(cells, run=run).values()} == {"done"}
