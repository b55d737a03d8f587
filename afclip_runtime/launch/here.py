"""A worker that is this process, so that one worker needs no other process."""

from contextlib import suppress

from afclip_runtime.errors import UserError
from afclip_runtime.launch import signals
from afclip_runtime.launch.job import Job, Unit
from afclip_runtime.launch.where import Ended, Report
from afclip_runtime.launch.worker import run_claimed

FAULTS = 3  # number of units in a row after whose exceptions this process, whose GPU may be lost, runs no more


def run_here(job: Job, report: Report) -> Ended:
    """Runs the units of a job in this process, until none is left that it can claim.

    An attempt in which this process dies counts like one of any worker; see `Job.attempts`.

    Args:
        job: The job. Its `start` is not called.
        report: Function that is called after each unit.

    Raises:
        UserError: No further unit can be run.
    """
    skip: set[str] = set()
    faults = 0
    held: list[Unit] = []

    def let_go() -> None:
        for unit in held:
            with suppress(UserError, OSError):
                job.end(unit, stopped=True)  # a process that is stopped has not died of its unit

    with signals.noting(steps=job.steps, let_go=let_go) as noted:
        while not noted and (unit := job.claim(skip)) is not None:
            held[:] = [unit]
            outcome = run_claimed(job, unit)
            held.clear()
            report(unit.name, outcome)
            if outcome.status != "done":
                skip.add(unit.name)
            faults = faults + 1 if outcome.status == "failed" and not outcome.clean else 0
            if faults == FAULTS:
                raise UserError(
                    f"{job.title(unit.name)}: {outcome.error}. The {FAULTS - 1} before it failed likewise, so this "
                    "process ends. Start the same command again."
                )
        signals.requeue()
        return Ended(noted[0] if noted else None)
