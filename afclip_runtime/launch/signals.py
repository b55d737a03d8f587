"""Signals that ask a process to make room, as a cluster sends them before it takes the machine away.

A handler only notes the signal; whoever works looks at the note between two steps. Lightning's own handler saves a
checkpoint where it stands, which may be the middle of a step, with half of the parameters updated.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = 75  # exit code of what can go on: sysexits.h calls it a temporary failure
SIGNALS = tuple(s for s in signal.Signals if s.name in ("SIGUSR1", "SIGTERM"))
STOPS = tuple(s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"))

_noted: list[signal.Signals] = []


class StoppedError(Exception):
    """The work has ended between two steps because a signal asked for it; the message says how it goes on."""


class Asked(KeyboardInterrupt):
    """A signal asks a command to end, as Ctrl-C does."""


def interruption(number: signal.Signals) -> KeyboardInterrupt:
    """Returns what is raised where a signal interrupts a command: `Asked`, unless it is Ctrl-C."""
    return KeyboardInterrupt() if number == signal.SIGINT else Asked()


def listen(*signals: signal.Signals) -> None:
    """Notes the signals from now on, `SIGNALS` unless others are given; a second one but SIGUSR1 ends the process."""
    for number in signals or SIGNALS:
        signal.signal(number, _note)


def _note(number: int, frame: FrameType | None) -> None:
    if _noted and number != signal.SIGUSR1:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    _noted.append(signal.Signals(number))


@contextmanager
def noting(raises: bool = False) -> Iterator[list[signal.Signals]]:
    """Yields the list that `STOPS` are noted in while the body runs; those that are ignored, as by nohup, stay so.

    Afterwards the handlers are what they were, and nothing is noted.

    Args:
        raises: Whether the first signal ends the body as well, with `StoppedError`: for one that waits in a library.
    """

    def note(number: int, frame: FrameType | None) -> None:
        _noted.append(signal.Signals(number))
        if raises and len(_noted) == 1:
            raise StoppedError("a signal asked for it")

    before = {number: signal.getsignal(number) for number in STOPS}
    heard = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in heard:
        signal.signal(number, note)
    try:
        yield _noted
    finally:
        for number in heard:
            signal.signal(number, before[number])
        _noted.clear()


def requested() -> bool:
    """Returns whether a signal has asked this process to stop."""
    return bool(_noted)


def restarted() -> bool:
    """Returns whether SLURM has put this job into the queue again after it had begun."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def requeue() -> None:
    """Puts the SLURM job that this process is the first task of into the queue again, if SIGUSR1 asked for it.

    After SIGTERM it is for SLURM, or for whoever sent it, to decide.
    """
    if signal.SIGUSR1 not in _noted or "SLURM_JOB_ID" not in os.environ or os.environ.get("SLURM_PROCID") != "0":
        return
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # its plain number may also be that of the whole array
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    print(f"SLURM job {job} goes into the queue again.", file=sys.stderr, flush=True)
    subprocess.run(["scontrol", "requeue", job], check=False)
