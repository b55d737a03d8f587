"""The shards of a job as the launcher's units of work: in this process, in local workers, on SLURM or on Ray."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from afclip_runtime import launch
from afclip_runtime.bulk.judging import Job, Judge, claim, write_failure
from afclip_runtime.bulk.parts import Facts, facts_of
from afclip_runtime.bulk.plan import Plan
from afclip_runtime.errors import UserError
from afclip_runtime.launch import Ended, Outcome, Unit, Where, signals

if TYPE_CHECKING:
    from afclip_runtime.inspection.inspector import Inspector

    OnShard = Callable[[Facts], None]


def judge_shards(
    job: Job,
    todo: Sequence[int],
    where: Where,
    models: "Mapping[str, Inspector]",
    on_shard: "OnShard",
    on_image: Callable[[], None] = lambda: None,
) -> Ended:
    """Judges shards where the user wants it. What was done lies on disk; see `Plan.todo`.

    Args:
        job: The job.
        todo: Numbers of the shards.
        where: Where it runs; one local worker is this process.
        models: They are loaded in this process already.
        on_shard: Called after each shard, but those that other machines have judged.
        on_image: Called after each image that this process has judged.

    Raises:
        UserError: A file cannot be written, or no worker can begin.
    """
    if where.launcher == "ray":
        from afclip_runtime.bulk.on_ray import judge_on_ray

        return judge_on_ray(job, todo, where.jobs, where.ray_address, on_shard)
    if where.launcher == "local" and where.jobs == 1:
        return _judge_here(Judge(job, models, on_image), todo, on_shard)

    def report(name: str, outcome: Outcome) -> None:
        if (facts := facts_of(job.out, int(name))) is not None:
            on_shard(facts)

    return launch.launch(Shards(job, todo), where, job.out, report)


def _judge_here(judge: Judge, todo: Sequence[int], on_shard: "OnShard") -> Ended:
    with signals.noting() as noted:
        with suppress(signals.StoppedError):
            for number in todo:
                if (facts := judge(number)) is not None:
                    on_shard(facts)
        return Ended(noted[0] if noted else None)


class Shards(launch.Job):
    """Shards for the launcher's workers.

    Args:
        job: The job.
        todo: Numbers of the shards.
    """

    def __init__(self, job: Job, todo: Sequence[int]) -> None:
        self.job = job
        self.rest = list(todo)  # in a worker: what this process has not seen done
        self.judge: Judge | None = None
        self.error = ""

    def left(self) -> int:
        """Returns how many shards are still to be judged."""
        return len(Plan.read(self.job.out).todo(self.job.out, self.rest))

    def start(self) -> None:
        """Loads the models."""
        self.judge = Judge(self.job)

    def claim(self, skip: Collection[str]) -> Unit | None:
        """Returns the next shard that nobody has.

        Raises:
            UserError: A file could not be written: the others would fail likewise.
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
        """Judges a shard."""
        assert self.judge is not None
        try:
            self.judge.judge(unit.content)
        except UserError as error:
            self.error = str(error)
            raise

    def fail(self, name: str, error: str) -> None:
        """Writes a part that says so of each image of the shard."""
        write_failure(self.job.out, int(name), error)
