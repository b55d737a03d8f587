"""Numbered jobs on Ray Data: one actor per device loads the model once, and runs units.

Only numbers of units and their outcomes are sent. An actor reads its images and writes its results itself. No image
enters Ray's object store, and an actor needs as much memory as a local worker.
"""

import logging
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from afclip_runtime.errors import UserError, message_of
from afclip_runtime.launch import signals
from afclip_runtime.launch.job import Outcome
from afclip_runtime.launch.numbered import NumberedJob
from afclip_runtime.launch.output import output_to
from afclip_runtime.launch.ray_cluster import nodes_watched, open_ray, variables_for_workers
from afclip_runtime.launch.where import Ended, Report, Where
from afclip_runtime.launch.worker import run_claimed


class Answer(msgspec.Struct, frozen=True):
    """The answer of an actor for a unit.

    Attributes:
        number: The unit.
        outcome: Its outcome; `None` while another process has it.
        refused: Reason why no unit can be run: the model cannot be loaded, or the disk is full. Else empty.
    """

    number: int
    outcome: Outcome | None = None
    refused: str = ""


class Actor:
    """Runs units for Ray Data. The model is loaded with the first unit.

    Args:
        job: The job.
        folder: Working folder.
    """

    def __init__(self, job: NumberedJob, folder: str) -> None:
        os.chdir(folder)
        self.job = job
        self.started, self.clean = False, True

    def __call__(self, row: Mapping[str, Any]) -> dict[str, bytes]:
        """Runs the unit with the number `item`. Returns an `Answer` as JSON."""
        if not self.clean:
            os.kill(os.getpid(), signal.SIGKILL)  # Ray starts another actor, which gets this unit
        return {"answer": msgspec.json.encode(self._answer(int(row["item"])))}

    def _answer(self, number: int) -> Answer:
        try:
            if not self.started:
                self.job.start()
                self.started = True
            if (unit := self.job.claim_number(number)) is None:
                return Answer(number, Outcome() if self.job.is_finished(number) else None)
            outcome = run_claimed(self.job, unit)
        except (UserError, OSError) as error:
            return Answer(number, refused=message_of(error))
        self.clean = outcome.clean
        return Answer(number, outcome, self.job.error)


def run_actors(job: NumberedJob, where: Where, report: Report) -> Ended:
    """Runs the units of a job in the actors of a Ray cluster, and returns how this ended.

    Ray restarts a dead actor, on another node if its node is lost, and its unit is run again. Actors end with this
    process.

    Args:
        job: The job. All nodes must have its folder under the same path, and the same installation.
        where: Number of actors, at most one per GPU if the job uses GPUs and the cluster has any; address.
        report: Function that is called after each unit.

    Raises:
        UserError: Ray is not installed, there is no such cluster, or no unit can be run.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it warns about actors with large arguments
    with output_to(Path(os.devnull)):
        ray = open_ray(where.ray_address)
    with signals.noting(raises=True) as noted:
        try:
            with suppress(signals.StoppedError):
                _run(ray, job, where, report)
        finally:
            ray.shutdown()
        return Ended(noted[0] if noted else None)


def _run(ray: Any, job: NumberedJob, where: Where, report: Report) -> None:
    from ray import data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data.DataContext.get_current().enable_progress_bars = False
    todo = job.todo()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    actors, resources = share_of(nodes, min(where.jobs, len(todo)), job.gpu)
    job.threads = int(resources["num_cpus"])
    if where.ray_address:  # one that is started here has the environment of this process
        resources["runtime_env"] = {"env_vars": variables_for_workers()}
    pool = data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1)
    units = data.from_items(todo, override_num_blocks=len(todo))  # an actor gets one block at a time
    actor: Any = Actor  # Ray's types know functions only
    arguments = (job, os.getcwd())
    answers = units.map(actor, fn_constructor_args=arguments, compute=pool, **resources)
    with nodes_watched(ray, resources["num_cpus"], resources["num_gpus"]):
        for row in answers.iter_rows():
            answer = msgspec.json.decode(row["answer"], type=Answer)
            if answer.refused:
                raise UserError(answer.refused)
            if answer.outcome is not None:
                report(str(answer.number), answer.outcome)


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
