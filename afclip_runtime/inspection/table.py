"""The two tables of `inspect`: JSON lines, and the same as CSV."""

import json
import os
import unicodedata
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import msgspec

from afclip_runtime.errors import UserError
from afclip_runtime.files import csv_text, read_json_lines, write_text
from afclip_runtime.inspection.inputs import Input
from afclip_runtime.thresholds import ThresholdFrom

if TYPE_CHECKING:
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
    "error",
    "name",
)
OF_VOLUMES = ("volume", "slice")  # columns where volumes are among the inputs
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
        error: Why there is no score; else empty.
        name: Of the image's files.
        size: Of the file, in bytes; `None` in tables of earlier versions.
        mtime_ns: When the file was last changed, in nanoseconds; likewise.
        volume: Name of the volume that it is a slice of; `None` if it is none.
        slice: Its number among the slices; likewise.
    """

    path: str
    method: str | None = None
    score: float | None = None
    probability: float | None = None
    threshold: float | None = None
    threshold_from: ThresholdFrom | None = None
    verdict: Literal["anomalous", "normal"] | None = None
    area: float | None = None
    regions: list[RegionRecord] | None = None
    error: str
    name: str
    size: int | None = None
    mtime_ns: int | None = None
    volume: str | None = None
    slice: int | None = None

    @property
    def key(self) -> tuple[str | None, str]:
        """Returns what tells rows apart: method and absolute path."""
        return self.method, os.path.abspath(self.path)


class Table:
    """The two tables of a run: JSON lines, and the same as CSV. Every line is on disk before the next image.

    What an earlier run left is read from the JSON lines. These are dropped, and both files written anew: lines of
    images that failed, of files that were replaced since, and a last one that was cut off.

    Args:
        folder: Where they lie.
        several: Whether several methods share them.
        inputs: Files as they are now.

    Attributes:
        rows: What is in them, by method and key of the image.
        replaced: How many rows were of files that were replaced since.

    Raises:
        UserError: The folder cannot be written to, or the table cannot be read.
    """

    def __init__(self, folder: Path, several: bool, inputs: Sequence[Input] = ()) -> None:
        volumes = OF_VOLUMES if any(item.volume for item in inputs) else ()
        self.columns = [column for column in (*COLUMNS, *volumes) if several or column != "method"]
        self.json_path, self.csv_path = folder / "inspections.jsonl", folder / "inspections.csv"
        now = {item.key: item for item in inputs}
        before = {row.key: row for row in self._before() if not row.error}
        self.rows = {key: row for key, row in before.items() if not _was_replaced(row, now.get(key[1]))}
        self.replaced = len(before) - len(self.rows)
        self.names = {_same(row.name): key for (_, key), row in before.items()}  # a replaced file keeps its name
        kept = list(self.rows.values())
        write_text(self.json_path, "".join(map(_json_line, kept)))
        write_text(self.csv_path, csv_text(self.columns, map(self._cells, kept)))
        self.files: list[IO[str]] = []

    def _before(self) -> list[Record]:
        remedy = "Remove the line, or choose another --out."
        if not self.json_path.exists():
            return []
        return [row for _, row in read_json_lines(self.json_path, Record, cut_end=True, remedy=remedy)]

    def __enter__(self) -> "Table":
        self.files = [path.open("a", encoding="utf-8", newline="") for path in (self.json_path, self.csv_path)]
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files:
            file.close()

    def free_name(self, item: Input) -> str:
        """Returns the name of an image's files: its own unless another image has it; then its suffix tells them apart.

        Where that does not either, as it lies in other folders that an earlier run took for its root, its whole path,
        and where names differ only in case or in the form of their letters, a digest of it.
        """
        whole = Path(item.key).relative_to(Path(item.key).anchor).as_posix()
        for name in (item.name, item.name + item.path.suffix, whole, f"{item.name}~{_digest(item.key)}"):
            name = _fitting(name)
            if self.names.setdefault(_same(name), item.key) == item.key:
                break
        return name

    def add(self, row: Record) -> None:
        """Appends a row.

        Raises:
            UserError: The disk is full or not writable.
        """
        texts = (_json_line(row), csv_text(self.columns, [self._cells(row)]).partition("\n")[2])
        for path, file, text in zip((self.json_path, self.csv_path), self.files, texts, strict=True):
            try:
                file.write(text)
                file.flush()
            except OSError as error:
                raise UserError(f"{path}: cannot be written ({error.strerror or error}). Free some space.") from error
        self.rows[row.key] = row

    def _cells(self, row: Record) -> list[Any]:
        values = msgspec.to_builtins(row)
        cells = (values[column] for column in self.columns)
        return [json.dumps(cell) if isinstance(cell, list) else cell for cell in cells]


def record_of(item: Input, method: str | None, name: str, outcome: "Inspection | UserError") -> Record:
    """Returns the record of an image.

    Args:
        item: The image.
        method: Name of the method, where several share the table.
        name: Of its files.
        outcome: What the model says of it, or why it says nothing.
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
        error="",
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


def _json_line(row: Record) -> str:
    absent = {name for name in ("method", "size", "mtime_ns", *OF_VOLUMES) if getattr(row, name) is None}
    return json.dumps({name: value for name, value in msgspec.to_builtins(row).items() if name not in absent}) + "\n"
