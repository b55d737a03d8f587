"""Runs cells in worker processes that stay, so that imports are paid once and a crash costs one cell."""

import gc
import multiprocessing
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from afclip_lightning.benchmark.matrix import CELL, Cell, Step
from afclip_lightning.benchmark.table import DONE, REMEDY, Done, is_done, read_backbone, read_results
from afclip_lightning.engine.output import output_to
from afclip_lightning.engine.signals import STOPPED, StoppedError
from afclip_runtime.errors import UserError, message_of
from afclip_runtime.files import read_json, shown, write_json, write_text

Run = Callable[[Sequence[str]], int]
FAILED, LOG, LOCK, SCRIPT = "failed.json", "log.txt", "lock", "commands.sh"
LOOKED_AT = 2**16  # bytes at the end of a log


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
        status: `done`, `failed`, `elsewhere`: another benchmark process has it, or `stopped`: a signal ended its
            process, and the cell is left to be run.
        error: Why it failed.
        ran: Whether any of it was run now; else it was done or had failed before.
        clean: Whether its process can go on: not after an exception, which may hold memory.
    """

    status: Literal["done", "failed", "elsewhere", "stopped"]
    error: str = ""
    ran: bool = False
    clean: bool = True


def command_line(arguments: Sequence[str]) -> int:
    """Runs the project's command line in this process, as a process of its own would, and returns the exit code."""
    from afclip_lightning.engine import app

    sys.argv[1:] = arguments  # what Lightning reads, and what a run folder records
    return app.main()


@dataclass(frozen=True)
class _Failure:
    error: str


def fault(cell: Cell) -> str:
    """Returns why the cell failed the last time, or what of it is damaged; an empty text if nothing is wrong."""
    path = cell.folder / FAILED
    try:
        if path.exists():
            return read_json(path, _Failure, remedy=REMEDY).error
        for step in cell.steps:
            is_done(cell.folder / step.name, step)
    except UserError as error:
        return str(error)
    return ""


def run_cells(
    cells: Sequence[Cell],
    *,
    jobs: int = 1,
    retry: bool = False,
    time_limit: float | None = None,
    run: Run = command_line,
    report: Callable[[Cell, Outcome], None] = lambda cell, outcome: None,
) -> dict[str, Outcome]:
    """Runs the cells that are not finished, each in the next worker that is free; returns what became of each, by name.

    Args:
        cells: What to run.
        jobs: Worker processes.
        retry: Runs again what failed before or is damaged; else that is reported only.
        time_limit: Seconds that a cell may take; then its worker is killed, and the cell has failed.
        run: What a step's arguments go to, in the worker; returns an exit code. A function of a module.
        report: Called after each cell.
    """
    outcomes: dict[str, Outcome] = {}
    waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()

    def settle(cell: Cell, outcome: Outcome) -> None:
        outcomes[cell.name] = outcome
        report(cell, outcome)

    for cell in cells:
        if error := fault(cell):
            if not retry:
                settle(cell, Outcome("failed", error))
                continue
        elif all(is_done(cell.folder / step.name, step) for step in cell.steps):
            settle(cell, Outcome("done"))
            continue
        waiting.put(cell)

    def work(worker: Worker) -> None:
        with suppress(queue.Empty):
            while not worker.stopped:
                cell = waiting.get_nowait()
                outcome = worker.run(cell)
                if not worker.stopped:  # a cell that was interrupted has not failed
                    settle(cell, outcome)

    workers = [Worker(run, retry, time_limit) for _ in range(min(jobs, waiting.qsize()))]
    with ThreadPoolExecutor(max(1, len(workers))) as threads:
        futures = [threads.submit(work, worker) for worker in workers]
        try:
            for future in futures:
                future.result()
            for worker in workers:
                worker.close()
        finally:  # after an interrupt: a thread ends when its worker has
            for worker in workers:
                worker.stop()
    return outcomes


class Worker:
    """A process that runs cell after cell; a new one takes its place when it dies.

    Args:
        run: See `run_cells`.
        retry: See `run_cells`.
        time_limit: See `run_cells`.
    """

    def __init__(self, run: Run, retry: bool, time_limit: float | None) -> None:
        self.settings = run, retry
        self.time_limit = time_limit
        self.stopped = False
        self.process: multiprocessing.process.BaseProcess | None = None

    def run(self, cell: Cell) -> Outcome:
        """Returns what became of the cell. Whatever happens to the process is this cell's failure and no other's."""
        if self.process is None:
            self._start()
        process, connection = self.process, self.connection
        assert process is not None
        if self.stopped:  # while it started
            _kill(process)
        outcome = None
        with suppress(OSError, EOFError):  # it died
            connection.send(cell)
            if not wait([connection, process.sentinel], self.time_limit):
                outcome = Outcome("failed", f"took longer than the limit of {self.time_limit:g} s", True, clean=False)
            elif connection.poll():
                outcome = connection.recv()
        if outcome is None:
            process.join(10)
            if process.exitcode == -signal.SIGTERM:  # a cluster that takes the machine away asks every process to end
                outcome = Outcome("stopped", ran=True, clean=False)
            else:
                outcome = Outcome("failed", f"its process died: {_ending(process.exitcode)}", True, clean=False)
        if not outcome.clean:
            _kill(process)
            self.process = None
            if not self.stopped and outcome.status == "failed":
                _record(cell, outcome.error)
        return outcome

    def close(self) -> None:
        """Lets the process, which is idle, end by itself."""
        if self.process is not None:
            self.connection.close()
            self.process.join(30)

    def stop(self) -> None:
        """Ends the process, whatever it does."""
        self.stopped = True
        if self.process is not None:
            _kill(self.process)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, *self.settings))  # type: ignore[attr-defined]
        self.process.start()
        theirs.close()
        wait([self.connection, self.process.sentinel])  # its imports are no cell's time
        with suppress(OSError, EOFError):
            self.connection.recv()


