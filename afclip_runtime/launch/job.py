"""The protocol of a job: its units of work, claiming and running a unit, and the outcome of a unit."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from afclip_runtime.files import Lock

ATTEMPTS = 3
GRACE = 60.0


@dataclass(frozen=True)
class Outcome:
    """The outcome of a unit.

    Attributes:
        status: `done`, `failed`, or `stopped`: a signal ended its process, and the unit is still to be run.
        error: Reason of the failure.
        clean: Whether its process can continue. After an exception it cannot, since the exception may hold memory.
    """

    status: Literal["done", "failed", "stopped"] = "done"
    error: str = ""
    clean: bool = True


@dataclass
class Unit:
    """A unit of work that this process has claimed. No other process gets it before its lock is released.

    Attributes:
        name: Unique name in the job.
        lock: Its lock, released after the run, or by the system when the process ends.
        content: Data of the job for its run.
        log: File to which all output of `run` is appended, including that of child processes; `None` for no file.
    """

    name: str
    lock: Lock
    content: Any = None
    log: Path | None = None


class Job(ABC):
    """Many units of work. A job is picklable: the launcher and each worker process have their own copies.

    Attributes:
        attempts: Number of worker processes that may die in a unit. Then the unit has failed, so that it does not kill
            every worker.
        noun: Noun of a unit in messages.
        grace: Seconds for a worker to stop between two steps after a signal. With 0 it is killed at once.
        steps: Plural noun of these steps in messages.
        time_limit: Time limit of a unit in seconds. Then its worker is killed, and the unit has failed.
    """

    attempts: int = ATTEMPTS
    noun: str = "unit"
    grace: float = GRACE
    steps: str = "steps"
    time_limit: float | None = None

    def title(self, name: str) -> str:
        """Returns the name of a unit for messages."""
        return name

    @abstractmethod
    def left(self) -> int:
        """Returns the number of units still to be run, the maximum number of workers. Called by the launcher."""

    def start(self) -> None:  # noqa: B027  # many jobs need nothing
        """Loads the data and models of all units. Called once in each worker, before its first unit.

        Raises:
            UserError: No unit can be run. It ends the whole launch.
        """

    @abstractmethod
    def claim(self, skip: Collection[str]) -> Unit | None:
        """Claims the next unit that is neither finished nor claimed; returns `None` if there is none.

        Another process may finish a unit just before its lock is released. So check again with the lock whether the
        unit is finished. Called in a worker.

        Args:
            skip: Names of units that are not tried again in this launch.

        Raises:
            UserError: The job cannot continue. It ends the whole launch.
        """

    @abstractmethod
    def run(self, unit: Unit) -> Outcome | None:
        """Runs a unit and returns its outcome; `None` means done. Called in a worker.

        All files must be written atomically, since the process may die at any time. A `UserError` or an `OSError` is
        the reason of a failure. After any other exception, whose traceback goes to the log, the process is replaced.

        Raises:
            StoppedError: `signals.requested()` was true between two steps.
        """

    @abstractmethod
    def fail(self, name: str, error: str) -> None:
        """Records on disk that a unit has failed. It may be called twice.

        Called in the worker after a failed run, and in the launcher if the process died or took too long.
        """

    def begin(self, unit: Unit) -> int:
        """Counts an attempt of a unit. Returns the number of attempts so far that did not end, including this one.

        Override this and `end` to keep the count elsewhere than in the lock file.
        """
        unit.lock.attempts += 1
        return unit.lock.attempts

    def end(self, unit: Unit, stopped: bool) -> None:
        """Resets the count of `begin` after a unit has been run.

        Args:
            unit: The unit.
            stopped: Whether the unit is still to be run. Then only this attempt is removed from the count.
        """
        unit.lock.attempts = unit.lock.attempts - 1 if stopped else 0
