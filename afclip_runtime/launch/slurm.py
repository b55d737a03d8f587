"""Workers as tasks of a SLURM array."""

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from afclip_runtime.errors import UserError, shown
from afclip_runtime.launch import signals
from afclip_runtime.launch.elsewhere import progress_elsewhere
from afclip_runtime.launch.job import GRACE, Job
from afclip_runtime.launch.output import last_error
from afclip_runtime.launch.where import Ended, Where

LOOK = 5.0  # seconds between two checks of the queue
SILENCE = 900.0  # seconds; a busy controller may answer some checks with an error


def run_slurm(job: Job, where: Where, folder: Path) -> Ended:
    """Submits an array of workers, and waits until its tasks have ended.

    Each task runs the command with one local worker, in the current folder of this process. A task is requeued if it is
    preempted, or signalled one minute before its time limit. A signal to this process only ends the waiting.

    Args:
        job: The job, whose progress is shown.
        where: Number of workers, options for sbatch, and the command.
        folder: Folder of the job. The tasks log to its subfolder `slurm/`.

    Raises:
        UserError: SLURM rejects the job, is not installed or no longer answers, or every task ended with a user error.
    """
    logs = folder / "slurm"
    logs.mkdir(parents=True, exist_ok=True)
    name = "-".join(word for word in where.command[2:4] if not word.startswith("-"))
    script = f"#!/bin/bash\nexec srun {shlex.join(where.command)}\n"
    flags = [f"--job-name={name}", f"--array=1-{where.jobs}", "--requeue", f"--signal=USR1@{GRACE:g}"]
    output = str(logs).replace("%", "%%")  # sbatch would replace %u by the user
    flags += [f"--output={output}/%A_%a.log", "--open-mode=append", *where.sbatch]
    with signals.noting() as noted:
        array = _ask(["sbatch", "--parsable", *flags], script).split(";")[0].strip()
        cancel = f"scancel {array} ends the array."
        print(f"SLURM array {array}, logs in {shown(logs)}. Ctrl-C ends the waiting only; {cancel}", flush=True)
        with progress_elsewhere(job) as count:
            _wait(array, noted, count)
        if noted:
            print(f"SLURM array {array} goes on; {cancel}", file=sys.stderr, flush=True)
            return Ended(noted[0])
    files = sorted(logs.glob(f"{array}_*.log"))
    errors = [last_error(file) for file in files]
    if files and all(errors):  # a task that did its work reports no error; errors of units are in their own logs
        raise UserError(f"{shown(files[0])}: {errors[0]}")
    return Ended()


def _wait(array: str, noted: Sequence[signal.Signals], count: Callable[[], None]) -> None:
    """Waits until an array has left the queue, or a signal is noted, and calls `count` now and then."""
    answered = time.monotonic()
    while not noted:
        try:
            if array not in _ask(["squeue", "--noheader", "--me", "--format=%F"]).split():
                return
            answered = time.monotonic()
        except UserError as error:
            if time.monotonic() - answered > SILENCE:
                raise UserError(
                    f"SLURM has not answered for {SILENCE:g} s, and array {array} may still run. When it has ended, "
                    "start the same command again."
                ) from error
        deadline = time.monotonic() + LOOK
        while not noted and time.monotonic() < deadline:
            time.sleep(0.2)
        count()


def require_slurm() -> None:
    """Checks early that SLURM is installed on this machine.

    Raises:
        UserError: It is not. The message names the other launchers.
    """
    if shutil.which("sbatch") is None:
        raise _absent("sbatch")


def _absent(program: str) -> UserError:
    return UserError(f"{program} was not found: --launcher slurm needs a SLURM cluster. Use --launcher local or ray.")


def _ask(command: Sequence[str], script: str | None = None) -> str:
    try:  # in a session of its own, for Ctrl-C would end it too, and that would be taken for a fault of SLURM
        return subprocess.run(
            command, input=script, text=True, capture_output=True, check=True, start_new_session=True
        ).stdout
    except FileNotFoundError as error:
        raise _absent(command[0]) from error
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"SLURM cannot be used ({command[0]}: {_reason(error)}). Correct --sbatch or the cluster, or use "
            "--launcher local or ray."
        ) from error


def _reason(error: subprocess.CalledProcessError) -> str:
    """Returns the last line of a SLURM program, which has the reason, without the program's name."""
    lines = [line.strip() for line in error.stderr.splitlines() if line.strip()]
    if not lines:
        return f"exit code {error.returncode}"
    return shown(re.sub(r"^\w+: (error|fatal): ", "", lines[-1]).rstrip("."))
