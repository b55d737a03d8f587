"""Parquet files: tables of typed columns, read by pyarrow, an optional dependency."""

from pathlib import Path
from typing import TypeVar

import msgspec

from afclip_runtime.errors import UserError, shown
from afclip_runtime.files.reading import TABLE_LIMIT, read_bytes
from afclip_runtime.files.typed import REMEDY, Source, check_values, typed

T = TypeVar("T")

INSTALL = "pip install 'afclip_lightning[parquet]'"
ROW_LIMIT = 10_000_000  # rows of equal values are compressed to almost nothing


def read_parquet(
    path: str | Path,
    kind: type[T],
    *,
    remedy: str = REMEDY,
    limit: int = TABLE_LIMIT,
    error: type[UserError] = UserError,
) -> list[T]:
    """Returns the rows of a Parquet file as typed values. An error in a row names its number, counted from 0.

    Args:
        path: The file.
        kind: A dataclass or `msgspec.Struct` with a field per column. Other columns are not read.
        remedy: See `to_type`.
        limit: Maximum size of the file in bytes, packed and unpacked.
        error: Class of the error.

    Raises:
        UserError: pyarrow is not installed. Or the file cannot be read, is not a Parquet file, is damaged or too large,
            lacks a column, or a cell does not have the type of its field.
    """
    source = Source(shown(path), remedy, error)
    content = read_bytes(path, limit=limit, error=error)
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as problem:
        raise error(f"{shown(path)}: pyarrow reads it and is not installed: {INSTALL}.") from problem
    names = [field.encode_name for field in msgspec.inspect.type_info(kind).fields]  # type: ignore[attr-defined]
    try:
        with parquet.ParquetFile(pyarrow.BufferReader(content)) as file:
            facts = file.metadata
            unpacked = sum(facts.row_group(number).total_byte_size for number in range(facts.num_row_groups))
            if unpacked > limit or facts.num_rows > ROW_LIMIT:
                raise source.refuse(
                    f"unpacks to {unpacked:,} bytes in {facts.num_rows:,} rows; at most {limit:,} bytes in "
                    f"{ROW_LIMIT:,} rows are read"
                )
            columns = file.schema_arrow.names
            if absent := [name for name in names if columns.count(name) != 1]:
                what = "occurs twice" if absent[0] in columns else "does not exist"
                raise source.refuse(f"the column {absent[0]!r} {what}")
            rows = file.read(columns=names, use_threads=False).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as problem:
        what = shown(" ".join(str(problem).split())[:200])
        raise source.refuse(f"cannot be read as Parquet ({what})") from problem
    check_values(rows, source, finite=True)
    return typed(rows, list[kind], source)  # type: ignore[valid-type]
