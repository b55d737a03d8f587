"""`inspect --move_to good/,bad/`: where a judged file goes, and the move, which no crash leaves half done."""

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
"""Size in bytes and time of the last change in nanoseconds, which tell a file from one that replaced it."""


class TakenError(Exception):
    """Another file has the name that a file was to get."""


class ReplacedError(Exception):
    """The file is no longer the one that was judged."""


@dataclass(frozen=True)
class Destinations:
    """The folders that judged files go to.

    Attributes:
        normal: Of normal images.
        anomalous: Of anomalous images.
        unread: Of files that could not be judged; `None` leaves these where they are.
    """

    normal: Path
    anomalous: Path
    unread: Path | None = None

    @classmethod
    def read(cls, text: str, watched: Path) -> "Destinations":
        """Returns the folders that a text names, as `good/,bad/` or `good/,bad/,unread/`.

        Args:
            text: Two or three folders with commas between.
            watched: The folder that files come from.

        Raises:
            UserError: They are not two or three different folders, or one holds the watched folder.
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
        """Returns all of them."""
        return tuple(folder for folder in (self.normal, self.anomalous, self.unread) if folder is not None)

    def of(self, verdict: str | None) -> Path | None:
        """Returns the folder of a verdict, of `None` that of files that could not be judged."""
        return {"normal": self.normal, "anomalous": self.anomalous}.get(verdict or "", self.unread)


def free_path(path: Path, attempt: int = 0) -> Path:
    """Returns a path that no file has: the given one, or else with a number at its end, as `part_2.png`."""
    free = path
    while os.path.lexists(free):
        attempt += 1
        free = path.with_name(f"{path.stem[:200]}_{attempt + 1}{path.suffix}")
    return free


def move(source: Path, destination: Path, state: State) -> None:
    """Moves a file to a name that no file has, to another file system too, where it is copied and then removed.

    A name is reserved by an empty file before it is used, so no file is ever overwritten. A crash may leave that empty
    file, or the whole file in both places; `finish` tells these.

    Args:
        source: The file.
        destination: Its new name.
        state: What the file was when it was judged.

    Raises:
        ReplacedError: The file is another by now; it stays, and the name stays free.
        TakenError: A file has the name.
        WriteError: The disk is full, or one of the folders is away.
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
    """Puts a file in the place of the empty file that reserves its name."""
    if not source.is_symlink():  # of a link, the content is copied: where a link leads may depend on where it lies
        try:
            os.replace(source, destination)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        else:
            if _state(destination) != state:  # it was replaced since the look at it
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
    sync_folder(destination.parent)  # before the only other copy goes
    source.unlink()


def finish(source: Path, destination: Path, state: State) -> None:
    """Ends a move that a crash or a full disk kept from its end; does nothing if it had ended.

    Args:
        source: The file as it was judged.
        destination: Where it was to go.
        state: See `move`.

    Raises:
        ReplacedError: The source is another file by now.
        TakenError: Another file has the name.
        WriteError: The disk is full, or one of the folders is away.
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
    """Moves files to the folders of their verdicts, once their rows are on the disk itself.

    The rows say where files go before they go, so what a crash kept from its end is ended at the next start.

    Args:
        destinations: The folders.
        watched: The folder that files come from. What lies in a folder below it gets to a folder of the same name.
        table: Where the rows are.
    """

    def __init__(self, destinations: Destinations, watched: Path, table: Table) -> None:
        self.destinations, self.watched, self.table = destinations, watched, table
        begun = (row for row in table.rows.values() if row.moved_to and os.path.lexists(row.path))
        self._open = deque((row, finish) for row in begun if _state(Path(row.path)) == (row.size, row.mtime_ns))

    def plan(self, row: Record) -> Record:
        """Returns the row of a judged file that says where the file goes; the row as it is, if the file stays."""
        folder = self.destinations.of(row.verdict)
        if folder is None:
            return row
        destination = free_path(folder / Path(row.path).relative_to(self.watched))
        return msgspec.structs.replace(row, moved_to=str(destination))

    def add(self, row: Record) -> None:
        """Notes a row from `plan` that was written, for the next `settle`."""
        if row.moved_to:
            self._open.append((row, move))

    def settle(self) -> None:
        """Moves all files whose rows were written.

        Raises:
            WriteError: A file cannot be moved, or a row not be written. What is left is moved by the next call.
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
    """Waits until the names in a folder are on the disk; does nothing where folders cannot be opened (Windows)."""
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
