"""Inspection of shards on Ray Data: one actor per device loads the models once, and inspects shards.

Only numbers of shards and facts of parts are sent. An actor reads, decodes and inspects the images itself, and writes
the part. No image enters Ray's object store, and an actor needs as much memory as a local worker.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from afclip_runtime.bulk.judging import Job, claim
from afclip_runtime.bulk.parts import Facts, facts_of
from afclip_runtime.bulk.shards import Shards
from afclip_runtime.errors import UserError, message_of
from afclip_runtime.launch import Ended, Unit, signals
from afclip_runtime.launch.output import output_to
from afclip_runtime.launch.ray_tasks import open_ray
from afclip_runtime.launch.worker import run_claimed


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer of an actor for a shard.

    Attributes:
        facts: Facts of its part; `None` while another process has the shard, or if the part could not be written.
        refused: Reason why no shard can be inspected: the models cannot be loaded, or the disk is full. Else empty.
    """

    facts: Facts | None = None
    refused: str = ""


class Actor:
    """Inspects shards for Ray Data. The models are loaded with the first shard.

    Args:
        job: The job.
    """

    def __init__(self, job: Job) -> None:
        self.shards = Shards(job, [])

    def __call__(self, row: Mapping[str, Any]) -> dict[str, bytes]:
        """Inspects the shard with the number `item`. Returns an `Answer` as JSON."""
        return {"answer": msgspec.json.encode(self._answer(int(row["item"])))}

    def _answer(self, number: int) -> Answer:
        shards, out = self.shards, self.shards.job.out
        try:
            if shards.judge is None:
                shards.start()
            if (lock := claim(out, number)) is None:
                return Answer()
            run_claimed(shards, Unit(str(number), lock, number))
        except (UserError, OSError) as error:
            return Answer(refused=message_of(error))
        return Answer(facts_of(out, number), shards.error)


def judge_on_ray(
    job: Job, todo: Sequence[int], jobs: int, address: str | None, on_shard: Callable[[Facts], None]
) -> Ended:
    """Inspects shards in the actors of a Ray cluster, and returns how this ended.

    Ray restarts a dead actor, on another node if its node is lost, and its shard is inspected again. Actors end with
    this process.

    Args:
        job: The job. All nodes must have its folder under the same path, and the same installation.
        todo: Numbers of the shards.
        jobs: Number of actors; at most one per GPU if the job uses GPUs and the cluster has any.
        address: Address of a running cluster; without one, Ray is started on this machine.
        on_shard: Function that is called after each shard.

    Raises:
        UserError: Ray is not installed, there is no such cluster, the models cannot be loaded, or a part cannot be
            written.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it warns about actors with large arguments
    with output_to(Path(os.devnull)):
        ray = open_ray(address)
    with signals.noting(raises=True) as noted:
        try:
            with suppress(signals.StoppedError):
                _judge(ray, job, todo, jobs, on_shard)
        finally:
            ray.shutdown()
        return Ended(noted[0] if noted else None)


def _judge(ray: Any, job: Job, todo: Sequence[int], jobs: int, on_shard: Callable[[Facts], None]) -> None:
    from ray import data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data.DataContext.get_current().enable_progress_bars = False
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    actors, resources = share_of(nodes, min(jobs, len(todo)), job.gpu)
    job = replace(job, threads=int(resources["num_cpus"]))
    pool = data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1)
    shards = data.from_items(list(todo), override_num_blocks=len(todo))  # an actor gets one block at a time
    actor: Any = Actor  # Ray's types know functions only
    for row in shards.map(actor, fn_constructor_args=(job,), compute=pool, **resources).iter_rows():
        answer = msgspec.json.decode(row["answer"], type=Answer)
        if answer.refused:
            raise UserError(answer.refused)
        if answer.facts is not None:
            on_shard(answer.facts)


def share_of(nodes: Sequence[Mapping[str, float]], jobs: int, gpu: bool) -> tuple[int, dict[str, Any]]:
    """Returns the number of actors, and the resources of each: `num_cpus` and `num_gpus`.

    Actors get equal numbers of processors, such that all actors fit on the nodes.

    Args:
        nodes: Numbers of `CPU` and `GPU` per node.
        jobs: Requested number of actors.
        gpu: Whether each actor has a GPU, if there are any.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes) if gpu else 0
    actors = min(jobs, gpus) if gpus else jobs
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    share = max(1, sum(cpus) // actors)
    while share > 1 and sum(number // share for number in cpus) < actors:
        share -= 1
    return actors, {"num_cpus": share, "num_gpus": 1 if gpus else 0}
