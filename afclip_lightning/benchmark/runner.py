"""Cells as units of work of the launcher."""

import gc
import shutil
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from afclip_lightning.benchmark.matrix import CELL, Cell, Step
from afclip_lightning.benchmark.table import DONE, REMEDY, Done, is_done, read_backbone, read_results
from afclip_runtime.errors import UserError, message_of
from afclip_runtime.files import atomic_path, read_json, refresh, take_lock, write_json
from afclip_runtime.launch import Job, Outcome, Unit, Where, launch
from afclip_runtime.launch.output import check_exit_code
from afclip_runtime.launch.signals import StoppedError, interruption
from afclip_runtime.launch.where import HERE

Run = Callable[[Sequence[str]], int]
FAILED, LOG, LOCK, SCRIPT = "failed.json", "log.txt", "lock", "commands.sh"


@dataclass(frozen=True)
class State:
    """State of a cell.

    Attributes:
        status: `done`, `failed`, `elsewhere` (another benchmark process has claimed it) or `stopped` (a signal ended
            its process, and the cell is still to be run).
        error: Reason of the failure.
        ran: Whether a part of it was run now. Otherwise it was done or had failed before.
    """

    status: Literal["done", "failed", "elsewhere", "stopped"]
    error: str = ""
    ran: bool = False


def command_line(arguments: Sequence[str]) -> int:
    """Runs the project's command line in this process, like a separate process, and returns the exit code."""
    from afclip_lightning.engine import app

    sys.argv[1:] = arguments  # Lightning reads it, and a run folder records it
    return app.main()


@dataclass(frozen=True)
class _Failure:
    error: str


def state_of(cell: Cell) -> State | None:
    """Returns the state of a cell that is done, has failed or is damaged; `None` if it is still to be run."""
    path = cell.folder / FAILED
    try:
        if path.exists():
            return State("failed", read_json(path, _Failure, remedy=REMEDY).error)
        done = [is_done(cell.folder / step.name, step) for step in cell.steps]  # checks all, because one may be damaged
    except UserError as error:
        return State("failed", str(error))
    return State("done") if all(done) else None


def _state_now(cell: Cell) -> State | None:
    """Returns the state of a cell whose lock another machine may just have released."""
    for folder in (cell.folder, *(cell.folder / step.name for step in cell.steps)):
        if folder.is_dir():
            refresh(folder)
    return state_of(cell)


def clear_failure(cell: Cell) -> None:
    """Clears the failure of a cell, so that it is run again and its damaged parts are repeated."""
    if not cell.folder.exists() or (lock := take_lock(cell.folder / LOCK)) is None:
        return
    with lock:
        lock.attempts = 0
        (cell.folder / FAILED).unlink(missing_ok=True)
        for step in cell.steps:
            try:
                is_done(cell.folder / step.name, step)
            except UserError:
                shutil.rmtree(cell.folder / step.name)


