"""On a real SLURM cluster, which may be this machine alone: see tests/slurm/cluster.sh."""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from afclip_lightning.engine.app import main
from tests.support import REPOSITORY
from tests.support.commands import arguments, table
from tests.support.stops import assert_same_end
from tests.support.sweeps import write_sweep

SCRIPTS = REPOSITORY / "experiments/slurm"


def _answers() -> bool:
    try:
        return subprocess.run(["sinfo"], capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


pytestmark = [pytest.mark.slurm, pytest.mark.skipif(not _answers(), reason="no SLURM cluster answers sinfo")]


@pytest.fixture
def cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with this environment's Python and this source for the jobs; one thread there and here."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order have other last bits
    yield folder
    torch.set_num_threads(threads)


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def submit(script: str, *args: str, **options: str) -> str:
    """Submits one of the scripts without a GPU and returns the job's number."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    fixed = ["--parsable", "--gres=none", "--cpus-per-task=1", "--output=job.log"]
    return slurm("sbatch", *fixed, *flags, str(SCRIPTS / script), *args)


def finish(job: str) -> None:
    """Waits for the end of a job, and does not let it wait two minutes for its second start."""
    for _ in range(600):
        states = slurm("squeue", "--noheader", "--me", "--format=%i %r").splitlines()
        mine = [state for state in states if state.split()[0] == job]
        if not mine:
            return
        if "BeginTime" in mine[0]:
            time.sleep(3)  # what was issued in the second of the requeue is revoked: a start then would be refused
            slurm("scontrol", "update", f"jobid={job}", "StartTime=now")
        time.sleep(0.5)
    pytest.fail(Path("job.log").read_text())


def test_a_job_that_makes_room_ends_as_an_undisturbed_one(cluster: Path) -> None:
    options = {"trainer__max_epochs": "25", "trainer__limit_test_batches": "1", "pictures__count": "0"}
    job = submit("fit.sbatch", "fit", *arguments(**options))
    for _ in range(600):
        if (cluster / "run/checkpoints/last.ckpt").exists():
            break
        time.sleep(0.1)
    slurm("scancel", "--signal=USR1", job)
    finish(job)
    log = (cluster / "job.log").read_text()
    assert f"SLURM job {job} goes into the queue again" in log
    assert "Restored all states" in log
    assert len(list((cluster / "run").glob("log*/metrics.csv"))) == 2, log
    assert main(["fit", *arguments(**options, out="whole")]) == 0
    assert_same_end(cluster / "whole", cluster / "run")


def test_two_tasks_test_as_one_process_does(cluster: Path) -> None:
    job = submit("fit_ddp.sbatch", "test", *arguments(), "--pictures.count=0", ntasks_per_node="2")
    finish(job)
    log = (cluster / "job.log").read_text()
    assert (cluster / "run/results.csv").exists(), log
    assert "Starting with 2 processes" in log
    assert main(["test", *arguments(out="one"), "--pictures.count=0"]) == 0
    one, two = table(cluster / "one/results.csv"), table(cluster / "run/results.csv")
    assert one.keys() == two.keys()
    for key, row in one.items():
        for name in ("image_auroc", "pixel_auroc", "pixel_pro"):
            assert float(two[key][name]) == pytest.approx(float(row[name]), abs=1e-5)


def test_a_task_of_a_benchmark_makes_room_when_its_time_is_nearly_up(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = cluster / "bin/python"  # stands for the benchmark: the first time it takes long
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


def test_an_array_sweeps(cluster: Path) -> None:
    path = write_sweep(cluster / "sweep.yaml", method="grid", parameters={"model.prompt_tokens": {"values": [2, 3, 4]}})
    command = [sys.executable, "-m", "afclip_lightning", "sweep", f"--config={path}", "--launcher=slurm", "--jobs=2"]
    done = subprocess.run([*command, "--out=swept"], capture_output=True, text=True, timeout=400, check=False)
    logs = "\n".join(log.read_text() for log in (cluster / "swept/slurm").glob("*.log"))
    assert done.returncode == 0, done.stderr + logs
    with (cluster / "swept/sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["model.prompt_tokens"] for row in rows) == ["2", "3", "4"]
    assert {row["state"] for row in rows} == {"complete"}
    assert len(list((cluster / "swept/slurm").glob("*.log"))) == 2
