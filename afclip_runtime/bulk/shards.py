"""The shards of a job as units of work of the launcher."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from afclip_runtime.bulk.judging import Job, Judge, lock_path, write_failure
from afclip_runtime.bulk.plan import Plan
from afclip_runtime.errors import UserError
from afclip_runtime.launch import NumberedJob, Unit


class Shards(NumberedJob):
    """Shards for the launcher's workers.

    Args:
        job: The job.
        todo: Numbers of the shards.
        judge: Inspects them in this process; a worker has its own.
    """

    noun = "shard"
    steps = "images"

    def __init__(self, job: Job, todo: Sequence[int], judge: Judge | None = None) -> None:
        super().__init__(todo)
        self.job = job
        self.gpu = job.gpu
        self.judge = judge

    def todo(self) -> list[int]:
        """Returns the shards that are still to be inspected."""
        return Plan.read(self.job.out).todo(self.job.out, self.rest)

    def start(self) -> None:
        """Loads the models."""
        self.judge = Judge(self.job if self.threads is None else replace(self.job, threads=self.threads))

    def is_finished(self, number: int) -> bool:
        """Returns whether a shard needs no inspection."""
        assert self.judge is not None
        return self.judge.is_done(number)

    def lock_path(self, number: int) -> Path:
        """Returns the lock file of a shard."""
        return lock_path(self.job.out, number)

    def run(self, unit: Unit) -> None:
        """Inspects a shard."""
        assert self.judge is not None
        try:
            self.judge(unit.content)
        except UserError as error:
            self.error = str(error)
            raise

    def fail(self, name: str, error: str) -> None:
        """Writes a part with the error for each image of the shard."""
        write_failure(self.job.out, int(name), error)
