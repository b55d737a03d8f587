"""Workers that are the tasks of a SLURM array."""

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from afclip_runtime.errors import UserError, shown
from afclip_runtime.launch import signals
from afclip_runtime.launch.job import GRACE
from afclip_runtime.launch.output import last_error
from afclip_runtime.launch.where import Ended, Where

LOOK = 5  # seconds between two looks at the queue


def run_slurm(where: Where, folder: Path) -> Ended:
    """Submits an array of workers and waits until its tasks have ended.

    Each task runs the command with one local worker, from the folder that this process runs in. One that is preempted,
    or signalled a minute before its time limit, is put into the queue again. A signal ends the waiting only.

    Args:
        where: Workers, options for sbatch, and the command.
        folder: Of the job; the tasks log to `slurm/` in it.

    Raises:
        UserError: SLURM refuses, or is not there, or every task ended with a mistake.
    """
    logs = folder / "slurm"
    logs.mkdir(parents=True, exist_ok=True)
    name = "-".join(word for word in where.command[2:4] if not word.startswith("-"))
    script = f"#!/bin/bash\nexec srun {shlex.join(where.command)}\n"
    flags = [f"--job-name={name}", f"--array=1-{where.jobs}", "--requeue", f"--signal=USR1@{GRACE:g}"]
    flags += [f"--output={logs}/%A_%a.log", "--open-mode=append", *where.sbatch]
    with signals.noting() as noted:
        job = _ask(["sbatch", "--parsable", *flags], script).split(";")[0].strip()
        print(f"SLURM array {job}, logs in {shown(logs)}. Ctrl-C ends the waiting only; scancel {job} ends the array.")
        sys.stdout.flush()
        while not noted and job in _ask(["squeue", "--noheader", "--me", "--format=%F"]).split():
            deadline = time.monotonic() + LOOK
            while not noted and time.monotonic() < deadline:
                time.sleep(0.2)
        if noted:
            return Ended(noted[0])
    files = sorted(logs.glob(f"{job}_*.log"))
    errors = [last_error(file) for file in files]
    if files and all(errors):  # a task that did its work says of none; those of units stand in their own logs
        raise UserError(f"{shown(files[0])}: {errors[0]}")
    return Ended()


def _ask(command: Sequence[str], script: str | None = None) -> str:
    try:
        return subprocess.run(command, input=script, text=True, capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} is not there: --launcher slurm needs a SLURM cluster.") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"{command[0]}: {error.stderr.strip()}") from error
