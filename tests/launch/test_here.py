"""A worker that is the process of the command, as each task of a SLURM array is."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from afclip_runtime.errors import UserError
from afclip_runtime.files import take_lock
from afclip_runtime.launch import Outcome, Unit, signals
from afclip_runtime.launch.here import run_here
from tests.support.small_jobs import SmallJob


def run(job: SmallJob) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    assert run_here(job, outcomes.__setitem__).code == 0
    return outcomes


def test_a_unit_that_fails_keeps_no_other_from_its_turn(tmp_path: Path) -> None:
    job = SmallJob(tmp_path, ["raise-1", "raise-2", "done-3", "raise-4", "refuse-5", "refuse-6", "refuse-7", "done-8"])
    outcomes = run(job)
    assert list(outcomes) == job.names
    assert [name for name, outcome in outcomes.items() if outcome.status == "done"] == ["done-3", "done-8"]
    assert outcomes["refuse-5"].error == "it cannot be read"
    assert run(job) == {}


def test_a_process_that_fails_in_every_unit_leaves_the_others_alone(tmp_path: Path) -> None:
    job = SmallJob(tmp_path, ["raise-1", "raise-2", "raise-3", "raise-4", "done-5"])
    said = r"^raise-3: MemoryError: no memory left\. The 2 before it failed likewise, so this process ends\. Start the"
    with pytest.raises(UserError, match=said):
        run(job)
    assert job.left() == 2


def test_a_unit_that_took_three_processes_with_it_has_failed_and_the_others_are_run(tmp_path: Path) -> None:
    job = SmallJob(tmp_path, ["done-1", "done-2"])
    lock = take_lock(tmp_path / "locks/done-1")
    assert lock is not None
    lock.attempts = 3
    lock.release()
    assert run(job) == {"done-1": Outcome("failed", "its process died 3 times"), "done-2": Outcome()}
    with take_lock(lock.path) or pytest.fail("it is still held") as free:
        assert free.attempts == 0


class _MakesRoom(SmallJob):
    def run(self, unit: Unit) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        super().run(unit)


def test_a_task_that_makes_room_goes_into_the_queue_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_PROCID", "0")
    called: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: called.append(command))
    job = _MakesRoom(tmp_path, ["done-1", "done-2"])
    ended = run_here(job, lambda name, outcome: None)
    assert (ended.signal, ended.code) == (signal.SIGUSR1, 75)
    assert called == [["scontrol", "requeue", "7"]]
    assert job.left() == 1
    assert not signals.requested()
