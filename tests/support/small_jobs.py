"""A job whose units act by their names, for the launcher: `kill-1`, `sleep:60-2`, `done-3`."""

import os
import signal
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from afclip_runtime.errors import UserError
from afclip_runtime.files import take_lock
from afclip_runtime.launch import Job, Unit, signals
from afclip_runtime.launch.signals import StoppedError


class SmallJob(Job):
    """Each unit that is run adds its name to the file `ran` of the folder; a finished unit has a file of its name."""

    def __init__(self, folder: Path, names: Sequence[str], start: str = "") -> None:
        self.folder, self.names, self.starts = folder, list(names), start

    def left(self) -> int:
        return sum(not self._finished(name) for name in self.names)

    def _finished(self, name: str) -> bool:
        return any((self.folder / kind / name).exists() for kind in ("done", "failed"))

    def start(self) -> None:
        if self.starts == "refuse":
            raise UserError("there is no model")
        if self.starts == "die":
            os.kill(os.getpid(), signal.SIGSEGV)

    def claim(self, skip: Collection[str]) -> Unit | None:
        for name in self.names:
            if name in skip or self._finished(name) or (lock := take_lock(self.folder / "locks" / name)) is None:
                continue
            if not self._finished(name):
                return Unit(name, lock, log=self.folder / f"{name}.txt")
            lock.release()
        return None

    def run(self, unit: Unit) -> None:
        with (self.folder / "ran").open("a") as file:
            file.write(f"{unit.name} {os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}\n")
        print(f"this is {unit.name}", file=sys.stderr)
        action, _, detail = unit.name.partition("-")[0].partition(":")
        if action == "kill" or (action == "once" and self.ran().count(unit.name) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "refuse":
            raise UserError("it cannot be read")
        if action == "raise":
            raise MemoryError("no memory left")
        deadline = time.monotonic() + float(detail or 0)
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if action == "stops" and signals.requested():
                raise StoppedError
            if action == "meets" and len(set(self.workers())) > 1:
                break
        self._record("done", unit.name, "")

    def fail(self, name: str, error: str) -> None:
        self._record("failed", name, error)

    def _record(self, kind: str, name: str, text: str) -> None:
        (self.folder / kind).mkdir(exist_ok=True)
        (self.folder / kind / name).write_text(text)

    def ran(self) -> list[str]:
        """Returns the names of the units in the order in which they were begun."""
        return [line.split()[0] for line in (self.folder / "ran").read_text().splitlines()]

    def workers(self) -> list[str]:
        """Returns the ids of the processes that began them."""
        return [line.split()[1] for line in (self.folder / "ran").read_text().splitlines()]


class LoadingJob(SmallJob):
    """A job whose workers load something for minutes, and look for no signal meanwhile."""

    def start(self) -> None:
        (self.folder / "loads").touch()
        time.sleep(100)


class HastyJob(SmallJob):
    """A job that gives its workers one second to stop, and a unit three."""

    grace = 1.0
    time_limit = 3.0
