"""The output of a sharded `inspect`: one self-describing Parquet file per shard."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from afclip_runtime.errors import UserError, install_extra, shown, without_secrets
from afclip_runtime.files import atomic_path, parse_json
from afclip_runtime.inspection.table import COLUMNS, Record

if TYPE_CHECKING:
    import pyarrow

FOLDER = "parts"
KEY = b"afclip"  # key of the facts in the metadata of a part
ROWS = 1000  # rows per row group, which are in memory until they are written
PER_FOLDER = 1000  # files
OF_FILES = ("size", "mtime_ns")  # columns of the parts in addition to those of inspections.csv
LIMIT = 2**63  # of their values; times in nanoseconds exceed it after the year 2262
REMEDY = "Remove the file and start again: its shard is then inspected again."


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that are stored in a part.

    Attributes:
        shard: Number of the shard.
        digest: Digest of the shard's images.
        settings: Digest of the job's settings.
        run: Run that wrote the part; see `Plan`.
        rows: Number of rows: one per image and method.
        failed: Number of rows with an error, without files that were left out.
        left_out: Number of rows of files of a kind that is not read.
        anomalous: Number of rows with this verdict; `None` in parts of earlier versions.
        normal: Number of rows with this verdict; `None` in parts of earlier versions.
        damaged: Problem of the shard's archive, or empty.
        seconds: Duration of the inspection in seconds.
    """

    shard: int
    digest: str
    settings: str
    run: str
    rows: int = 0
    failed: int = 0
    left_out: int = 0
    anomalous: int | None = None
    normal: int | None = None
    damaged: str = ""
    seconds: float = 0.0


def numbered(folder: Path, number: int, suffix: str) -> Path:
    """Returns the file of a shard in a folder with subfolders of `PER_FOLDER` files."""
    return folder / f"{number // PER_FOLDER:04d}" / f"{number:06d}{suffix}"


def part_path(out: Path, number: int) -> Path:
    """Returns the part of a shard in an output folder."""
    return numbered(out / FOLDER, number, ".parquet")


def require_pyarrow() -> None:
    """Checks early that parts can be written.

    Raises:
        UserError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(f"pyarrow writes the parts and is not installed: {install_extra('scale')}.") from error


def schema() -> "pyarrow.Schema":
    """Returns the schema of a part: the columns of `inspections.csv`, and size and time of the file."""
    import pyarrow as pa

    region = pa.struct([("box", pa.list_(pa.int32(), 4)), ("area", pa.int64()), ("score", pa.float64())])
    types = {
        **dict.fromkeys(("score", "probability", "threshold", "area"), pa.float64()),
        **dict.fromkeys(OF_FILES, pa.int64()),
        "regions": pa.list_(region),
    }
    return pa.schema([(name, types.get(name, pa.string())) for name in (*COLUMNS, *OF_FILES)])


class PartWriter:
    """Writes rows into a part. Memory holds at most `ROWS` rows.

    Args:
        path: File to write.
    """

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self.schema = schema()
        self.file = parquet.ParquetWriter(path, self.schema, compression="zstd")
        self.rows: list[dict[str, Any]] = []

    def add(self, row: Record) -> None:
        """Adds a row. In a part, no error is null, as all values that a row lacks or Parquet cannot hold."""
        values = msgspec.to_builtins(row) | {"path": without_secrets(row.path), "error": row.error or None}
        values |= {name: None for name in OF_FILES if not -LIMIT <= (values[name] or 0) < LIMIT}
        self.rows.append({name: _text(values[name]) for name in self.schema.names})
        if len(self.rows) == ROWS:
            self._flush()

    def close(self, facts: Facts) -> None:
        """Writes the remaining rows and the facts."""
        self._flush()
        self.file.add_key_value_metadata({KEY: json.dumps(msgspec.to_builtins(facts))})
        self.file.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self.rows:
            self.file.write_table(pa.Table.from_pylist(self.rows, self.schema))
            self.rows.clear()


@contextmanager
def new_part(out: Path, number: int) -> Iterator[PartWriter]:
    """Yields a writer of a shard's part. The body must close it. The part appears when the body has ended.

    Raises:
        WriteError: The disk is full or not writable. An earlier part is unchanged.
    """
    with atomic_path(part_path(out, number)) as temporary:
        writer = PartWriter(temporary)
        try:
            yield writer
        finally:
            if writer.file.is_open:
                writer.file.close()


def facts_of(out: Path, number: int) -> Facts | None:
    """Returns the facts of a part; `None` if it is missing or damaged, so that its shard is inspected again."""
    from pyarrow import ArrowException, parquet

    path = part_path(out, number)
    try:
        with parquet.ParquetFile(path) as file:
            return _facts(file, path)
    except (OSError, ArrowException, UserError):
        return None


def rows_of(path: Path, columns: Sequence[str]) -> "Iterator[pyarrow.RecordBatch]":
    """Yields the rows of a part in batches.

    Raises:
        UserError: The part is damaged.
    """
    with _opened(path) as file:
        yield from file.iter_batches(ROWS, columns=list(columns), use_threads=False)


def replace_column(path: Path, name: str, values: "Callable[[int], pyarrow.Array]") -> None:
    """Replaces the values of a column of a part, atomically.

    Args:
        path: The part.
        name: The column.
        values: Function that returns a given number of next values.

    Raises:
        UserError: The part is damaged, or the disk is full.
    """
    from pyarrow import Table, parquet

    with _opened(path) as file, atomic_path(path) as temporary:
        metadata = {KEY: file.metadata.metadata[KEY]}
        with parquet.ParquetWriter(temporary, schema(), compression="zstd") as writer:
            for batch in file.iter_batches(ROWS, use_threads=False):
                table = Table.from_batches([batch])
                place = table.schema.get_field_index(name)
                writer.write_table(table.set_column(place, name, values(len(batch))).cast(schema()))
            writer.add_key_value_metadata(metadata)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (ArrowException, FileNotFoundError) as error:
        reason = shown(" ".join(str(error).split())[:200])
        raise UserError(f"{shown(path)}: the part is damaged ({reason}). {REMEDY}") from error


def _facts(file: Any, path: Path) -> Facts:
    text = (file.metadata.metadata or {}).get(KEY, b"")
    return parse_json(text, Facts, shown(path), remedy=REMEDY)


def _text(value: Any) -> Any:
    """Returns a value for Parquet. Bytes of a text that are not UTF-8 are escaped."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
