"""Inspection of shards in this process, in local workers, on SLURM or on Ray."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from afclip_runtime.bulk.judging import Job, Judge
from afclip_runtime.bulk.parts import Facts, facts_of, part_path
from afclip_runtime.bulk.shards import Shards
from afclip_runtime.files import refresh
from afclip_runtime.launch import Ended, Outcome, Where, launch, signals

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
    """Inspects shards with the chosen launcher. Results are on disk; see `Plan.todo`.

    Args:
        job: The job.
        todo: Numbers of the shards.
        where: Where it runs. One local worker is this process.
        models: Models loaded in this process.
        on_shard: Function that is called after each shard, except those of other machines.
        on_image: Function that is called after each image of this process.

    Raises:
        UserError: A file cannot be written, or no worker can begin.
    """
    if where.launcher == "local" and where.jobs == 1:
        return _judge_here(Judge(job, models, on_image), todo, on_shard)

    def report(name: str, outcome: Outcome) -> None:
        refresh(part_path(job.out, int(name)).parent)  # another node may have written it a moment ago
        if (facts := facts_of(job.out, int(name))) is not None:
            on_shard(facts)

    return launch(Shards(job, todo), where, job.out, report)


def _judge_here(judge: Judge, todo: Sequence[int], on_shard: "OnShard") -> Ended:
    with signals.noting() as noted:
        with suppress(signals.StoppedError):
            for number in todo:
                if (facts := judge(number)) is not None:
                    on_shard(facts)
        return Ended(noted[0] if noted else None)
