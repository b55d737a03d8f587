"""Jobs whose units are numbers, each with a lock file of its own: shards of images, chunks of features."""

from abc import abstractmethod
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path

from afclip_runtime.errors import UserError
from afclip_runtime.files import take_lock
from afclip_runtime.launch.job import Job, Unit


class NumberedJob(Job):
    """A job whose units are numbers. On Ray, actors run given units; other workers claim the next free unit.

    Args:
        numbers: Units of this launch.

    Attributes:
        gpu: Whether each actor has a GPU, if the cluster has any.
        threads: Number of threads of a worker, set on Ray, where actors share the processors; else `None`.
        error: Reason why no further unit can be run, for example a full disk. Else empty.
    """

    gpu: bool = False
    threads: int | None = None

    def __init__(self, numbers: Sequence[int]) -> None:
        self.rest = deque(numbers)  # in a worker: units that this process does not know to be finished
        self.error = ""

    def title(self, name: str) -> str:
        """Returns the name of a unit for messages: `shard 12`."""
        return f"{self.noun} {name}"

    @abstractmethod
    def todo(self) -> list[int]:
        """Returns the units that are still to be run. Called by the launcher."""

    @abstractmethod
    def is_finished(self, number: int) -> bool:
        """Returns whether a unit is done or has failed. Called in a worker."""

    @abstractmethod
    def lock_path(self, number: int) -> Path:
        """Returns the lock file of a unit."""

    def left(self) -> int:
        """Returns the number of units that are still to be run."""
        return len(self.todo())

    def claim(self, skip: Collection[str]) -> Unit | None:
        """Claims the next unit that is not finished and that no other process has, and returns it.

        Raises:
            UserError: No further unit can be run.
        """
        for _ in range(len(self.rest)):
            number = self.rest.popleft()
            if str(number) in skip or self.is_finished(number):
                continue
            if (unit := self.claim_number(number)) is not None:
                return unit
            self.rest.append(number)  # the process that has it may die
        self._require_no_error()
        return None

    def claim_number(self, number: int) -> Unit | None:
        """Claims a unit, and returns it; `None` if it is finished or another process has it.

        Raises:
            UserError: No further unit can be run, or the lock file cannot be made.
        """
        self._require_no_error()
        if (lock := take_lock(self.lock_path(number))) is None:
            return None
        if self.is_finished(number):  # by the process that had the lock
            lock.release()
            return None
        return Unit(str(number), lock, number)

    def _require_no_error(self) -> None:
        if self.error:
            raise UserError(self.error)
