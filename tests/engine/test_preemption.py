"""A run that is stopped by a signal and resumed equals the uninterrupted run, bit for bit."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from afclip_lightning.engine.app import main
from afclip_runtime.launch import signals
from afclip_runtime.launch.signals import STOPPED
from tests.support.commands import arguments
from tests.support.stops import assert_same_end, stop_after

pytestmark = pytest.mark.slow

OPTIONS = {
    "plain": {},
    "loaders": {"data__train__num_workers": "1"},
    "accumulated": {"trainer__accumulate_grad_batches": "2"},
    "validated": {
        "trainer__limit_val_batches": "1",
        "trainer__num_sanity_val_steps": "0",
        "loading__on_error": "skip",
    },
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_stopped_run_ends_as_an_undisturbed_one(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    limits = {"trainer__limit_train_batches": "4", "trainer__limit_test_batches": "1", "pictures__count": "0"}
    options = {"trainer__max_epochs": "2", **limits, **OPTIONS[kind]}
    assert main(["fit", *arguments(**options, out="whole")]) == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # the command comes again as it was
    again = ["fit", *arguments(**options, out="parts")]
    parts = 0
    for looks in (2, 1, 3):  # in the first epoch, in what is left of it or at its end, in the second
        stop_after(looks, monkeypatch)
        code = main(again)
        assert code in (0, STOPPED)
        parts += code == STOPPED
    assert parts >= 2
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(again) == 0
    assert_same_end(folder / "whole", folder / "parts")


def test_a_test_that_is_stopped_begins_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ["test", *arguments(), "--trainer.limit_test_batches=1"]
    with monkeypatch.context() as patch:
        stop_after(0, patch)
        assert main(args) == STOPPED
    assert not (folder / "run/results.csv").exists()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(args) == 0
    assert (folder / "run/results.csv").exists()


@pytest.mark.parametrize(("environment", "job"), [
    ({"SLURM_JOB_ID": "7"}, "7"),
    ({"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}, "5_2"),
    ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "1"}, None),
    ({}, None),
])  # fmt: skip
def test_the_first_task_puts_its_job_into_the_queue_again(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], job: str | None
) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in {"SLURM_PROCID": "0", **environment}.items():
        monkeypatch.setenv(name, value)
    called: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: called.append(command))
    monkeypatch.setattr(signals, "_noted", [signal.SIGTERM])
    signals.requeue()
    assert not called  # that is for SLURM to decide
    monkeypatch.setattr(signals, "_noted", [signal.SIGUSR1])
    signals.requeue()
    assert called == ([["scontrol", "requeue", job]] if job else [])