def _kill(process: multiprocessing.process.BaseProcess) -> None:
    if process.pid is None:  # not started yet; group 0 would be our own
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with its loaders
    process.kill()  # where it had no time to found its group
    process.join()


def _ending(code: int | None) -> str:
    return f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"


def _record(cell: Cell, error: str) -> None:
    with suppress(UserError):  # on a full disk the outcome still says it
        write_json(cell.folder / FAILED, {"error": error, "log": str(cell.folder / LOG)})


def _serve(connection: Connection, run: Run, retry: bool) -> None:
    """Runs in the worker: cell after cell, until the benchmark is gone."""
    multiprocessing.set_start_method(
        None, force=True
    )  # loaders start as they do elsewhere, and not as this process did
    os.setsid()  # an interrupt from the keyboard is the benchmark's to handle; and its loaders end with it
    threading.Thread(target=_end_with_the_benchmark, daemon=True).start()
    with suppress(EOFError, BrokenPipeError):
        connection.send(None)
        while True:
            cell = connection.recv()
            connection.send(_claim(cell, run, retry))


def _end_with_the_benchmark() -> None:
    """Ends the worker and its loaders when the benchmark is gone, however it was ended: nobody waits for the cell."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


def _claim(cell: Cell, run: Run, retry: bool) -> Outcome:
    """Runs a cell unless another process has it: the system lets go of a lock whose process is no more."""
    try:
        cell.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(cell.folder / LOCK, timeout=0):
            if (error := fault(cell)) and not retry:
                return Outcome("failed", error)
            outcome = _run_steps(cell, run)
            if outcome.status == "failed":
                _record(cell, outcome.error)
            return outcome
    except Timeout:
        return Outcome("elsewhere")
    except (UserError, OSError) as error:
        _record(cell, str(error))
        return Outcome("failed", str(error), True)


def _run_steps(cell: Cell, run: Run) -> Outcome:
    (cell.folder / FAILED).unlink(missing_ok=True)
    for path, text in cell.files.items():
        write_text(path, text)
    write_text(cell.folder / SCRIPT, cell.script())
    errors, clean = [], True
    with output_to(cell.folder / LOG):
        for step in cell.steps:
            with suppress(UserError):
                if is_done(cell.folder / step.name, step):
                    continue
            try:
                _run_step(cell, step, run)
                continue
            except StoppedError:
                return Outcome("stopped", ran=True, clean=False)
            except UserError as error:
                errors.append(f"{step.name}: {message_of(error)}")
            except BaseException as error:  # SystemExit too: whatever a cell does, it does to itself
                traceback.print_exc()
                errors.append(f"{step.name}: {type(error).__name__}: {error}")
                clean = False
            if not step.dataset:
                break  # without a head there is nothing to test
    return Outcome("failed" if errors else "done", "; ".join(errors), True, clean)


def _run_step(cell: Cell, step: Step, run: Run) -> None:
    folder = cell.folder / step.name
    if folder.exists():
        shutil.rmtree(folder)
    before = (cell.folder / LOG).stat().st_size if (cell.folder / LOG).exists() else 0
    arguments = [argument.replace(CELL, str(cell.folder)) for argument in step.arguments]
    print(f"\n== {step.name}: {' '.join(arguments)}", flush=True)
    start = time.monotonic()
    try:
        code = run(arguments)
    finally:
        gc.collect()
    if code == STOPPED:
        raise StoppedError
    if code:
        raise UserError(f"exit code {code}{_last_error(cell.folder / LOG, before)}")
    if step.dataset:
        read_results(folder)
        read_backbone(folder)
    seconds = round(time.monotonic() - start, 3)
    done = Done(cell.method, cell.train, cell.seed, step.dataset, step.shots, seconds, step.digest)
    write_json(folder / DONE, asdict(done))


def _last_error(log: Path, begin: int) -> str:
    """Returns what the command line said of a mistake, which stands in the log behind `begin` bytes."""
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - LOOKED_AT))
        lines = file.read(LOOKED_AT).decode(errors="backslashreplace").splitlines()
    found = [line for line in lines if line.startswith("error: ")]
    return f": {shown(found[-1].removeprefix('error: '))}" if found else ""
