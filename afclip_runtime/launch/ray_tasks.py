"""Workers as tasks of a Ray cluster. Each task runs the command on its node."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

from afclip_runtime.errors import UserError, shown
from afclip_runtime.launch import signals
from afclip_runtime.launch.elsewhere import progress_elsewhere
from afclip_runtime.launch.job import Job
from afclip_runtime.launch.output import last_error
from afclip_runtime.launch.ray_cluster import nodes_watched, open_ray, variables_for_workers
from afclip_runtime.launch.signals import STOPPED
from afclip_runtime.launch.where import Ended, Where

LOOK = 0.5  # seconds between two checks of the tasks
LAST = 10.0  # seconds in which a task must have ended once its command is killed
RETRIES = 3  # of a task whose node or process is lost; it continues with the remaining units


def run_ray(job: Job, where: Where, folder: Path) -> Ended:
    """Runs workers as tasks of a Ray cluster, and waits until they have ended.

    Each task has one CPU, and one GPU if the cluster has any. It runs the command with one local worker in a separate
    process, in the current folder of this process. A task whose node is lost starts again on another node.

    Args:
        job: The job: its progress is shown, and its workers have its `grace` to stop after a signal.
        where: Number of workers, address of the cluster, and the command.
        folder: Folder of the job. The tasks log to its subfolder `ray/`.

    Raises:
        UserError: Ray is not installed, there is no such cluster, or every task ended with a user error.
    """
    ray = open_ray(where.ray_address)
    try:
        logs = folder.absolute() / "ray"
        logs.mkdir(parents=True, exist_ok=True)
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        variables = variables_for_workers()
        task = ray.remote(run_command).options(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)
        files = [logs / f"{number}.log" for number in range(1, where.jobs + 1)]
        with signals.noting() as noted:
            print(f"{where.jobs} Ray tasks, logs in {shown(logs)}.", flush=True)
            tasks = [task.remote(list(where.command), os.getcwd(), variables, str(file), job.grace) for file in files]
            waiting = tasks
            with nodes_watched(ray, 1, gpus), progress_elsewhere(job) as count:
                while waiting and not noted:
                    waiting = ray.wait(waiting, num_returns=len(waiting), timeout=LOOK)[1]
                    count()
            if noted:
                _stop(ray, waiting, job.grace, noted)
                return Ended(noted[0])
        codes = [_code(ray, task) for task in tasks]
        if all(code not in (0, 1, STOPPED) for code in codes):
            raise UserError(f"{shown(files[0])}: {last_error(files[0]) or f'the task ended with {codes[0]}'}")
        return Ended()
    finally:
        ray.shutdown()


def _stop(ray: Any, tasks: list[Any], grace: float, noted: list[signal.Signals]) -> None:
    """Stops tasks between two steps, or at once after a second signal, and waits for them."""
    said = "Stopping the tasks" + f", at the latest in {grace:g} s" * bool(grace)
    print(f"{said}.{signals.again(noted[0])}", file=sys.stderr, flush=True)
    for seconds, force in ((grace + LAST, False), (LAST, True)):
        for task in tasks:
            ray.cancel(task, force=force)  # raises KeyboardInterrupt in it; with force it kills it and its command
        deadline = time.monotonic() + seconds
        while tasks and (force or len(noted) == 1) and time.monotonic() < deadline:
            tasks = ray.wait(tasks, num_returns=len(tasks), timeout=LOOK)[1]


def _code(ray: Any, task: Any) -> int | str:
    try:
        return int(ray.get(task))
    except ray.exceptions.RayError as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def run_command(command: Sequence[str], folder: str, variables: dict[str, str], log: str, grace: float) -> int:
    """Runs the command on the node of a task, and returns its exit code. A cancelled task ends the command.

    Args:
        command: The command.
        folder: Working directory.
        variables: Environment variables.
        log: File to which its output is appended.
        grace: Seconds for the command to stop.
    """
    with Path(log).open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, *command[1:]],
            cwd=folder,
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            _await(process)
            return process.returncode
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                _await(process, grace + 5)
                process.kill()
                process.wait()


def _await(process: subprocess.Popen[bytes], seconds: float = inf) -> None:
    """Waits for a process in short steps: Ray's interrupt reaches Python code only, not a call that waits."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(LOOK)
