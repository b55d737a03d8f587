"""The pool of worker processes of this machine."""

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
from afclip_runtime.files import take_lock
from afclip_runtime.launch import signals
from afclip_runtime.launch.job import Job, Outcome, Unit
from afclip_runtime.launch.signals import STOPS
from afclip_runtime.launch.where import Ended, Report
from afclip_runtime.launch.worker import Begun, Exhausted, Finished, Idle, Refused, died_of, serve

LOOK = 0.2  # seconds between two checks of signals and clocks
STILLBORN = 3  # number of workers that may die before their first unit
WIND_DOWN = 10.0  # seconds that workers have to stop when one of them has ended the whole job
NEVER = float("inf")


def run_local(job: Job, jobs: int, report: Report) -> Ended:
    """Runs the units of a job in persistent worker processes, so that each imports packages and loads models only once.

    Args:
        job: The job.
        jobs: Number of worker processes.
        report: Function that is called after each unit.

    Raises:
        UserError: See `launch`.
    """
    with signals.noting() as noted:
        pool = _Pool(job, report, noted)
        try:
            pool.run(jobs)
        except UserError:
            pool.wind_down()
            raise
        finally:
            pool.kill()
        signals.requeue()
        return Ended(noted[0] if noted else None)


class _Worker:
    """The launcher's state of a worker process."""

    def __init__(self, index: int, process: BaseProcess, connection: Connection) -> None:
        self.index, self.process, self.connection = index, process, connection
        self.unit: Begun | None = None  # current unit
        self.limit = NEVER  # deadline of the unit, on the monotonic clock
        self.ran = self.idle = False

    def kill(self) -> None:
        """Kills the process and its child processes."""
        assert self.process.pid is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()  # in case it has no process group yet
        self.process.join()


