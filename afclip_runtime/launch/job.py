"""The protocol of a job: what there is to do, who does the next part, and what became of it."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from afclip_runtime.launch.locks import Lock

ATTEMPTS = 3
GRACE = 60.0


@dataclass(frozen=True)
class Outcome:
    """What became of a unit.

    Attributes:
        status: `done`, `failed`, or `stopped`: a signal ended its process, and the unit is left to be run.
        error: Why it failed.
        clean: Whether its process can go on: not after an exception, which may hold memory.
    """

    status: Literal["done", "failed", "stopped"] = "done"
    error: str = ""
    clean: bool = True


@dataclass
class Unit:
    """A unit of work that this process has claimed: nobody else takes it before its lock is released.

    Attributes:
        name: What tells it from the other units of the job.
        lock: Released when the unit has been run, and by the system when the process is gone.
        content: What the job needs to run it.
        log: File that all output of `run` is appended to, that of child processes too; `None` leaves it where it is.
    """

    name: str
    lock: Lock
    content: Any = None
    log: Path | None = None


class Job(ABC):
    """Many units of work. It is picklable: the launcher has one copy, each worker process another.

    Attributes:
        attempts: A unit that was begun so often by processes that died of it has failed: else it would take every
            worker with it.
        grace: Seconds that a worker has to stop between two steps after a signal; with 0 it is killed at once.
        time_limit: Seconds that a unit may take; then its worker is killed, and the unit has failed.
    """

    attempts: int = ATTEMPTS
    grace: float = GRACE
    time_limit: float | None = None

    @abstractmethod
    def left(self) -> int:
        """Returns how many units are still to be run; no more workers start than that. Called by the launcher."""

    def start(self) -> None:  # noqa: B027  # many jobs need nothing
        """Loads what all units need. Called once in each worker, before its first unit.

        Raises:
            UserError: No unit can be run; the whole launch ends with it.
        """

    @abstractmethod
    def claim(self, skip: Collection[str]) -> Unit | None:
        """Returns the next unit that is not finished and that nobody has; `None` if this process finds none.

        A unit may be finished in the moment before its lock is free: whoever gets the lock looks again. Called in a
        worker.

        Args:
            skip: Names of units that are not tried again in this launch.

        Raises:
            UserError: The job cannot go on; the whole launch ends with it.
        """

    @abstractmethod
    def run(self, unit: Unit) -> Outcome | None:
        """Runs a unit and returns what became of it; `None` means done. Called in a worker.

        What it writes appears whole or not at all: the process may die anywhere. A `UserError` or an `OSError` is why
        it failed; after any other exception, whose traceback goes to the log, the process is replaced.

        Raises:
            StoppedError: `signals.requested()` was true between two steps.
        """

    @abstractmethod
    def fail(self, name: str, error: str) -> None:
        """Records that a unit has failed, for all who look later; it may be told twice.

        Called in the worker after a run that failed, in the launcher if the process died or took too long.
        """

    def begin(self, unit: Unit) -> int:
        """Counts that a unit is begun, and returns how often it was by processes that did not live to end it, and now.

        Both this and `end` are for jobs that keep the count elsewhere than in the file of the lock.
        """
        unit.lock.attempts += 1
        return unit.lock.attempts

    def end(self, unit: Unit, stopped: bool) -> None:
        """Takes back what `begin` counted, once a unit has been run.

        Args:
            unit: The unit.
            stopped: Whether it is left to be run: then earlier attempts still count.
        """
        unit.lock.attempts = unit.lock.attempts - 1 if stopped else 0
