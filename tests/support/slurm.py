"""Jobs on a real SLURM cluster, which may be this machine alone: see tests/slurm/cluster.sh."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support import REPOSITORY

SCRIPTS = REPOSITORY / "experiments/slurm"


def nodes() -> int:
    """Returns the number of nodes of the cluster; 0 without a cluster."""
    try:
        command = ["sinfo", "--noheader", "--Node", "--responding", "--format=%N"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return len(set(done.stdout.split())) if done.returncode == 0 else 0


def needs_nodes(count: int) -> list[pytest.MarkDecorator]:
    """Returns the marks of tests that need a cluster with this number of nodes."""
    there = nodes()
    reason = "no SLURM cluster answers sinfo" if there == 0 else f"the SLURM cluster has {there} of {count} nodes"
    return [pytest.mark.slurm, pytest.mark.skipif(there < count, reason=reason)]


@pytest.fixture
def environment_of_jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This environment's Python and this source for the jobs; one thread there and here."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order have other last bits
    yield
    torch.set_num_threads(threads)


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def submit(script: str, *args: str, **options: str) -> str:
    """Submits one of the scripts without a GPU and returns the job's number."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    fixed = ["--parsable", "--gres=none", "--cpus-per-task=1", "--output=job.log"]
    return slurm("sbatch", *fixed, *flags, str(SCRIPTS / script), *args)


def finish(job: str, log: Path = Path("job.log")) -> str:
    """Waits for the end of a job, skips the two minutes before its second start, and returns its output."""
    for _ in range(600):
        states = slurm("squeue", "--noheader", "--me", "--format=%i %r").splitlines()
        mine = [state for state in states if state.split()[0] == job]
        if not mine:
            return log.read_text()
        if "BeginTime" in mine[0]:
            time.sleep(3)  # what was issued in the second of the requeue is revoked: a start then would be refused
            slurm("scontrol", "update", f"jobid={job}", "StartTime=now")
        time.sleep(0.5)
    slurm("scancel", job)
    pytest.fail(log.read_text())
