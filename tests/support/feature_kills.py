"""A `features build` whose processes are killed, each in a known phase of its work, until it is complete."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image

from afclip_lightning.backbones import store_files
from afclip_lightning.backbones.store_layout import feature_files
from afclip_lightning.engine.feature_chunks import BUILDS
from tests.support.kills import file_of, text_of, workers_of
from tests.support.small_head import picture

PATIENCE = 600.0  # seconds until a process is in a phase, or has ended
FURTHER_BUILDS = 4  # most builds that are complete before a process is in the phase that is wanted
LAST_ATTEMPT = 3  # a chunk is not killed in it: it would have failed
PHASES = ("start", "reading", "writing", "between")
"""The phases of a worker: it imports and loads; reads or computes; has a file of features open; has no chunk."""


def write_slow_set(root: Path, count: int, seed: int, side: int = 900) -> None:
    """Writes images that take about 20 ms each to decode, and the table that lists them."""
    root.mkdir()
    path = root / "first.png"
    Image.fromarray(picture(side, side, seed)).save(path)
    content, lines = path.read_bytes(), ["image,label,mask,category"]
    path.unlink()
    for number in range(count):
        name = f"{number:02d}.png"
        (root / name).write_bytes(content + f"{seed} {number}".encode())  # the same picture, but another file
        lines.append(f"{name},{int(number == 0)},,b")
    (root / "images.csv").write_text("\n".join(lines))


class KilledBuild:
    """A build of which processes are killed.

    Args:
        start: Starts the command. Its environment must have a variable with the path of the store.
        store: The store.
        launcher: `local` or `ray`; see `workers_of`.
        seed: Seed of the moments.

    Attributes:
        killed: What was killed: the phases of workers, and `driver`.
    """

    def __init__(self, start: "Callable[[], subprocess.Popen[str]]", store: Path, launcher: str, seed: int) -> None:
        self.start, self.store, self.launcher = start, store, launcher
        self.rng = random.Random(seed)
        self.killed: list[str] = []
        self.files: dict[Path, tuple[int, int]] = {}  # files of features that were there at a kill
        self.notes: dict[Path, tuple[int, int]] = {}  # notes of finished chunks likewise
        self.complete = 0
        self.driver = start()

    def run(self, victims: Sequence[str]) -> str:
        """Kills the victims in turn, goes on with the same command, and returns what the last one said."""
        try:
            for victim in victims:
                if victim == "driver":
                    self._kill_driver()
                else:
                    self._kill_worker(victim)
                self.killed.append(victim)
            said = self.driver.communicate(timeout=PATIENCE)[0]
            assert self.driver.returncode == 0, said
            self._wait_for_the_end()
        finally:
            self.driver.kill()
        assert {path: file_of(path) for path in self.files} == self.files  # nothing was written twice
        return said

    def _kill_worker(self, phase: str) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            if self.driver.poll() is not None:
                self._begin_again()
            assert time.monotonic() < end, f"no worker in the phase {phase}"
            workers = workers_of(self.driver.pid, self.launcher)
            self.rng.shuffle(workers)
            for pid in workers:
                if phase == "start" and self._phase_of(pid) == "start":
                    time.sleep(self.rng.uniform(0, 2))
                if self._stopped_in(pid, phase):
                    self._note()
                    os.kill(pid, signal.SIGKILL)
                    return
            time.sleep(self.rng.uniform(0, 0.01))

    def _stopped_in(self, pid: int, phase: str) -> bool:
        """Stops a worker where it is; lets it continue if that is another phase."""
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return False
        while (state := state_of(pid)) not in ("T", "Z", ""):
            time.sleep(0.0005)
        if state == "T" and self._phase_of(pid) == phase:
            return True
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(pid, signal.SIGCONT)
        return False

    def _phase_of(self, pid: int) -> str:
        """Returns the phase of a worker; empty if it may not be killed now."""
        own = [path for path, holder, _ in lock_holders(self.store) if holder == pid]
        working = [path for path in own if not self._note_of(path).exists()]
        if not own:
            return "start"
        if not working:
            return "between"
        if any(attempts >= LAST_ATTEMPT for path, _, attempts in lock_holders(self.store) if path in working):
            return ""
        return "writing" if any(name.endswith(".tmp") for name in open_files(pid)) else "reading"

    def _note_of(self, lock: Path) -> Path:
        return lock.parents[2] / "done" / lock.parent.name / f"{lock.stem}.json"

    def _note(self) -> None:
        """Notes what is finished, and compares what was finished at the last kill."""
        notes = {path: file_of(path) for path in self.store.glob(f"{BUILDS}/*/done/*/*.json")}
        assert {path: notes.get(path) for path in self.notes} == self.notes  # no finished chunk was run again
        self.notes = notes
        self.files |= {path: file_of(path) for path in feature_files(self.store)}

    def _begin_again(self) -> None:
        """Begins another build, since this one was complete before a process was in the phase that is wanted."""
        said = self.driver.communicate()[0]
        assert self.driver.returncode == 0, said
        self._wait_for_the_end()
        assert {path: file_of(path) for path in self.files} == self.files
        assert store_files.verify(self.store) == []
        self.complete += 1
        assert self.complete <= FURTHER_BUILDS
        shutil.rmtree(self.store)
        self.files, self.notes = {}, {}
        self.driver = self.start()

    def _kill_driver(self) -> None:
        time.sleep(self.rng.uniform(0, 3))
        if self.driver.poll() is not None:
            self._begin_again()
        self._note()
        self.driver.kill()
        self.driver.communicate(timeout=PATIENCE)
        self._wait_for_the_end()
        assert store_files.verify(self.store) == []
        self.driver = self.start()

    def _wait_for_the_end(self) -> None:
        """Waits until no process of the build is left."""
        end, mark = time.monotonic() + PATIENCE, str(self.store).encode()
        while left := [pid for pid in os.listdir("/proc") if mark in text_of(f"/proc/{pid}/environ")]:
            assert time.monotonic() < end, [text_of(f"/proc/{pid}/cmdline") for pid in left]
            time.sleep(0.1)


def lock_holders(store: Path) -> Iterator[tuple[Path, int, int]]:
    """Yields the locks of chunks, the process that had each last, and its number of attempts."""
    for path in store.glob(f"{BUILDS}/*/locks/*/*.lock"):
        words = text_of(str(path)).split()
        if len(words) > 1:
            yield path, int(words[1]), int(words[0])


def state_of(pid: int) -> str:
    """Returns the state of a process: `T` for a stopped one, `Z` for one that has ended; empty if there is none."""
    return "".join(text_of(f"/proc/{pid}/stat").rpartition(b")")[2].decode().split()[:1])


def open_files(pid: int) -> list[str]:
    """Returns the names of the files that a process has open."""
    try:
        return [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
    except OSError:
        return []
