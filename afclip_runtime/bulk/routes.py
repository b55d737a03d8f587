"""Inspection of shards in this process, in local workers, on SLURM or on Ray."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from afclip_runtime.bulk.judging import Job, Judge
from afclip_runtime.bulk.parts import Facts, facts_of, part_path
from afclip_runtime.bulk.shards import Shards
from afclip_runtime.files import refresh
from afclip_runtime.launch import Ended, Outcome, Where, launch
from afclip_runtime.launch.here import run_here

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

    def report(name: str, outcome: Outcome) -> None:
        if outcome.status == "stopped":
            return
        refresh(part_path(job.out, int(name)).parent)  # another node may have written it a moment ago
        if (facts := facts_of(job.out, int(name))) is not None:
            on_shard(facts)

    if where.launcher == "local" and where.jobs == 1:
        return run_here(Shards(job, todo, Judge(job, models, on_image)), report)
    return launch(Shards(job, todo), where, job.out, report)
