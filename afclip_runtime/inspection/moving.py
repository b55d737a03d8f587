"""`inspect --move_to good/,bad/`: destinations of inspected files, and moves that survive a crash."""

import errno
import filecmp
import glob
import os
import shutil
import stat
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from afclip_runtime.errors import UserError, WriteError, shown
from afclip_runtime.files import atomic_path
from afclip_runtime.inspection.table import Record, Table

State = tuple[int | None, int | None]
"""Size in bytes and time of the last change in nanoseconds, which show whether a file was replaced."""


class TakenError(Exception):
    """Another file has the destination's name."""


class ReplacedError(Exception):
    """The file is no longer the inspected one."""


@dataclass(frozen=True)
class Destinations:
    """The destination folders of inspected files.

    Attributes:
        normal: Folder of normal images.
        anomalous: Folder of anomalous images.
        unread: Folder of files that could not be inspected; `None` leaves them where they are.
    """

    normal: Path
    anomalous: Path
    unread: Path | None = None

    @classmethod
    def read(cls, text: str, watched: Path) -> "Destinations":
        """Parses folders from a text, as `good/,bad/` or `good/,bad/,unread/`.

        Args:
            text: Two or three folders, separated by commas.
            watched: The watched folder, from which files are moved.

        Raises:
            UserError: These are not two or three different folders, or one contains the watched folder.
        """
        parts = [part.strip() for part in text.split(",")]
        if len(parts) not in (2, 3) or not all(parts):
            raise UserError(
                "--move_to takes two folders with a comma between, of normal and of anomalous images, as good/,bad/; a "
                f"third one takes files that could not be judged. Got {text!r}."
            )
        folders = [Path(part) for part in parts]
        places = [os.path.realpath(folder) for folder in folders]
        if len(set(places)) < len(places):
            raise UserError(f"--move_to needs different folders, got {text!r}.")
        source = os.path.realpath(watched)
        for folder, place in zip(folders, places, strict=True):
            if os.path.commonpath([source, place]) == place:
                raise UserError(f"--move_to: {folder} is or holds the watched folder {watched}. Name another one.")
        return cls(*folders)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Returns all destination folders."""
        return tuple(folder for folder in (self.normal, self.anomalous, self.unread) if folder is not None)

    def of(self, verdict: str | None) -> Path | None:
        """Returns the folder of a verdict. `None` is a file that could not be inspected."""
        return {"normal": self.normal, "anomalous": self.anomalous}.get(verdict or "", self.unread)


def free_path(path: Path, attempt: int = 0) -> Path:
    """Returns a free path: the given one, or one with a number at the end, as `part_2.png`."""
    free = path
    while os.path.lexists(free):
        attempt += 1
        free = path.with_name(f"{path.stem[:200]}_{attempt + 1}{path.suffix}")
    return free


def move(source: Path, destination: Path, state: State) -> None:
    """Moves a file to a free path. To another file system, it is copied and then removed.

    An empty file first reserves the name, so no file is ever overwritten. A crash may leave this empty file, or the
    complete file in both places. `finish` handles both cases.

    Args:
        source: The file.
        destination: Its new path.
        state: State of the file at its inspection.

    Raises:
        ReplacedError: The file was replaced since. It stays, and the destination stays free.
        TakenError: A file has the destination's name.
        WriteError: The disk is full, or one of the folders is not available.
    """
    with _explained(destination):
        if _state(source) != state:
            raise ReplacedError
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(destination, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError as error:
            raise TakenError from error
        try:
            _take(source, destination, state)
        except BaseException:
            with suppress(OSError):
                if destination.stat().st_size == 0 and os.path.lexists(source):
                    destination.unlink()
            raise


def _take(source: Path, destination: Path, state: State) -> None:
    """Replaces the empty file that reserves a name by the file."""
    if not source.is_symlink():  # of a link, the content is copied, since the target may depend on the link's folder
        try:
            os.replace(source, destination)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        else:
            if _state(destination) != state:  # replaced since the check
                os.replace(destination, free_path(source))
                raise ReplacedError
            return
    with atomic_path(destination) as temporary:
        shutil.copyfile(source, temporary)
        facts = source.stat()
        if (facts.st_size, facts.st_mtime_ns) != state:
            raise ReplacedError
        with suppress(OSError):
            os.utime(temporary, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    sync_folder(destination.parent)  # before the only other copy is removed
    source.unlink()


def finish(source: Path, destination: Path, state: State) -> None:
    """Finishes a move that a crash or a full disk interrupted. Does nothing if it was complete.

    Args:
        source: The inspected file.
        destination: Its new path.
        state: See `move`.

    Raises:
        ReplacedError: The source was replaced since.
        TakenError: Another file has the destination's name.
        WriteError: The disk is full, or one of the folders is not available.
    """
    with _explained(destination):
        if not os.path.lexists(source):
            return
        if _state(source) != state:
            raise ReplacedError
        for torn in destination.parent.glob(f".{glob.escape(destination.name[:40])}.????????.tmp"):
            torn.unlink(missing_ok=True)
        if os.path.lexists(destination):
            facts = destination.lstat()
            if facts.st_size == 0 and state[0] and stat.S_ISREG(facts.st_mode):
                destination.unlink()  # it only reserved the name
            elif stat.S_ISREG(facts.st_mode) and filecmp.cmp(source, destination, shallow=False):
                sync_folder(destination.parent)
                source.unlink()
                return
    move(source, destination, state)


class Mover:
    """Moves files to the folders of their verdicts after their rows are flushed to disk.

    A row records the destination before the move, so the next start can finish a move that a crash interrupted.

    Args:
        destinations: The folders.
        watched: The watched folder. A file of a subfolder is moved to a subfolder of the same name.
        table: Table with the rows.
    """

    def __init__(self, destinations: Destinations, watched: Path, table: Table) -> None:
        self.destinations, self.watched, self.table = destinations, watched, table
        begun = (row for row in table.rows.values() if row.moved_to and os.path.lexists(row.path))
        self._open = deque((row, finish) for row in begun if _state(Path(row.path)) == (row.size, row.mtime_ns))

    def plan(self, row: Record) -> Record:
        """Returns the row of an inspected file with its destination. The row is unchanged if the file stays."""
        folder = self.destinations.of(row.verdict)
        if folder is None:
            return row
        destination = free_path(folder / Path(row.path).relative_to(self.watched))
        return msgspec.structs.replace(row, moved_to=str(destination))

    def add(self, row: Record) -> None:
        """Adds a written row from `plan` to those of the next `settle`."""
        if row.moved_to:
            self._open.append((row, move))

    def settle(self) -> None:
        """Moves all files whose rows were written.

        Raises:
            WriteError: A file cannot be moved, or a row cannot be written. The next call moves the remaining files.
        """
        if self._open:
            self.table.sync()
        while self._open:
            self._end(*self._open[0])
            self._open.popleft()

    def _end(self, row: Record, way: Callable[[Path, Path, State], None]) -> None:
        assert row.moved_to
        try:
            way(Path(row.path), Path(row.moved_to), (row.size, row.mtime_ns))
        except ReplacedError:
            self.table.add(msgspec.structs.replace(row, moved_to=""))
        except TakenError:
            row = msgspec.structs.replace(row, moved_to=str(free_path(Path(row.moved_to))))
            self.table.add(row)
            self.table.sync()
            self._open.insert(1, (row, move))
        except WriteError:
            self._open[0] = row, finish
            raise


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to disk. Does nothing where folders cannot be opened (Windows)."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _state(path: Path) -> State:
    try:
        facts = path.stat()
    except FileNotFoundError:
        return None, None
    return facts.st_size, facts.st_mtime_ns


@contextmanager
def _explained(destination: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{shown(destination)}: a file cannot be moved there ({error.strerror or error}). Free some space, allow "
            "both folders to be written, or restore them."
        ) from error
