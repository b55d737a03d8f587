"""The shards of a job as units of work of the launcher."""

from collections.abc import Collection, Sequence

from afclip_runtime import launch
from afclip_runtime.bulk.judging import Job, Judge, claim, write_failure
from afclip_runtime.bulk.plan import Plan
from afclip_runtime.errors import UserError
from afclip_runtime.launch import Unit


class Shards(launch.Job):
    """Shards for the launcher's workers.

    Args:
        job: The job.
        todo: Numbers of the shards.
    """

    def __init__(self, job: Job, todo: Sequence[int]) -> None:
        self.job = job
        self.rest = list(todo)  # in a worker: shards that this process does not know to be done
        self.judge: Judge | None = None
        self.error = ""

    def left(self) -> int:
        """Returns the number of shards still to be inspected."""
        return len(Plan.read(self.job.out).todo(self.job.out, self.rest))

    def start(self) -> None:
        """Loads the models."""
        self.judge = Judge(self.job)

    def claim(self, skip: Collection[str]) -> Unit | None:
        """Claims the next free shard.

        Raises:
            UserError: A file could not be written, so further files cannot be written either.
        """
        assert self.judge is not None
        if self.error:
            raise UserError(self.error)
        taken = []
        while self.rest:
            number = self.rest.pop(0)
            if str(number) in skip or self.judge.is_done(number):
                continue
            if (lock := claim(self.job.out, number)) is None:
                taken.append(number)
                continue
            self.rest = taken + self.rest
            return Unit(str(number), lock, number)
        self.rest = taken
        return None

    def run(self, unit: Unit) -> None:
        """Inspects a shard."""
        assert self.judge is not None
        try:
            self.judge.judge(unit.content)
        except UserError as error:
            self.error = str(error)
            raise

    def fail(self, name: str, error: str) -> None:
        """Writes a part with the error for each image of the shard."""
        write_failure(self.job.out, int(name), error)
