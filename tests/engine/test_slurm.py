"""On a real SLURM cluster, which may be this machine alone: see tests/slurm/cluster.sh."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from afclip_lightning.engine.app import main
from tests.support.commands import arguments, table
from tests.support.slurm import finish, needs_nodes, slurm, submit
from tests.support.stops import assert_same_end
from tests.support.sweeps import write_sweep

pytestmark = [*needs_nodes(1), pytest.mark.usefixtures("environment_of_jobs")]


def test_a_job_that_makes_room_ends_as_an_undisturbed_one(folder: Path) -> None:
    options = {"trainer__max_epochs": "25", "trainer__limit_test_batches": "1", "pictures__count": "0"}
    job = submit("fit.sbatch", "fit", *arguments(**options))
    for _ in range(600):
        if (folder / "run/checkpoints/last.ckpt").exists():
            break
        time.sleep(0.1)
    slurm("scancel", "--signal=USR1", job)
    log = finish(job)
    assert f"SLURM job {job} goes into the queue again" in log
    assert "Restored all states" in log
    assert len(list((folder / "run").glob("log*/metrics.csv"))) == 2, log
    assert main(["fit", *arguments(**options, out="whole")]) == 0
    assert_same_end(folder / "whole", folder / "run")


def test_two_tasks_test_as_one_process_does(folder: Path) -> None:
    job = submit("fit_ddp.sbatch", "test", *arguments(), "--pictures.count=0", ntasks_per_node="2")
    log = finish(job)
    assert (folder / "run/results.csv").exists(), log
    assert "Starting with 2 processes" in log
    assert main(["test", *arguments(out="one"), "--pictures.count=0"]) == 0
    one, two = table(folder / "one/results.csv"), table(folder / "run/results.csv")
    assert one.keys() == two.keys()
    for key, row in one.items():
        for name in ("image_auroc", "pixel_auroc", "pixel_pro"):
            assert float(two[key][name]) == pytest.approx(float(row[name]), abs=1e-5)


def test_a_task_of_a_benchmark_makes_room_when_its_time_is_nearly_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = folder / "bin/python"  # stands for the benchmark, whose first run takes long
    python.parent.mkdir()
    python.write_text('#!/bin/bash\necho "$@" >>calls; [[ ${SLURM_RESTART_COUNT:-} ]] || sleep 600\n')
    python.chmod(0o755)
    monkeypatch.setenv("PATH", f"{python.parent}{os.pathsep}{os.environ['PATH']}")
    job = submit("benchmark.sbatch", "--config", "matrix.yaml", array="1")
    for _ in range(300):
        if Path("calls").exists():
            break
        time.sleep(0.1)
    slurm("scancel", "--batch", "--signal=USR1", f"{job}_1")
    finish(f"{job}_1")
    assert Path("calls").read_text().splitlines() == ["-m afclip_lightning benchmark --config matrix.yaml"] * 2


def test_an_array_sweeps(folder: Path) -> None:
    path = write_sweep(folder / "sweep.yaml", method="grid", parameters={"model.prompt_tokens": {"values": [2, 3, 4]}})
    command = [sys.executable, "-m", "afclip_lightning", "sweep", f"--config={path}", "--launcher=slurm", "--jobs=2"]
    done = subprocess.run([*command, "--out=swept"], capture_output=True, text=True, timeout=400, check=False)
    logs = "\n".join(log.read_text() for log in (folder / "swept/slurm").glob("*.log"))
    assert done.returncode == 0, done.stderr + logs
    with (folder / "swept/sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["model.prompt_tokens"] for row in rows) == ["2", "3", "4"]
    assert {row["state"] for row in rows} == {"complete"}
    assert len(list((folder / "swept/slurm").glob("*.log"))) == 2
