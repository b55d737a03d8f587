"""Start of a job with the chosen launcher."""

import os
from dataclasses import replace
from pathlib import Path

from afclip_runtime.errors import UserError
from afclip_runtime.launch.job import Job
from afclip_runtime.launch.numbered import NumberedJob
from afclip_runtime.launch.where import Ended, Report, Where


def require_launcher(where: Where) -> None:
    """Checks early, before models are loaded and files are written, that a launcher is installed on this machine.

    Args:
        where: Where the work shall run.

    Raises:
        UserError: It is not. The message says the remedy.
    """
    if where.launcher == "slurm":
        from afclip_runtime.launch.slurm import require_slurm

        require_slurm()
    if where.launcher == "ray":
        from afclip_runtime.launch.ray_cluster import require_ray

        require_ray()


def launch(job: Job, where: Where, folder: Path, report: Report = lambda name, outcome: None) -> Ended:
    """Runs the unfinished units of a job. Returns when no unit is left that a worker can claim.

    Args:
        job: The job.
        where: Where it runs.
        folder: Folder of the job. Tasks on other machines log to its subfolders `slurm/` and `ray/`.
        report: Function that is called after each unit run by a worker of this machine or an actor.

    Raises:
        UserError: No unit can be run: the job's `start` has failed, workers die before their first unit, or there is no
            such cluster.
    """
    if os.name != "posix":
        raise UserError("Work is launched on Linux and macOS only.")
    if (left := job.left()) <= 0:
        return Ended()
    where = replace(where, jobs=min(where.jobs, left))
    if where.launcher == "slurm":
        from afclip_runtime.launch.slurm import run_slurm

        return run_slurm(job, where, folder)
    if where.launcher == "ray" and isinstance(job, NumberedJob):
        from afclip_runtime.launch.ray_actors import run_actors

        return run_actors(job, where, report)
    if where.launcher == "ray":
        from afclip_runtime.launch.ray_tasks import run_ray

        return run_ray(job, where, folder)
    from afclip_runtime.launch.local import run_local

    return run_local(job, where.jobs, report)
