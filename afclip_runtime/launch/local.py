"""Worker processes of this machine: started, watched, replaced and ended."""

import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from afclip_runtime.errors import UserError
from afclip_runtime.launch import signals
from afclip_runtime.launch.job import Job, Outcome, Unit
from afclip_runtime.launch.locks import try_lock
from afclip_runtime.launch.signals import STOPS
from afclip_runtime.launch.where import Ended, Report
from afclip_runtime.launch.worker import Begun, Finished, Idle, Refused, serve

LOOK = 0.2  # seconds between two looks at signals and clocks
STILLBORN = 3  # workers that may die before they begin a unit
NEVER = float("inf")


def run_local(job: Job, jobs: int, report: Report) -> Ended:
    """Runs the units of a job in worker processes that stay, so that each pays once for its imports and its model.

    Args:
        job: The job.
        jobs: Worker processes.
        report: Called after each unit.

    Raises:
        UserError: See `launch`.
    """
    with signals.noting() as noted:
        pool = _Pool(job, report, noted)
        try:
            pool.run(jobs)
        finally:
            pool.kill()
        signals.requeue()
        return Ended(noted[0] if noted else None)


class _Worker:
    """A worker process as the launcher sees it."""

    def __init__(self, index: int, process: BaseProcess, connection: Connection) -> None:
        self.index, self.process, self.connection = index, process, connection
        self.unit: Begun | None = None  # what it runs
        self.limit = NEVER  # of the unit's time, on the monotonic clock
        self.ran = self.idle = False

    def kill(self) -> None:
        """Ends the process and all that it started."""
        assert self.process.pid is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()  # where it had no time to found its group
        self.process.join()


class _Pool:
    def __init__(self, job: Job, report: Report, noted: list[signal.Signals]) -> None:
        self.job, self.report, self.noted = job, report, noted
        self.workers: list[_Worker] = []
        self.skip: set[str] = set()  # units that are not tried again
        self.left_behind: set[str] = set()  # those of them that are still to be run
        self.stillborn = 0
        self.deadline = NEVER  # of workers that were asked to stop
        self.devices: list[str] = []

    @property
    def stopping(self) -> bool:
        return self.deadline < NEVER

    def run(self, jobs: int) -> None:
        """Returns when no worker finds anything more to run, or all have stopped."""
        if jobs > 1:
            self.devices = visible_devices()
        for index in range(jobs):
            self._start(index)
        while self.workers:
            places = [place for worker in self.workers for place in (worker.connection, worker.process.sentinel)]
            wait(places, LOOK)
            if self.noted and not self.stopping:
                self._stop()
            asked_again = len(self.noted) > 1 and self.noted[-1] != signal.SIGUSR1
            if self.stopping and (asked_again or time.monotonic() > self.deadline):
                return
            for worker in list(self.workers):
                self._look_at(worker)

    def kill(self) -> None:
        """Ends all workers, whatever they do; what they had is left to be run."""
        for worker in self.workers:
            worker.kill()
        for worker in self.workers:
            with suppress(UserError):
                self._read(worker)  # it may have finished in the last moment
            if worker.unit is not None:
                self._end(worker.unit, stopped=True)

    def _start(self, index: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        ours, theirs = context.Pipe()
        device = self.devices[index % len(self.devices)] if self.devices else None
        process = context.Process(target=serve, args=(theirs, self.job, frozenset(self.skip), device))
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # inherited: a signal waits until the worker listens
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        theirs.close()
        self.workers.append(_Worker(index, process, ours))

    def _stop(self) -> None:
        self.deadline = time.monotonic() + self.job.grace
        if self.job.grace:
            print(f"Stopping between two steps, at the latest in {self.job.grace:g} s.", file=sys.stderr, flush=True)
            for worker in self.workers:
                worker.process.terminate()

    def _look_at(self, worker: _Worker) -> None:
        self._read(worker)
        if worker.process.is_alive():
            if time.monotonic() > worker.limit and worker.unit is not None:
                worker.kill()
                self._fail(worker.unit, f"took longer than the limit of {self.job.time_limit:g} s")
                self._replace(worker)
            return
        worker.kill()  # what it started
        self._read(worker)  # what it said at last
        if worker.idle:
            self._remove(worker)
        elif worker.unit is not None:
            self._died(worker, worker.unit)
        elif worker.ran or self.stopping:
            self._replace(worker)
        else:
            self.stillborn += 1
            if self.stillborn >= STILLBORN:
                raise UserError(
                    f"{self.stillborn} workers have ended before they began any work, the last one "
                    f"{ending(worker.process.exitcode)}. What they printed says more."
                )
            self._replace(worker)

    def _read(self, worker: _Worker) -> None:
        with suppress(EOFError, OSError):  # it is gone
            while worker.connection.poll():
                match worker.connection.recv():
                    case Begun() as unit:
                        worker.unit, worker.ran = unit, True
                        worker.limit = NEVER if self.job.time_limit is None else time.monotonic() + self.job.time_limit
                    case Finished(name, outcome):
                        worker.unit, worker.limit = None, NEVER
                        self._settle(name, outcome)
                    case Idle():
                        worker.idle = True
                    case Refused(error):
                        raise UserError(error)

    def _end(self, begun: Begun, stopped: bool) -> None:
        """Takes back that a unit was begun whose process ended as we wanted, or with which no other shall begin."""
        with suppress(UserError, OSError):
            if (lock := try_lock(begun.lock)) is not None:
                with lock:
                    self.job.end(Unit(begun.name, lock), stopped)

    def _settle(self, name: str, outcome: Outcome) -> None:
        if outcome.status != "done":
            self.skip.add(name)
        if outcome.status == "stopped":
            self.left_behind.add(name)
        self.report(name, outcome)

    def _fail(self, unit: Begun, error: str) -> None:
        with suppress(UserError):  # on a full disk the outcome still says it
            self.job.fail(unit.name, error)
        self._end(unit, stopped=False)
        self._settle(unit.name, Outcome("failed", error))

    def _died(self, worker: _Worker, unit: Begun) -> None:
        code = worker.process.exitcode
        if self.stopping:
            self._end(unit, stopped=True)
        elif code == -signal.SIGTERM:  # a cluster that takes the machine away asks every process to end
            self._end(unit, stopped=True)
            self._settle(unit.name, Outcome("stopped"))
        elif unit.attempt >= self.job.attempts:
            times = "" if unit.attempt == 1 else f" {unit.attempt} times, the last time it was"
            hint = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
            self._fail(unit, f"its process died{times or ':'} {ending(code)}{hint}")
        else:
            print(f"{unit.name}: its process was {ending(code)}; another takes its place.", file=sys.stderr, flush=True)
        self._replace(worker)

    def _remove(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        worker.connection.close()
        worker.process.join()

    def _replace(self, worker: _Worker) -> None:
        self._remove(worker)
        if self.noted:
            return
        running = {other.unit.name for other in self.workers if other.unit is not None}
        if self.job.left() > len(running | self.left_behind):
            self._start(worker.index)


def ending(code: int | None) -> str:
    """Returns how a process ended, as `killed by SIGKILL`."""
    return f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended by exit code {code}"


def visible_devices() -> list[str]:
    """Returns the GPUs that are there to be shared among workers; nothing where there is one or none."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        devices = [device for device in given.split(",") if device]
    else:  # the driver lists them, without a library that would take memory on each
        cards = Path("/proc/driver/nvidia/gpus")
        devices = [str(number) for number in range(len(list(cards.iterdir())))] if cards.is_dir() else []
    return devices if len(devices) > 1 else []
