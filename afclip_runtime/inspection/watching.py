"""New files of a folder, each reported when it is complete: `inspect --watch DIR`.

The folder is polled. Notifications of the system (such as inotify) do not report files that other machines write to a
share, and drop events in a burst. So polling is needed anyway, and is enough.

A file is complete when its size and time have not changed for the quiet time and, as far as the system can tell, no
process has it open for writing (see `open_files`). A file that was renamed into the folder is complete at once. But it
looks like a file that is written slowly, so it also waits for the quiet time.
"""

import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from afclip_runtime.errors import UserError, shown
from afclip_runtime.inspection.open_files import LocalDisks

SHARE = 0.05  # maximum share of the time for scans: a folder with very many files is scanned less often
ROUND = 60  # number of scans in which size and time of each reported file are checked once


class _Seen(NamedTuple):
    """Last known state of a file. A file that was renamed to its name has another inode."""

    inode: int
    size: int
    mtime_ns: int

    def equals(self, other: "_Seen") -> bool:
        """Returns whether size and time are equal.

        The inode does not count, since some shares change it at each access.
        """
        return self[1:] == other[1:]


class _Growing(NamedTuple):
    """A file that may be incomplete: its state after the last change, and when this was seen."""

    seen: _Seen
    since: float


@dataclass
class _Folder:
    """State of the files directly in a folder, by name: files that were reported, and files that wait."""

    done: dict[str, _Seen]
    growing: dict[str, _Growing]


class WatchedFolder:
    """A folder with its subfolders, whose files are reported when they are complete, and again when they are replaced.

    Hidden files and folders are skipped. Waiting times use the monotonic clock. Times of files are only compared with
    earlier times of the same file, so clocks that differ or run backwards do no harm.

    Args:
        folder: The folder.
        leave_out: Folders below it that are not entered.
        quiet: Seconds for which a file must be unchanged.
        say: Function that receives a message when a folder cannot be read, and when it can be read again.
        alive: Function that is called regularly during a scan, as a sign of life.
        clock: Monotonic clock, in seconds.

    Attributes:
        changed: Time on this clock at which a new or changed file was last seen.

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
        self._new = 0.0  # seconds of the last scan spent on files that were not reported before
        self._next = self.changed = clock()

    def look(self) -> list[Path]:
        """Returns the files that have become complete since the last scan, by increasing time of change.

        The state of a folder that cannot be read is kept, so that no file is reported twice when it is back.
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
        """Returns the pause before the next scan, in seconds.

        Args:
            shortest: Minimum pause in seconds. After a long scan the pause is longer; see `SHARE`.
        """
        return max(shortest, self._next - self._clock())

    def _look_into(self, place: str, before: _Folder, found: list[tuple[int, str]]) -> tuple[_Folder, list[str]]:
        """Returns the new state of a folder, and its subfolders. Adds complete files to `found`.

        Args:
            place: The folder.
            before: State of the folder at the last scan.
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
                    now.done[name] = done  # most files, without disk access
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
        """Returns the state of a file that may be incomplete; `None` if it is complete.

        Args:
            before: State at the last scan.
            seen: State now.
            asked: Time of the query, on the clock.
            path: The file.
        """
        if before is None or not before.seen.equals(seen):
            self.changed = self._clock()
            before = _Growing(seen, self.changed)
        if asked - before.since < self.quiet > 0 or self._disks.is_open_for_writing(path):
            return before
        return None

    def _note(self, place: str, problem: str) -> None:
        """Reports once that a folder cannot be read, and once that it can be read again."""
        if problem and place not in self._problems:
            self._problems.add(place)
            self._say(f"{shown(place)}: cannot be read ({problem}). The watch continues, and reads it when it is back.")
        elif not problem and place in self._problems:
            self._problems.remove(place)
            self._say(f"{shown(place)}: can be read again.")


def check_watched(folder: Path) -> None:
    """Checks that a folder can be watched.

    Raises:
        UserError: There is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"--watch {shown(folder)}: there is no such folder. Make it, or name another one.")


def _seen(entry: "os.DirEntry[str]") -> _Seen | None:
    """Returns the state of a file now; `None` if it no longer exists."""
    try:
        facts = os.stat(entry.path)
    except OSError:
        return _Seen(entry.inode(), -1, -1) if entry.is_symlink() else None  # a broken link gets a row
    return _Seen(entry.inode(), facts.st_size, facts.st_mtime_ns)
