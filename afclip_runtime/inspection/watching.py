"""The files of a folder as they come, each once it is complete: `inspect --watch DIR`.

The folder is polled. What a system tells of changes by itself (inotify and its like) says nothing of what other
machines write to a share, and drops events in a burst, so polling is needed anyway, and is enough.

A file is complete once its size and time have not changed for the quiet time, and, as far as the system tells, once no
process has it open for writing (see `open_files`). Nothing tells a file that was renamed into the folder, and is
complete at once, from one that is written slowly, so it waits for the quiet time too.
"""

import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from afclip_runtime.errors import UserError, shown
from afclip_runtime.inspection.open_files import LocalDisks

SHARE = 0.05  # of the time, at most, that goes into looking: a folder of very many files is looked at less often
ROUND = 60  # looks in which the sizes and times of all files that were handed on are looked at once


class _Seen(NamedTuple):
    """A file as it was seen last; a file that was renamed to its name has another inode."""

    inode: int
    size: int
    mtime_ns: int

    def equals(self, other: "_Seen") -> bool:
        """Returns whether it is the same file as far as tables tell: some shares give a file a new inode each time."""
        return self[1:] == other[1:]


class _Growing(NamedTuple):
    """A file that may not be complete yet: what it was when it changed last, and when that was seen."""

    seen: _Seen
    since: float


@dataclass
class _Folder:
    """What is known of the files directly in a folder, by name: those that were handed on, and those that wait."""

    done: dict[str, _Seen]
    growing: dict[str, _Growing]


class WatchedFolder:
    """A folder and all below it, whose files are handed on as they are complete, and again when they are replaced.

    Hidden files and folders are passed over. Waiting is measured on a clock that is never set. Times of files are only
    compared with earlier times of the same file, so clocks that differ or go backwards do no harm.

    Args:
        folder: Where to look.
        leave_out: Folders below it that are not looked into.
        quiet: Seconds that a file must be unchanged for.
        say: Is told when a folder cannot be read, and when it can be again.
        alive: Is called again and again while the folder is looked at.
        clock: Seconds, monotonic.

    Attributes:
        changed: When a file was last seen that is new or has changed, on that clock.

    Raises:
        UserError: There is no such folder.
    """

    def __init__(
        self,
        folder: Path,
        leave_out: Collection[Path],
        quiet: float,
        say: Callable[[str], None],
        alive: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_watched(folder)
        self.folder, self.quiet = folder, quiet
        self._leave_out = {os.path.abspath(path) for path in leave_out}
        self._say, self._alive, self._clock = say, alive, clock
        self._disks = LocalDisks()
        self._folders: dict[str, _Folder] = {}
        self._problems: set[str] = set()
        self._looks = 0
        self._new = 0.0  # seconds of the last look that went into files that were not handed on before
        self._next = self.changed = clock()

    def look(self) -> list[Path]:
        """Returns the files that are complete since the last look, those with the earliest time of change first.

        Of a folder that cannot be read, what is known is kept, so nothing is handed on twice when it is back.
        """
        begun = self._clock()
        self._looks, self._new = self._looks + 1, 0.0
        found: list[tuple[int, str]] = []
        kept: dict[str, _Folder] = {}
        top = str(self.folder)
        todo: list[tuple[str, tuple[tuple[int, int], ...]]] = [(top, ())]
        while todo:
            place, above = todo.pop()
            before = kept[place] = self._folders.get(place, _Folder({}, {}))
            try:
                facts = os.stat(place)
                real = facts.st_dev, facts.st_ino
                if real in above:  # a link leads back
                    continue
                kept[place], inner = self._look_into(place, before, found)
            except OSError as error:
                self._note(place, error.strerror or str(error))
                if place == top:
                    kept = self._folders
                continue
            self._note(place, "")
            todo += [(folder, (*above, real)) for folder in inner]
        self._folders = kept
        ended = self._clock()
        self._next = ended + (ended - begun - self._new) * (1 / SHARE - 1)
        return [Path(path) for _, path in sorted(found)]

    def pause(self, shortest: float) -> float:
        """Returns for how many seconds to wait before the next look.

        Args:
            shortest: Seconds that are waited at least. After a look that took long, it is more; see `SHARE`.
        """
        return max(shortest, self._next - self._clock())

    def _look_into(self, place: str, before: _Folder, found: list[tuple[int, str]]) -> tuple[_Folder, list[str]]:
        """Returns what is known of the files of a folder now, and its folders; adds complete files to `found`.

        Args:
            place: The folder.
            before: What was known of it.
            found: Time of change and path of complete files.
        """
        now, inner = _Folder({}, {}), []
        turn = self._looks % ROUND
        with os.scandir(place) as scan:
            for entry in scan:
                name = entry.name
                if name.startswith("."):
                    continue
                done = before.done.get(name)
                inode = entry.inode()
                if done is not None and done.inode == inode and inode % ROUND != turn:
                    now.done[name] = done  # most files, and no question to the disk about them
                    continue
                path = os.path.join(place, name)
                if entry.is_dir():
                    if os.path.abspath(path) not in self._leave_out:
                        inner.append(path)
                    continue
                asked = self._clock()
                self._alive()
                if (seen := _seen(entry)) is None:
                    continue
                if done is not None and done.equals(seen):
                    now.done[name] = seen
                    continue
                if (growing := self._growing(before.growing.get(name), seen, asked, path)) is not None:
                    now.growing[name] = growing
                else:
                    now.done[name] = seen
                    found.append((seen.mtime_ns, path))
                self._new += self._clock() - asked
        return now, inner

    def _growing(self, before: _Growing | None, seen: _Seen, asked: float, path: str) -> _Growing | None:
        """Returns a file as one that may not be complete; `None` if it is complete.

        Args:
            before: As it was at the look before.
            seen: As it is now.
            asked: When that was asked, on the clock.
            path: The file.
        """
        if before is None or not before.seen.equals(seen):
            self.changed = self._clock()
            before = _Growing(seen, self.changed)
        if asked - before.since < self.quiet > 0 or self._disks.is_open_for_writing(path):
            return before
        return None

    def _note(self, place: str, problem: str) -> None:
        """Says once that a folder cannot be read, and once that it can be read again."""
        if problem and place not in self._problems:
            self._problems.add(place)
            self._say(f"{shown(place)}: cannot be read ({problem}). It is looked for until it is back.")
        elif not problem and place in self._problems:
            self._problems.remove(place)
            self._say(f"{shown(place)}: can be read again.")


def check_watched(folder: Path) -> None:
    """Refuses what cannot be watched.

    Raises:
        UserError: There is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"--watch {shown(folder)}: there is no such folder. Make it, or name another one.")


def _seen(entry: "os.DirEntry[str]") -> _Seen | None:
    """Returns a file as it is now; `None` if it is gone again."""
    try:
        facts = os.stat(entry.path)
    except OSError:
        return _Seen(entry.inode(), -1, -1) if entry.is_symlink() else None  # a link that leads nowhere gets a line
    return _Seen(entry.inode(), facts.st_size, facts.st_mtime_ns)
