"""A worker: a process that claims and runs unit after unit, and tells the launcher what it does."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from afclip_runtime.errors import UserError, is_for_want_of_space, message_of
from afclip_runtime.launch import signals
from afclip_runtime.launch.job import Job, Outcome, Unit
from afclip_runtime.launch.output import output_to
from afclip_runtime.launch.signals import STOPS, StoppedError


@dataclass(frozen=True)
class Begun:
    """A worker begins a unit.

    Attributes:
        name: The unit.
        lock: File of its lock.
        attempt: How often it has been begun; see `Job.begin`.
    """

    name: str
    lock: Path
    attempt: int


@dataclass(frozen=True)
class Finished:
    """A worker has run a unit.

    Attributes:
        name: The unit.
        outcome: What became of it.
    """

    name: str
    outcome: Outcome


@dataclass(frozen=True)
class Refused:
    """No unit can be run.

    Attributes:
        error: Why.
    """

    error: str


@dataclass(frozen=True)
class Idle:
    """A worker finds nothing more to run, and ends."""


Message = Begun | Finished | Refused | Idle


def serve(connection: Connection, job: Job, skip: Collection[str], device: str | None) -> None:
    """Runs in the worker: unit after unit, until none is left, a signal asks it to stop, or the launcher is gone.

    Args:
        connection: To the launcher, which gets `Message`s.
        job: What to do.
        skip: Names of units that are not tried again.
        device: The GPU that this worker has; `None` leaves it what there is.
    """
    multiprocessing.set_start_method(None, force=True)  # loaders start as they do elsewhere, not as this process did
    os.setsid()  # Ctrl-C is the launcher's to handle; and all that this process starts can be ended with it
    if job.grace:
        signals.listen(*STOPS)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    threading.Thread(target=end_with_the_launcher, args=(job.grace,), daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    with suppress(BrokenPipeError, ConnectionResetError):  # the launcher is gone
        try:
            job.start()
            gc.collect()
            gc.freeze()  # what has been imported stays: the collections between units need not look at it
            _work(connection, job, set(skip))
        except (UserError, OSError) as error:
            connection.send(Refused(message_of(error)))
    sys.stdout.flush()


def _work(connection: Connection, job: Job, skip: set[str]) -> None:
    while not signals.requested():
        unit = job.claim(skip)
        if unit is None:
            connection.send(Idle())
            return
        outcome = run_claimed(job, unit, connection.send)
        connection.send(Finished(unit.name, outcome))
        if not outcome.clean:
            return
        if outcome.status != "done":
            skip.add(unit.name)
        gc.collect()


def run_claimed(job: Job, unit: Unit, tell: Callable[[Begun], None] = lambda begun: None) -> Outcome:
    """Runs a unit that this process has claimed, releases its lock, and returns what became of it.

    Args:
        job: The job.
        unit: The unit.
        tell: Called before it is run.

    Raises:
        UserError: The disk is full; the unit is left to be run.
    """
    with unit.lock:
        attempt = job.begin(unit)
        tell(Begun(unit.name, unit.lock.path, attempt))
        if attempt <= job.attempts:
            outcome = _run_logged(job, unit)
        else:
            outcome = Outcome("failed", f"its process died {attempt - 1} times")
        failed = outcome.status == "failed"
        full = failed and is_for_want_of_space(outcome.error)  # no fault of the unit, and the next would fail likewise
        if failed and not full:
            with suppress(UserError):
                job.fail(unit.name, outcome.error)
        with suppress(UserError, OSError) if full else nullcontext():
            job.end(unit, full or outcome.status == "stopped")
    if full:
        raise UserError(f"{unit.name}: {outcome.error.removesuffix('.')}. The same command goes on from here.")
    return outcome


def _run_logged(job: Job, unit: Unit) -> Outcome:
    try:
        with output_to(unit.log) if unit.log else nullcontext():
            return _run(job, unit)
    except OSError as error:  # of the log
        return Outcome("failed", str(error))


def _run(job: Job, unit: Unit) -> Outcome:
    try:
        return job.run(unit) or Outcome()
    except (StoppedError, KeyboardInterrupt):
        return Outcome("stopped", clean=False)
    except UserError as error:
        return Outcome("failed", message_of(error))
    except OSError as error:
        traceback.print_exc()
        return Outcome("failed", str(error))
    except BaseException as error:  # SystemExit too: whatever a unit does, it does to itself
        traceback.print_exc()
        return Outcome("failed", f"{type(error).__name__}: {error}", clean=False)


def end_with_the_launcher(grace: float) -> None:
    """Ends this process and all that it started when the launcher is gone, however that was ended.

    Args:
        grace: Seconds that it has to stop between two steps.
    """
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    wait([launcher.sentinel])
    if grace:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
    os.killpg(0, signal.SIGKILL)
