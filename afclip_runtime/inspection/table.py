"""The two tables of `inspect`: JSON lines, and the same as CSV."""

import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from afclip_runtime.errors import UserError, WriteError, shown
from afclip_runtime.files import csv_text, read_json_lines, write_text
from afclip_runtime.inspection.drift import Side
from afclip_runtime.inspection.inputs import Input
from afclip_runtime.thresholds import ThresholdFrom, Verdict

if TYPE_CHECKING:
    from afclip_runtime.inspection.drift import Alarm
    from afclip_runtime.inspection.verdict import Inspection

COLUMNS = (
    "path",
    "method",
    "score",
    "probability",
    "threshold",
    "threshold_from",
    "verdict",
    "area",
    "regions",
    "drift",
    "error",
    "name",
)
OF_VOLUMES = ("volume", "slice")  # columns where volumes are among the inputs
OF_MOVES = ("moved_to",)  # likewise, where files are moved once they are judged
LONGEST = 240  # bytes of a file's name without suffix; file systems take 255
LONGEST_PATH = 1000  # bytes of a whole name with its folders; systems take 4096, of which the output's folder is a part


class RegionRecord(msgspec.Struct, frozen=True):
    """A region, as a table has it; see `Region`."""

    box: tuple[int, int, int, int]
    area: int
    score: float


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the tables say of an image.

    Attributes:
        path: As it was given.
        method: Name of the method, where several share the table.
        score: Of the image.
        probability: 0.5 is the threshold.
        threshold: Of the score.
        threshold_from: `calibration`, `hand`, or `default`: it comes with the head and is not of this product; `None`
            without a threshold, and in tables of earlier versions.
        verdict: `None` without a threshold.
        area: Share of the image above the pixel threshold, from 0 to 1.
        regions: Of the mask.
        drift: Whether the scores are `higher` or `lower` by now than those of the calibration's normal images, so that
            the verdict is of little worth; `None` while the calibration holds.
        error: Why there is no score; else empty.
        name: Of the image's files.
        size: Of the file, in bytes; `None` in tables of earlier versions.
        mtime_ns: When the file was last changed, in nanoseconds; likewise.
        volume: Name of the volume that it is a slice of; `None` if it is none.
        slice: Its number among the slices; likewise.
        moved_to: Where the file was moved; `None` if it stays, empty if another file took its place before it could be
            moved.
    """

    path: str
    method: str | None = None
    score: float | None = None
    probability: float | None = None
    threshold: float | None = None
    threshold_from: ThresholdFrom | None = None
    verdict: Verdict | None = None
    area: float | None = None
    regions: list[RegionRecord] | None = None
    drift: Side | None = None
    error: str
    name: str
    size: int | None = None
    mtime_ns: int | None = None
    volume: str | None = None
    slice: int | None = None
    moved_to: str | None = None

    @property
    def key(self) -> tuple[str | None, str]:
        """Returns what tells rows apart: method and absolute path.

        The path of a file that was moved may be that of another file later, so what tells files from those that
        replaced them is added, after a sign that no path has.
        """
        path = os.path.abspath(self.path)
        return self.method, path if self.moved_to is None else f"{path}\0{self.size},{self.mtime_ns}"


class Table:
    """The two tables of a run: JSON lines, and the same as CSV. Every line is written before the next image is judged.

    What an earlier run left is read from the JSON lines. These are dropped, and both files written anew: lines of
    images that failed, of files that were replaced since, and a last one that was cut off.

    Args:
        folder: Where they lie.
        several: Whether several methods share them.
        inputs: Files as they are now.
        moves: Whether files are moved once they are judged.

    Attributes:
        rows: What is in them, by method and key of the image.
        replaced: How many rows were of files that were replaced since.

    Raises:
        UserError: The folder cannot be written to, or the table cannot be read.
    """

    def __init__(self, folder: Path, several: bool, inputs: Sequence[Input] = (), moves: bool = False) -> None:
        self.json_path, self.csv_path = folder / "inspections.jsonl", folder / "inspections.csv"
        now = {item.key: item for item in inputs}
        before = {row.key: row for row in self._before()}
        before = {key: row for key, row in before.items() if not row.error or row.moved_to is not None}
        volumes = OF_VOLUMES if any(item.volume for item in inputs) else ()
        moved = OF_MOVES if moves or any(row.moved_to is not None for row in before.values()) else ()
        self.columns = [column for column in (*COLUMNS, *volumes, *moved) if several or column != "method"]
        self.rows = {key: row for key, row in before.items() if not _was_replaced(row, now.get(key[1]))}
        self.replaced = len(before) - len(self.rows)
        named = ((key, row.name) for (_, key), row in before.items() if not row.error)
        self.names = {_same(name): key for key, name in named}  # a replaced file keeps its name
        kept = list(self.rows.values())
        write_text(self.json_path, "".join(map(json_line, kept)))
        write_text(self.csv_path, csv_text(self.columns, map(self._cells, kept)))
        self.files: list[int] = []

    def _before(self) -> list[Record]:
        remedy = "Remove the line, or choose another --out."
        if not self.json_path.exists():
            return []
        return [row for _, row in read_json_lines(self.json_path, Record, cut_end=True, remedy=remedy)]

    def __enter__(self) -> "Table":
        flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        self.files = [os.open(path, flags) for path in (self.json_path, self.csv_path)]
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files:
            os.close(file)

    def todo(self, inputs: Iterable[Input], method: str | None) -> list[Input]:
        """Returns the inputs that have no row of a method, and those whose file was replaced since."""
        return [
            item for item in inputs if (row := self.rows.get((method, item.key))) is None or _was_replaced(row, item)
        ]

    def free_name(self, item: Input) -> str:
        """Returns the name of an image's files: its own unless another image has it; then its suffix tells them apart.

        Where that does not either, as it lies in other folders that an earlier run took for its root, its whole path,
        and where names differ only in case or in the form of their letters, a digest of it.
        """
        whole = Path(item.key).relative_to(Path(item.key).anchor).as_posix()
        for name in (item.name, item.name + item.path.suffix, whole, f"{item.name}~{_digest(item.key)}"):
            name = _fitting(name)
            if self.names.setdefault(_same(name), item.key) == item.key:
                return name
        name = _fitting(f"{item.name}~{_digest(f'{item.key} {item.size} {item.mtime_ns}')}")  # of moved ones
        self.names[_same(name)] = item.key
        return name

    def add(self, row: Record) -> None:
        """Appends a row to both files, or to none.

        Raises:
            WriteError: The disk is full or not writable, or the file was removed, moved or replaced.
        """
        texts = (json_line(row), csv_text(self.columns, [self._cells(row)]).partition("\n")[2])
        sizes: list[int] = []
        for path, file in zip((self.json_path, self.csv_path), self.files, strict=True):
            _require_there(path, file)
        for path, file, text in zip((self.json_path, self.csv_path), self.files, texts, strict=True):
            try:
                sizes.append(os.fstat(file).st_size)
                rest = text.encode("utf-8", "backslashreplace")
                while rest:
                    rest = rest[os.write(file, rest) :]
            except OSError as error:
                for begun, size in zip(self.files, sizes, strict=False):
                    os.ftruncate(begun, size)  # a row that is written in part would spoil the next one
                raise _cannot_write(path, error) from error
        self.rows[row.key] = row
        if row.moved_to is not None and not row.error:
            self.names[_same(row.name)] = row.key[1]  # the next file of this path gets another name

    def sync(self) -> None:
        """Waits until all rows are on the disk itself, which a loss of power does not undo.

        Raises:
            WriteError: They cannot be written.
        """
        try:
            for file in self.files:
                os.fsync(file)
        except OSError as error:
            raise _cannot_write(self.json_path, error) from error

    def _cells(self, row: Record) -> list[Any]:
        values = msgspec.to_builtins(row)
        cells = (values[column] for column in self.columns)
        return [json.dumps(cell) if isinstance(cell, list) else cell for cell in cells]


class Inspected(Protocol):
    """What a row says of a file itself; see `Input`."""

    @property
    def path(self) -> Path | str:
        """Path or URL."""

    @property
    def size(self) -> int | None:
        """In bytes."""

    @property
    def mtime_ns(self) -> int | None:
        """When it was last changed."""

    @property
    def volume(self) -> str:
        """Name of the volume that it is a slice of."""

    @property
    def slice(self) -> int | None:
        """Its number among the slices."""


def record_of(
    item: Inspected, method: str | None, name: str, outcome: "Inspection | UserError", drift: "Alarm | None" = None
) -> Record:
    """Returns the record of an image.

    Args:
        item: The image.
        method: Name of the method, where several share the table.
        name: Of its files.
        outcome: What the model says of it, or why it says nothing.
        drift: That which lasts in the stream, if any.
    """
    facts: dict[str, Any] = {
        "path": str(item.path),
        "method": method,
        "name": name,
        "size": item.size,
        "mtime_ns": item.mtime_ns,
        "volume": item.volume or None,
        "slice": item.slice,
    }
    if isinstance(outcome, UserError):
        return Record(**facts, error=str(outcome))
    regions = outcome.regions
    return Record(
        **facts,
        score=_short(outcome.score),
        probability=_short(outcome.probability),
        threshold=_short(outcome.threshold),
        threshold_from=outcome.threshold_from,
        verdict=None if outcome.anomalous is None else "anomalous" if outcome.anomalous else "normal",
        area=_short(outcome.area),
        regions=None
        if regions is None
        else [RegionRecord(r.box, r.area, float(_short(r.score) or 0)) for r in regions],
        drift=drift.side if drift else None,
        error="",
    )


def _require_there(path: Path, file: int) -> None:
    """Refuses an open file that is no longer at its path: the system would take lines that nobody ever finds.

    Some shares give a file a new inode each time, so that alone does not tell: what was removed also has no name left.

    Raises:
        WriteError: It was removed, moved or replaced, or its share is away.
    """
    try:
        here = os.fstat(file)
        gone = not os.path.samestat(os.stat(path), here) and here.st_nlink == 0
    except FileNotFoundError:
        gone = True
    except OSError as error:
        raise _cannot_write(path, error) from error
    if gone:
        raise WriteError(f"{shown(path)}: was removed or moved during the run. Put it back, or stop and start again.")


def _cannot_write(path: Path, error: OSError) -> WriteError:
    return WriteError(
        f"{shown(path)}: cannot be written ({error.strerror or error}). Free some space, or restore the folder."
    )


def _was_replaced(row: Record, item: Input | None) -> bool:
    return item is not None and row.size is not None and (row.size, row.mtime_ns) != (item.size, item.mtime_ns)


def _same(name: str) -> str:
    """Returns what names have in common that some file system takes for one."""
    return unicodedata.normalize("NFC", name).casefold()


def _fitting(name: str) -> str:
    """Returns a name whose parts, with the suffix of a map or picture, are not too long for a file system."""
    if len(os.fsencode(name)) > LONGEST_PATH:
        return f"{_cut(name.rpartition('/')[2])}~{_digest(name)}"
    return "/".join(
        part if len(os.fsencode(part)) <= LONGEST else f"{_cut(part)}~{_digest(part)}" for part in name.split("/")
    )


def _cut(part: str) -> str:
    while len(os.fsencode(part)) > LONGEST - 20:
        part = part[:-1]
    return part


def _digest(text: str) -> str:
    return sha256(os.fsencode(text)).hexdigest()[:10]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.9g}")  # what tells all float32 apart


def json_line(row: Record) -> str:
    """Returns a row as a line of JSON."""
    return json.dumps(plain(row)) + "\n"


def plain(row: Record) -> dict[str, Any]:
    """Returns a row as plain values by column; columns that are of no use here are left out."""
    absent = {
        name for name in ("method", "drift", "size", "mtime_ns", *OF_VOLUMES, *OF_MOVES) if getattr(row, name) is None
    }
    return {name: value for name, value in msgspec.to_builtins(row).items() if name not in absent}