class _Pool:
    def __init__(self, job: Job, report: Report, noted: list[signal.Signals]) -> None:
        self.job, self.report, self.noted = job, report, noted
        self.workers: list[_Worker] = []
        self.skip: set[str] = set()  # units that are not tried again
        self.left_behind: set[str] = set()  # stopped units among them, which are still to be run
        self.exhausted: list[Begun] = []  # units that no worker begins again
        self.stillborn = 0
        self.deadline = NEVER  # for workers that were asked to stop
        self.devices: list[str] = []

    @property
    def stopping(self) -> bool:
        return self.deadline < NEVER

    def run(self, jobs: int) -> None:
        """Returns when no worker finds another unit, or when all have stopped."""
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
            exhausted, self.exhausted = self.exhausted, []
            for worker in list(self.workers):
                self._look_at(worker)
            for unit in exhausted:  # the last messages of the processes that began them have been read
                self._give_up(unit)
        for unit in self.exhausted:
            self._give_up(unit)

    def wind_down(self) -> None:
        """Asks all workers to stop and waits a little: a worker that is killed while it writes leaves half a file."""
        deadline = time.monotonic() + min(self.job.grace, WIND_DOWN)
        self._ask_to_stop()
        for worker in self.workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))

    def kill(self) -> None:
        """Kills all workers. Their units are still to be run."""
        for worker in self.workers:
            worker.kill()
        for worker in self.workers:
            with suppress(UserError):
                self._read(worker)  # the unit may have been finished meanwhile
            if worker.unit is not None:
                self._end(worker.unit, stopped=True)

    def _start(self, index: int) -> None:
        context = multiprocessing.get_context("spawn")  # forking a process with threads may hang
        ours, theirs = context.Pipe()
        device = self.devices[index % len(self.devices)] if self.devices else None
        process = context.Process(target=serve, args=(theirs, self.job, frozenset(self.skip), device))
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # inherited: a signal waits until the worker has its handlers
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        theirs.close()
        self.workers.append(_Worker(index, process, ours))

    def _stop(self) -> None:
        self.deadline = time.monotonic() + self.job.grace
        if self.job.grace:
            said = f"Stopping between two {self.job.steps}, at the latest in {self.job.grace:g} s."
            print(said + signals.again(self.noted[0]), file=sys.stderr, flush=True)
        self._ask_to_stop()

    def _ask_to_stop(self) -> None:
        if not self.job.grace:
            return
        for worker in self.workers:
            if worker.ran or worker.connection.poll():
                worker.process.terminate()
            else:  # it still loads its models, which no signal interrupts, and has nothing to finish
                worker.kill()

    def _look_at(self, worker: _Worker) -> None:
        self._read(worker)
        if worker.process.is_alive():
            if time.monotonic() > worker.limit and worker.unit is not None:
                worker.kill()
                self._fail(worker.unit, f"took longer than the limit of {self.job.time_limit:g} s")
                self._replace(worker)
            return
        worker.kill()  # its child processes
        self._read(worker)  # its last messages
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
                    f"{ending(worker.process.exitcode)}. See their output for the reason."
                )
            self._replace(worker)

    def _read(self, worker: _Worker) -> None:
        with suppress(EOFError, OSError):  # the worker has ended
            while worker.connection.poll():
                match worker.connection.recv():
                    case Begun() as unit:
                        worker.unit, worker.ran = unit, True
                        worker.limit = NEVER if self.job.time_limit is None else time.monotonic() + self.job.time_limit
                    case Finished(name, outcome):
                        worker.unit, worker.limit = None, NEVER
                        self._settle(name, outcome)
                    case Exhausted(unit):
                        self.exhausted.append(unit)
                    case Idle():
                        worker.idle = True
                    case Refused(error):
                        raise UserError(error)

    def _end(self, begun: Begun, stopped: bool) -> None:
        """Resets the attempts of a unit whose process was ended on purpose, or that shall not be tried again."""
        with suppress(UserError, OSError):
            if (lock := take_lock(begun.lock)) is not None:
                with lock:
                    self.job.end(Unit(begun.name, lock), stopped)

    def _settle(self, name: str, outcome: Outcome) -> None:
        if outcome.status != "done":
            self.skip.add(name)
        if outcome.status == "stopped":
            self.left_behind.add(name)
        self.report(name, outcome)

    def _fail(self, unit: Begun, error: str) -> None:
        with suppress(UserError):  # on a full disk, the outcome still reports it
            self.job.fail(unit.name, error)
        self._end(unit, stopped=False)
        self._settle(unit.name, Outcome("failed", error))

    def _give_up(self, unit: Begun) -> None:
        if unit.name in self.skip:
            self._end(unit, stopped=unit.name in self.left_behind)  # at the last attempt, a worker still had the lock
        elif not any(worker.unit is not None and worker.unit.name == unit.name for worker in self.workers):
            self._fail(unit, died_of(unit.attempt))  # else how that worker ended says more

    def _died(self, worker: _Worker, unit: Begun) -> None:
        code = worker.process.exitcode
        if self.stopping:
            self._end(unit, stopped=True)
        elif code == -signal.SIGTERM:  # a cluster that reclaims the machine terminates all processes
            self._end(unit, stopped=True)
            self._settle(unit.name, Outcome("stopped"))
        elif unit.attempt >= self.job.attempts:
            died = "its process died:" if unit.attempt == 1 else f"{died_of(unit.attempt)}, the last time it was"
            hint = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
            self._fail(unit, f"{died} {ending(code)}{hint}")
        else:
            title = self.job.title(unit.name)
            print(f"{title}: its process was {ending(code)}; another takes its place.", file=sys.stderr, flush=True)
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
    """Returns a description of how a process ended, as `killed by SIGKILL`."""
    return f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended by exit code {code}"


def visible_devices() -> list[str]:
    """Returns the GPUs to share among workers; empty with at most one GPU."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        devices = [device for device in given.split(",") if device]
    else:  # the driver lists them; a library would use memory on each GPU
        cards = Path("/proc/driver/nvidia/gpus")
        devices = [str(number) for number in range(len(list(cards.iterdir())))] if cards.is_dir() else []
    return devices if len(devices) > 1 else []
