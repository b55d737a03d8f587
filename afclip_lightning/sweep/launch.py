"""Where the workers of a sweep run: processes of this machine, or the tasks of a SLURM array."""

import contextlib
import gc
import io
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from afclip_lightning.sweep.study import ATTEMPTS, Plan, claim, run_trial
from afclip_runtime.errors import UserError, message_of
from afclip_runtime.launch import signals
from afclip_runtime.launch.signals import STOPPED

GRACE = 60  # seconds that workers have between two steps before they are killed
STOPS = (signal.SIGINT, *signals.SIGNALS)


def work(plan: Plan, index: int) -> None:
    """Runs trial after trial in a process of its own, until there is none left or a signal asks it to stop."""
    signals.listen(*STOPS)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    threading.Thread(target=_stop_with_the_sweep, daemon=True).start()
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if len(devices) > 1:  # several were given: one per worker
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[index % len(devices)]
    try:
        study = plan.study()
        if not signals.requested() and not study.user_attrs.get("checked"):
            check_arguments(plan)
            study.set_user_attr("checked", True)
        while not signals.requested() and (claimed := claim(plan, study)):
            trial, lock = claimed
            with lock:
                run_trial(plan, study, trial)
            gc.collect()
    except (UserError, OSError) as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        sys.exit(2)
    if signals.requested():
        signals.requeue()
        sys.exit(STOPPED)


def _stop_with_the_sweep() -> None:
    """Asks this worker to stop when the sweep is gone, however it was ended, and ends it if it does not."""
    sweep = multiprocessing.parent_process()
    assert sweep is not None
    wait([sweep.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


def check_arguments(plan: Plan) -> None:
    """Checks, before any trial is spent, that `fit` takes the sweep's options and each value of its choices.

    Raises:
        UserError: It does not; the message is that of the command line.
    """
    from afclip_lightning.engine import app

    for parameters in plan.sweep.examples():
        sys.argv[1:] = [*plan.arguments(parameters), "--print_config"]
        said = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            try:
                code = app.main()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 0
        if code:
            values = ", ".join(f"{name}={value}" for name, value in parameters.items())
            raise UserError(f"{plan.path}: with {values}: {said.getvalue().strip().removeprefix('error: ')}")


def run_local(plan: Plan, jobs: int) -> int:
    """Runs the trials in worker processes of this machine and returns an exit code.

    A worker that is killed is replaced, and what it had is taken up. Signals are handed on: workers stop between two
    steps.
    """
    signals.listen(*STOPS)
    workers: list[BaseProcess | None] = [_start(plan, index) for index in range(jobs)]
    deadline = None
    stopped = failed = False
    lives = ATTEMPTS * (plan.trials + jobs)  # a worker that dies before it has a trial would be replaced for ever
    while any(workers):
        wait([worker.sentinel for worker in workers if worker], timeout=0.5)
        if signals.requested() and deadline is None:
            stopped, deadline = True, time.monotonic() + GRACE
            print(f"Stopping between two steps, at the latest in {GRACE} s.", file=sys.stderr, flush=True)
            for running in filter(None, workers):
                running.terminate()
        for index, worker in enumerate(workers):
            if worker is None or worker.is_alive():
                if worker and deadline is not None and time.monotonic() > deadline:
                    worker.kill()
                continue
            code = worker.exitcode or 0
            stopped |= code == STOPPED
            failed |= code > 0 and code != STOPPED
            killed = code < 0 and not stopped and lives > 0
            failed |= code < 0 and lives == 0
            if killed:
                lives -= 1
                print(f"A worker was killed by {signal.Signals(-code).name}; another takes its place.", file=sys.stderr)
            workers[index] = _start(plan, index) if killed else None
    return 2 if failed else STOPPED if stopped else 0


def _start(plan: Plan, index: int) -> BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=work, args=(plan, index))
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # inherited: a signal waits until the worker listens
    process.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    return process


def run_slurm(plan: Plan, jobs: int, options: Sequence[str]) -> None:
    """Submits an array of workers and waits until they are done.

    Each is a local sweep with one worker on the same study. One that is preempted, or signalled a minute before its
    time limit, is put into the queue again.

    Raises:
        UserError: SLURM refuses.
    """
    logs = plan.folder / "slurm"
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "afclip_lightning", "sweep", f"--config={plan.path}", f"--out={plan.folder}"]
    command += [f"--storage={plan.storage}", f"--trials={plan.trials}", f"--seed={plan.seed}", "--", *plan.extra]
    script = f"#!/bin/bash\nexec srun {shlex.join(command)}\n"
    flags = [f"--job-name={plan.sweep.name}", f"--array=1-{jobs}", "--requeue", f"--signal=USR1@{GRACE}"]
    flags += [f"--output={logs}/%A_%a.log", "--open-mode=append", *options]
    job = _slurm(["sbatch", "--parsable", *flags], script).split(";")[0].strip()
    print(f"SLURM array {job}, logs in {logs}. Ctrl-C ends the waiting only; scancel {job} ends the array.", flush=True)
    with suppress(KeyboardInterrupt):
        while job in _slurm(["squeue", "--noheader", "--me", "--format=%F"]).split():
            time.sleep(5)


def _slurm(command: Sequence[str], script: str | None = None) -> str:
    try:
        return subprocess.run(command, input=script, text=True, capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} is not there: --launcher slurm needs a SLURM cluster.") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"{command[0]}: {error.stderr.strip()}") from error