class Cells(Job):
    """Cells of a benchmark, each run by one process from its first step to its last.

    Args:
        cells: The cells.
        run: Function of a module that runs the arguments of a step in the worker and returns an exit code.
        time_limit: Time limit of a cell, in seconds.
    """

    noun = "cell"
    grace = 0  # a stopped cell repeats its step, so there is nothing to save

    def __init__(self, cells: Sequence[Cell], run: Run = command_line, time_limit: float | None = None) -> None:
        self.cells = {cell.name: cell for cell in cells}
        self.step, self.time_limit = run, time_limit
        self._open = deque(cells)  # cells that this process does not know to be finished

    def left(self) -> int:
        """Returns the number of cells that are still to be run."""
        return sum(state_of(cell) is None for cell in self.cells.values())

    def start(self) -> None:
        """Imports the modules that cells need."""
        if self.step is command_line:
            from afclip_lightning.engine import app  # noqa: F401

    def claim(self, skip: Collection[str]) -> Unit | None:
        """Claims the next cell that is to be run and that no other process has, and returns it."""
        for _ in range(len(self._open)):
            cell = self._open.popleft()
            if cell.name in skip:
                continue
            lock = take_lock(cell.folder / LOCK)
            if lock is None:
                self._open.append(cell)  # its process may die
            elif _state_now(cell) is None:
                return Unit(cell.name, lock, cell, cell.folder / LOG)
            else:
                lock.release()
        return None

    def run(self, unit: Unit) -> Outcome:
        """Runs the unfinished steps of a cell.

        After a failed test the other steps are run; after a failed fit none is.
        """
        cell: Cell = unit.content
        for path, text in [*cell.files.items(), (cell.folder / SCRIPT, cell.script())]:
            with atomic_path(path, durable=False) as temporary:  # written again whenever the cell is run
                temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        errors, clean = [], True
        for step in cell.steps:
            if is_done(cell.folder / step.name, step):
                continue
            try:
                _run_step(cell, step, self.step)
                continue
            except StoppedError:
                raise
            except (UserError, OSError) as error:
                errors.append(f"{step.name}: {message_of(error)}")
            except BaseException as error:  # SystemExit too
                traceback.print_exc()
                errors.append(f"{step.name}: {type(error).__name__}: {error}")
                clean = False
            if not step.dataset:
                break  # without a head there is nothing to test
        return Outcome("failed" if errors else "done", "; ".join(errors), clean)

    def fail(self, name: str, error: str) -> None:
        """Records why a cell failed."""
        folder = self.cells[name].folder
        write_json(folder / FAILED, {"error": error, "log": str(folder / LOG)})


def run_cells(
    cells: Sequence[Cell],
    *,
    where: Where = HERE,
    folder: Path | None = None,
    retry: bool = False,
    time_limit: float | None = None,
    run: Run = command_line,
    report: Callable[[Cell, State], None] = lambda cell, state: None,
) -> dict[str, State]:
    """Runs the unfinished cells, each in the next free worker. Returns the state of each cell by name.

    Args:
        cells: The cells.
        where: Launcher of the workers.
        folder: Folder of the benchmark. It is needed if workers run on other machines.
        retry: Run cells again that failed before or are damaged. Otherwise they are only reported.
        time_limit: Time limit of a cell, in seconds. After it, the worker is killed and the cell has failed.
        run: Function of a module that runs the arguments of a step in the worker and returns an exit code.
        report: Called after each cell.

    Raises:
        KeyboardInterrupt: A signal requested the end, and the workers have ended.
    """
    states: dict[str, State] = {}

    def settle(cell: Cell, state: State) -> None:
        states[cell.name] = state
        report(cell, state)

    for cell in cells:
        if retry:
            clear_failure(cell)
        if state := state_of(cell):
            settle(cell, state)
    job = Cells([cell for cell in cells if cell.name not in states], run, time_limit)
    ended = launch(
        job,
        where,
        folder or Path(),
        lambda name, outcome: settle(job.cells[name], State(outcome.status, outcome.error, ran=True)),
    )
    elsewhere = where.launcher != "local"
    for cell in job.cells.values():
        if cell.name in states:
            continue
        if (state := state_of(cell)) is not None:  # run by another machine or another command
            settle(cell, replace(state, ran=elsewhere))
        elif ended.signal is None:
            settle(cell, State("stopped" if elsewhere else "elsewhere", ran=elsewhere))
    if ended.signal is not None:
        raise interruption(ended.signal)
    return states


def _run_step(cell: Cell, step: Step, run: Run) -> None:
    folder = cell.folder / step.name
    if folder.exists():
        shutil.rmtree(folder)
    log = cell.folder / LOG
    before = log.stat().st_size if log.exists() else 0
    arguments = [argument.replace(CELL, str(cell.folder)) for argument in step.arguments]
    print(f"\n== {step.name}: {' '.join(arguments)}", flush=True)
    start = time.monotonic()
    try:
        code = run(arguments)
    finally:
        if len(cell.steps) > 1:
            gc.collect()
    check_exit_code(code, log, before)
    if step.dataset:
        read_results(folder)
        read_backbone(folder)
    seconds = round(time.monotonic() - start, 3)
    done = Done(cell.method, cell.train, cell.seed, step.dataset, step.shots, seconds, step.digest)
    write_json(folder / DONE, asdict(done))
