"""Signals that ask a process to stop, as a cluster sends them before it reclaims the machine.

A handler only records the signal, and the work checks for it between two steps. Lightning's handler saves a checkpoint
at once, perhaps in the middle of a step with half of the parameters updated.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = 75  # exit code of work that can continue, a temporary failure in sysexits.h
SIGNALS = tuple(s for s in signal.Signals if s.name in ("SIGUSR1", "SIGTERM"))
STOPS = tuple(s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"))

_noted: list[signal.Signals] = []


class StoppedError(Exception):
    """A signal has stopped the work between two steps. The message says how to continue."""


class Asked(KeyboardInterrupt):
    """A signal that asks a command to end, like Ctrl-C."""


def interruption(number: signal.Signals) -> KeyboardInterrupt:
    """Returns the exception for a signal that interrupts a command: `KeyboardInterrupt` for Ctrl-C, else `Asked`."""
    return KeyboardInterrupt() if number == signal.SIGINT else Asked()


def listen(*signals: signal.Signals) -> None:
    """Records signals from now on, by default `SIGNALS`. A second signal other than SIGUSR1 ends the process."""
    for number in signals or SIGNALS:
        signal.signal(number, _note)


def _note(number: int, frame: FrameType | None) -> None:
    if _noted and number != signal.SIGUSR1:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    _noted.append(signal.Signals(number))


def again(number: signal.Signals) -> str:
    """Returns what a message about a signal says of a second one: a sentence after Ctrl-C, else nothing."""
    return " Ctrl-C again stops at once." if number == signal.SIGINT else ""


@contextmanager
def noting(
    raises: bool = False, steps: str = "", let_go: Callable[[], None] = lambda: None
) -> Iterator[list[signal.Signals]]:
    """Yields a list in which signals of `STOPS` are recorded while the body runs. Ignored signals stay ignored.

    Afterwards the earlier handlers are restored, and the list is empty.

    Args:
        raises: Whether the first signal also raises `StoppedError` in the body, for a body that waits in a library.
        steps: Plural noun of the steps between which the body looks for a signal, if this process does the work itself.
            The first signal then prints that, and a second Ctrl-C ends the process, whatever it is doing.
        let_go: Function that is called before that end.
    """

    def note(number: int, frame: FrameType | None) -> None:
        _noted.append(signal.Signals(number))
        if steps and len(_noted) == 1:  # no `print`, which may be what the signal has interrupted
            os.write(2, f"Stopping between two {steps}.{again(_noted[0])}\n".encode())
        if steps and len(_noted) > 1 and number == signal.SIGINT:
            let_go()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
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
    """Returns whether SLURM has requeued this job after its start."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def requeue() -> None:
    """Requeues the SLURM job after SIGUSR1, if this process is the first task of the job.

    After SIGTERM, SLURM or the sender of the signal decides about this.
    """
    if signal.SIGUSR1 not in _noted or "SLURM_JOB_ID" not in os.environ or os.environ.get("SLURM_PROCID") != "0":
        return
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # the job id may also be that of the whole array
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    print(f"SLURM job {job} goes into the queue again.", file=sys.stderr, flush=True)
    subprocess.run(["scontrol", "requeue", job], check=False)
