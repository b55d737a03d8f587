"""The two tables of `inspect`: JSON lines and CSV, with the same rows."""

import json
import os
import unicodedata
from collections import Counter
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
OF_VOLUMES = ("volume", "slice")  # columns if there are volumes among the inputs
OF_MOVES = ("moved_to",)  # column if inspected files are moved
LONGEST = 240  # bytes of a file's name without suffix; the limit of file systems is 255
LONGEST_PATH = 1000  # bytes of a name with its folders; the limit of systems is 4096 with the output folder


class RegionRecord(msgspec.Struct, frozen=True):
    """A region in a table; see `Region`."""

    box: tuple[int, int, int, int]
    area: int
    score: float


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The row of an image in the tables.

    Attributes:
        path: Path, as given.
        method: Name of the method if several methods share the table.
        score: Score of the image.
        probability: Score on a scale from 0 to 1, where 0.5 is the threshold.
        threshold: Threshold of the score.
        threshold_from: `calibration`, `hand`, or `default` for the head's threshold, which is not specific to the
            product. `None` without a threshold, and in tables of earlier versions.
        verdict: Verdict; `None` without a threshold.
        area: Share of the image above the pixel threshold, from 0 to 1.
        regions: Regions of the mask.
        drift: Whether the scores have become `higher` or `lower` than those of the calibration's normal images, so that
            the verdict is unreliable. `None` while the calibration holds.
        error: Reason for a missing score, else empty.
        name: Name of the image's output files.
        size: Size of the file, in bytes; `None` in tables of earlier versions.
        mtime_ns: Time of the file's last change, in nanoseconds; `None` in tables of earlier versions.
        volume: Name of its volume if the image is a slice, else `None`.
        slice: Number of the slice, else `None`.
        moved_to: New path of a moved file. `None` if it stays, empty if it was replaced before it could be moved.
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
        """Returns the key of the row: method and absolute path.

        Another file may later get the path of a moved file. So size and time of a moved file are added, after a
        character that no path contains.
        """
        path = os.path.abspath(self.path)
        return self.method, path if self.moved_to is None else f"{path}\0{self.size},{self.mtime_ns}"


class Table:
    """The two tables of a run: JSON lines and CSV. Each row is written before the next image is inspected.

    Rows of an earlier run are read from the JSON lines, and both files are written again. Rows of images that failed,
    of files that were replaced since, and an incomplete last line are dropped.

    Args:
        folder: Folder of the tables.
        several: Whether several methods share them.
        inputs: The files in their current state.
        moves: Whether inspected files are moved.

    Attributes:
        rows: Rows by method and key of the image.
        replaced: Number of rows whose files were replaced since.

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
        """Returns the inputs without a row of a method, and those whose file was replaced since."""
        return [
            item for item in inputs if (row := self.rows.get((method, item.key))) is None or _was_replaced(row, item)
        ]

    def free_name(self, item: Input) -> str:
        """Returns a free name for the output files of an image.

        The candidates are its name, its name with suffix, its absolute path (an earlier run may have had another root),
        and its name with a digest, if names differ only in case or Unicode form.
        """
        whole = Path(item.key).relative_to(Path(item.key).anchor).as_posix()
        for name in (item.name, item.name + item.path.suffix, whole, f"{item.name}~{_digest(item.key)}"):
            name = _fitting(name)
            if self.names.setdefault(_same(name), item.key) == item.key:
                return name
        name = _fitting(f"{item.name}~{_digest(f'{item.key} {item.size} {item.mtime_ns}')}")  # for moved files
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
                    os.ftruncate(begun, size)  # an incomplete row would damage the next one
                raise _cannot_write(path, error) from error
        self.rows[row.key] = row
        if row.moved_to is not None and not row.error:
            self.names[_same(row.name)] = row.key[1]  # the next file of this path gets another name

    def sync(self) -> None:
        """Flushes all rows to disk, so that they survive a loss of power.

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
    """The facts of a file in a row; see `Input`."""

    @property
    def path(self) -> Path | str:
        """Path or URL."""

    @property
    def size(self) -> int | None:
        """Size in bytes."""

    @property
    def mtime_ns(self) -> int | None:
        """Time of the last change, in nanoseconds."""

    @property
    def volume(self) -> str:
        """Name of its volume if it is a slice, else empty."""

    @property
    def slice(self) -> int | None:
        """Number of the slice."""


def record_of(
    item: Inspected, method: str | None, name: str, outcome: "Inspection | UserError", drift: "Alarm | None" = None
) -> Record:
    """Returns the row of an image.

    Args:
        item: The image.
        method: Name of the method if several methods share the table.
        name: Name of its output files.
        outcome: Its inspection, or its error.
        drift: Current drift of the stream, if any.
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


def verdicts_in(rows: Iterable[Record]) -> dict[str | None, str]:
    """Returns the verdicts of a table in words, by method, as `2 anomalous, 8 normal (scores 1.8 to 9, threshold 6.7)`.

    A method without a score has no entry.

    Args:
        rows: The rows of the table.
    """
    by_method: dict[str | None, list[Record]] = {}
    for row in rows:
        if row.score is not None:
            by_method.setdefault(row.method, []).append(row)
    return {method: _verdicts(scored) for method, scored in by_method.items()}


def _verdicts(scored: Sequence[Record]) -> str:
    counts = Counter(row.verdict for row in scored)
    words = [f"{counts[kind]} {kind}" for kind in ("anomalous", "normal")] if counts.keys() != {None} else []
    words += [f"{counts[None]} without a verdict"] if counts[None] else []
    facts = [_range("score", [row.score for row in scored]), _range("threshold", [row.threshold for row in scored])]
    return f"{', '.join(words)} ({', '.join(facts)})"


def _range(name: str, values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return f"no {name}"
    low, high = f"{min(known):.4g}", f"{max(known):.4g}"
    return f"{name} {low}" if low == high else f"{name}s {low} to {high}"


def note_of_first(path: str, error: str, failed: int, place: object) -> str:
    """Returns one line on the first image that failed: its path and the reason, and where the others are.

    Args:
        path: Path of the image.
        error: Reason of its failure.
        failed: Number of images that failed.
        place: File or folder of the tables.
    """
    reason = shown(error if shown(path) in error else f"{path}: {error}")
    others = f" The others: column error of {shown(place)}." if failed > 1 else ""
    return f"{failed:,} failed{', the first' * (failed > 1)}: {reason}{others}"


def _require_there(path: Path, file: int) -> None:
    """Checks that an open file is still at its path, since rows would otherwise be lost.

    Some shares give a file a new inode at each access, so another inode alone proves nothing. A removed file also has
    no link left.

    Raises:
        WriteError: The file was removed, moved or replaced, or its share is not available.
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
    """Returns a common form of names that some file system treats as equal."""
    return unicodedata.normalize("NFC", name).casefold()


def _fitting(name: str) -> str:
    """Returns a name whose parts, with the suffix of a map or picture, fit the limits of file systems."""
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
    return None if value is None else float(f"{value:.9g}")  # 9 digits distinguish all float32 values


def json_line(row: Record) -> str:
    """Returns a row as a line of JSON."""
    return json.dumps(plain(row)) + "\n"


def plain(row: Record) -> dict[str, Any]:
    """Returns a row as plain values by column, without columns that are not used."""
    absent = {
        name for name in ("method", "drift", "size", "mtime_ns", *OF_VOLUMES, *OF_MOVES) if getattr(row, name) is None
    }
    return {name: value for name, value in msgspec.to_builtins(row).items() if name not in absent}
