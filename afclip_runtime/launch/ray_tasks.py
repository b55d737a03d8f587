"""Workers as tasks of a Ray cluster. Each task runs the command on its node."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from afclip_runtime.errors import UserError, shown
from afclip_runtime.launch import signals
from afclip_runtime.launch.output import last_error
from afclip_runtime.launch.ray_cluster import nodes_watched, open_ray, variables_for_workers
from afclip_runtime.launch.signals import STOPPED
from afclip_runtime.launch.where import Ended, Where

LOOK = 0.5  # seconds between two checks of the tasks
RETRIES = 3  # of a task whose node or process is lost; it continues with the remaining units


def run_ray(where: Where, folder: Path, grace: float) -> Ended:
    """Runs workers as tasks of a Ray cluster, and waits until they have ended.

    Each task has one CPU, and one GPU if the cluster has any. It runs the command with one local worker in a separate
    process, in the current folder of this process. A task whose node is lost starts again on another node.

    Args:
        where: Number of workers, address of the cluster, and the command.
        folder: Folder of the job. The tasks log to its subfolder `ray/`.
        grace: Seconds for workers to stop after a signal.

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
        with signals.noting() as noted, nodes_watched(ray, 1, gpus):
            print(f"{where.jobs} Ray tasks, logs in {shown(logs)}.", flush=True)
            tasks = [task.remote(list(where.command), os.getcwd(), variables, str(file), grace) for file in files]
            waiting = tasks
            while waiting and not noted:
                waiting = ray.wait(waiting, num_returns=len(waiting), timeout=LOOK)[1]
            if noted:
                print(f"Stopping the tasks, at the latest in {grace:g} s.", file=sys.stderr, flush=True)
                for running in waiting:
                    ray.cancel(running)  # raises KeyboardInterrupt in it
                ray.wait(tasks, num_returns=len(tasks), timeout=grace + 10)
                return Ended(noted[0])
        codes = [_code(ray, task) for task in tasks]
        if all(code not in (0, 1, STOPPED) for code in codes):
            raise UserError(f"{shown(files[0])}: {last_error(files[0]) or f'the task ended with {codes[0]}'}")
        return Ended()
    finally:
        ray.shutdown()


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
            while process.poll() is None:  # Ray's interrupt reaches Python code only, not a call that waits
                time.sleep(LOOK)
            return process.returncode
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(grace + 5)
                process.kill()
                process.wait()
