"""Judging shards on Ray Data: one actor per device loads the models once, and judges shard after shard.

What travels are numbers of shards and what their parts say. An actor reads, decodes and judges the images itself and
writes the part. No image enters Ray's object store, and the memory of an actor is that of a local worker.
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
    """What an actor says of a shard.

    Attributes:
        facts: What its part says; `None` while another process judges it, or the part could not be written.
        refused: Why no shard can be judged: the models cannot be loaded, or the disk is full. Else empty.
    """

    facts: Facts | None = None
    refused: str = ""


class Actor:
    """Judges the shards that Ray Data hands to it. The models are loaded with the first one.

    Args:
        job: The job.
    """

    def __init__(self, job: Job) -> None:
        self.shards = Shards(job, [])

    def __call__(self, row: Mapping[str, Any]) -> dict[str, bytes]:
        """Judges the shard whose number is `item`, and returns an `Answer` as JSON."""
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
    """Judges shards in the actors of a Ray cluster, and returns how that ended.

    Ray starts an actor again that has died, on another node if its own is lost; its shard is judged anew. Actors die
    with this process.

    Args:
        job: The job. All nodes have its folder under the same path, and the same installation.
        todo: Numbers of the shards.
        jobs: Actors; at most one per GPU, where the job uses GPUs and the cluster has any.
        address: Of a running cluster; without one Ray is started on this machine.
        on_shard: Called after each shard.

    Raises:
        UserError: Ray is not installed, there is no such cluster, the models cannot be loaded, or a part cannot be
            written.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of actors whose arguments might be lost
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
    shards = data.from_items(list(todo), override_num_blocks=len(todo))  # a block is what an actor takes at once
    actor: Any = Actor  # Ray's types know functions only
    for row in shards.map(actor, fn_constructor_args=(job,), compute=pool, **resources).iter_rows():
        answer = msgspec.json.decode(row["answer"], type=Answer)
        if answer.refused:
            raise UserError(answer.refused)
        if answer.facts is not None:
            on_shard(answer.facts)


def share_of(nodes: Sequence[Mapping[str, float]], jobs: int, gpu: bool) -> tuple[int, dict[str, Any]]:
    """Returns the number of actors, and what each has: `num_cpus` and `num_gpus`.

    Processors are shared equally, so that all actors find room on the nodes.

    Args:
        nodes: `CPU` and `GPU` that each node has.
        jobs: Actors that are asked for.
        gpu: Whether each has a GPU, where there is any.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes) if gpu else 0
    actors = min(jobs, gpus) if gpus else jobs
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    share = max(1, sum(cpus) // actors)
    while share > 1 and sum(number // share for number in cpus) < actors:
        share -= 1
    return actors, {"num_cpus": share, "num_gpus": 1 if gpus else 0}
