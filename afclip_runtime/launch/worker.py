"""A worker: a process that claims and runs units one after another, and reports to the launcher."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Collection
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path

from afclip_runtime.errors import UserError, is_for_want_of_space, message_of
from afclip_runtime.files import this_process
from afclip_runtime.launch import signals
from afclip_runtime.launch.job import Job, Outcome, Unit
from afclip_runtime.launch.output import output_to
from afclip_runtime.launch.signals import STOPS, StoppedError


@dataclass(frozen=True)
class Begun:
    """Message: a worker begins a unit.

    Attributes:
        name: Name of the unit.
        lock: Its lock file.
        attempt: Number of the attempt; see `Job.begin`.
    """

    name: str
    lock: Path
    attempt: int


@dataclass(frozen=True)
class Finished:
    """Message: a worker has run a unit.

    Attributes:
        name: Name of the unit.
        outcome: Its outcome.
    """

    name: str
    outcome: Outcome


@dataclass(frozen=True)
class Exhausted:
    """Message: a worker does not begin a unit, because its processes have died as often as allowed.

    The launcher records the failure: it may know how the last process ended.

    Attributes:
        unit: The unit, with the number of its attempts.
    """

    unit: Begun


@dataclass(frozen=True)
class Refused:
    """Message: no unit can be run.

    Attributes:
        error: The reason.
    """

    error: str


@dataclass(frozen=True)
class Idle:
    """Message: a worker finds no more units, and ends."""


Message = Begun | Finished | Exhausted | Refused | Idle


def serve(connection: Connection, job: Job, skip: Collection[str], device: str | None) -> None:
    """Main function of a worker: runs units until none is left, a signal asks it to stop, or the launcher has ended.

    Args:
        connection: Connection to the launcher, which receives `Message`s.
        job: The job.
        skip: Names of units that are not tried again.
        device: GPU of this worker; `None` for all.
    """
    multiprocessing.set_start_method(None, force=True)  # data loaders use the default start method
    os.setsid()  # the launcher handles Ctrl-C; and the group of this process can be killed as a whole
    if job.grace:
        signals.listen(*STOPS)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    threading.Thread(target=end_with_the_launcher, args=(job.grace,), daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    with suppress(BrokenPipeError, ConnectionResetError):  # the launcher has ended
        try:
            job.start()
            gc.collect()
            gc.freeze()  # imported modules stay, so collections between units can skip them
            _work(connection, job, set(skip))
        except (UserError, OSError) as error:
            connection.send(Refused(message_of(error)))
    gc.unfreeze()  # the interpreter frees all at its end, else bindings made with nanobind report leaks
    sys.stdout.flush()


def _work(connection: Connection, job: Job, skip: set[str]) -> None:
    while not signals.requested():
        unit = job.claim(skip)
        if unit is None:
            connection.send(Idle())
            return
        said = _begin(connection, job, unit)
        connection.send(said)  # the lock is free by now, and the launcher may take it
        if isinstance(said, Finished) and not said.outcome.clean:
            return
        if isinstance(said, Exhausted) or said.outcome.status != "done":
            skip.add(unit.name)
        gc.collect()


def _begin(connection: Connection, job: Job, unit: Unit) -> Finished | Exhausted:
    with unit.lock:
        begun = Begun(unit.name, unit.lock.path, job.begin(unit))
        if begun.attempt <= job.attempts:
            connection.send(begun)
            return Finished(unit.name, _run_begun(job, unit))
        job.end(unit, stopped=True)  # this process does not die of it
        return Exhausted(replace(begun, attempt=begun.attempt - 1))


def run_claimed(job: Job, unit: Unit) -> Outcome:
    """Runs a claimed unit, releases its lock, and returns the outcome. For processes that are not workers of `serve`.

    Raises:
        UserError: The disk is full. The unit is still to be run.
    """
    with unit.lock:
        attempt = job.begin(unit)
        return _run_begun(job, unit, died_of(attempt - 1) if attempt > job.attempts else "")


def died_of(attempts: int) -> str:
    """Returns the error of a unit whose processes died, all of them."""
    return f"its process died {attempts} times"


def _run_begun(job: Job, unit: Unit, error: str = "") -> Outcome:
    """Runs a unit, unless it has failed already with an error, and records the outcome.

    Raises:
        UserError: The disk is full. The unit is still to be run.
    """
    outcome = Outcome("failed", error) if error else _run_logged(job, unit)
    failed = outcome.status == "failed"
    full = failed and is_for_want_of_space(outcome.error)  # not a fault of the unit
    if failed and not full:
        with suppress(UserError):
            job.fail(unit.name, outcome.error)
    with suppress(UserError, OSError) if full else nullcontext():
        job.end(unit, full or outcome.status == "stopped")
    if full:
        raise UserError(
            f"{job.title(unit.name)}: {outcome.error.removesuffix('.')}. The same command goes on from here."
        )
    return outcome


def _run_logged(job: Job, unit: Unit) -> Outcome:
    try:
        with output_to(unit.log) if unit.log else nullcontext():
            if unit.log:
                print(f"== process {this_process()}", flush=True)
            return _run(job, unit)
    except OSError as error:  # of the log file
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
    except BaseException as error:  # also SystemExit: it ends the unit only
        traceback.print_exc()
        return Outcome("failed", f"{type(error).__name__}: {error}", clean=False)


def end_with_the_launcher(grace: float) -> None:
    """Ends this process and its child processes when the launcher has ended, also after a crash.

    Args:
        grace: Seconds to stop between two steps.
    """
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    wait([launcher.sentinel])
    if grace and not signals.requested():  # a launcher that ends while its workers stop was ended by force
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
    os.killpg(0, signal.SIGKILL)
