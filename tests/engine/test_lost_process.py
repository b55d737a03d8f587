"""A run over two processes, one of which is lost, sees an old state of a shared folder, or has a wrong clock."""

import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from afclip_lightning.cli import features
from afclip_lightning.engine import flows, processes
from afclip_lightning.engine.app import main
from afclip_lightning.engine.callbacks.preemption import Preemption
from afclip_lightning.engine.feature_build import FeatureBuilder
from tests.support import free_port
from tests.support.small_run import write_small_run
from tests.support.stops import assert_same_end

pytestmark = pytest.mark.slow

MINUTE = 60
Fault = Callable[[], object]


def at(owner: type, hook: str, number: signal.Signals, look: int = 0) -> Fault:
    """Returns a fault: the process gets a signal at a step, after a number of checks."""
    looks, original = itertools.count(), getattr(owner, hook)

    def strike(*args: Any) -> Any:
        if next(looks) == look:
            os.kill(os.getpid(), number)
        return original(*args)

    return lambda: mock.patch.object(owner, hook, strike).start()


def set_clock(days: int) -> Fault:
    """Returns a fault: the clock of the process is days ahead."""
    now = time.time

    def ahead() -> float:
        return now() + days * 86400

    return lambda: mock.patch.object(time, "time", ahead).start()


FAULTS: dict[str, Fault] = {
    "none": lambda: None,
    "absent": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "killed in training": at(Preemption, "on_train_epoch_start", signal.SIGKILL, 1),
    "silent in training": at(Preemption, "on_train_epoch_start", signal.SIGSTOP, 1),
    "killed in the test": at(Preemption, "on_test_batch_end", signal.SIGKILL),
    "killed in the build": at(FeatureBuilder, "predict_step", signal.SIGKILL),
    "sees no checkpoint": lambda: mock.patch.object(flows, "is_there", return_value=False).start(),
    "sees all": lambda: None,
    "a month ahead": set_clock(30),
    "a month behind": set_clock(-30),
}


def run_rank(rank: int, folder: Path, port: str, fault: str, faulty: int, patience: float, args: list[str]) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = (folder / f"rank{rank}.log").open("w", buffering=1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": "0", "NODE_RANK": str(rank)}
    sys.argv[1:] = []
    processes.PATIENCE = timedelta(seconds=patience)
    if fault.startswith("sees"):  # SLURM repeats the command: each process looks what there is to go on from
        os.environ["SLURM_RESTART_COUNT"] = "1"
    if rank == faulty:
        FAULTS[fault]()
    options = ["--config=base.yaml", "--trainer.strategy=ddp", "--trainer.num_nodes=2", "--trainer.devices=1"]
    command = features.main if args[0] == "build" else main
    sys.exit(command([args[0], *options, *args[1:]]))


def run_both(
    folder: Path, args: list[str], fault: str = "none", faulty: int = 1, patience: float = MINUTE
) -> tuple[list[int | None], list[str]]:
    """Returns exit codes and logs of two processes of a run, one of which has a fault."""
    context, port = multiprocessing.get_context("forkserver"), free_port()
    ranks = [
        context.Process(target=run_rank, args=(rank, folder, port, fault, faulty, patience, args)) for rank in (0, 1)
    ]
    for process in ranks:
        process.start()
    try:
        ranks[1 - faulty].join(MINUTE)
        if fault == "silent in training":
            ranks[faulty].kill()
        ranks[faulty].join(MINUTE)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return [process.exitcode for process in ranks], [(folder / f"rank{rank}.log").read_text() for rank in (0, 1)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data and an undisturbed run of two processes, `run`."""
    multiprocessing.set_forkserver_preload([__name__])
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_small_run(folder)
    codes, logs = run_both(folder, ["fit", "--out=run", "--trainer.max_epochs=3"])
    assert codes == [0, 0], logs
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    for path in whole.iterdir():
        if path.name != "run":
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


FIT = ["fit", "--out=run", "--trainer.max_epochs=3"]


@pytest.mark.parametrize("faulty", [0, 1])
def test_the_others_end_when_a_process_is_lost_and_the_run_goes_on(whole: Path, folder: Path, faulty: int) -> None:
    codes, logs = run_both(folder, FIT, "killed in training", faulty)
    assert (codes[1 - faulty], codes[faulty]) == (2, -signal.SIGKILL)
    last = "--checkpoint run/checkpoints/last.ckpt"
    assert "error: Another process of this run has ended, or has not answered in time (" in logs[1 - faulty]
    assert f"To go on: the same command with --out run {last}." in logs[1 - faulty]
    assert run_both(folder, [*FIT, last.replace(" ", "=")])[0] == [0, 0]
    assert_same_end(whole / "run", folder / "run")


@pytest.mark.parametrize("fault", ["silent in training", "absent"])
def test_a_process_that_does_not_answer_is_waited_for_as_long_as_it_says(folder: Path, fault: str) -> None:
    codes, logs = run_both(folder, FIT, fault, patience=5)
    assert codes[0] == 2, logs
    assert "error: Another process of this run has ended, or has not answered in time (" in logs[0]
    assert "imed out" in logs[0]


@pytest.mark.parametrize(("fault", "args"), [
    ("killed in the test", ["test", "--out=run"]),
    ("killed in the build", ["build", "--features.cache=store"]),
])  # fmt: skip
def test_a_run_without_a_checkpoint_is_to_be_started_again(folder: Path, fault: str, args: list[str]) -> None:
    codes, logs = run_both(folder, args, fault)
    assert codes[0] == 2, logs
    assert "Nothing of it was kept. The same command starts again." in logs[0]
    assert run_both(folder, args)[0] == [0, 0]


def test_a_checkpoint_that_one_process_does_not_see_yet_stops_all(whole: Path, folder: Path) -> None:
    assert run_both(folder, [*FIT, "--trainer.max_epochs=1"])[0] == [0, 0]
    codes, logs = run_both(folder, FIT, "sees no checkpoint")
    assert codes == [2, 2], logs
    assert all("The shared file system lags: start the same command again." in log for log in logs)
    assert run_both(folder, FIT, "sees all")[0] == [0, 0]
    assert_same_end(whole / "run", folder / "run")


@pytest.mark.parametrize("fault", ["a month ahead", "a month behind"])
def test_clocks_that_differ_change_nothing(whole: Path, folder: Path, fault: str) -> None:
    codes, logs = run_both(folder, FIT, fault)
    assert codes == [0, 0], logs
    assert_same_end(whole / "run", folder / "run")
