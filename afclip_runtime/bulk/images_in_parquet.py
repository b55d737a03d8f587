"""Images in Parquet files: their bytes, as in Hugging Face datasets, or their paths."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from afclip_runtime.bulk import urls
from afclip_runtime.errors import MissingPackageError, UserError, install_extra, shown
from afclip_runtime.files import open_regular

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

SUFFIXES = (".parquet", ".pq")
PATH_NAMES = (
    "path",
    "image_path",
    "file_path",
    "filepath",
    "file_name",
    "filename",
    "file",
    "url",
    "image_url",
    "image",
)
ROWS_AT_ONCE = 16  # images with bytes in memory at once
BUFFER = 2**20  # bytes per read of a column


class Column(NamedTuple):
    """The column of the images.

    Attributes:
        name: Its name.
        kind: `bytes`; `struct` of bytes and path; or `path`.
    """

    name: str
    kind: Literal["bytes", "struct", "path"]


class Cell(NamedTuple):
    """An image of a table.

    Attributes:
        row: Number of the row in the file, from 0.
        data: Bytes of the image; `None` if the cell is empty.
        path: Path of the image in the table, current or former; `None` without a path.
    """

    row: int
    data: bytes | None
    path: str | None


@contextmanager
def open_table(source: str) -> "Iterator[ParquetFile]":
    """Yields a Parquet file.

    Args:
        source: A path or URL.

    Raises:
        UserError: pyarrow is not installed, or the file cannot be read or is damaged. Also raised while the body reads.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingPackageError(
            f"{shown(source)}: pyarrow reads it and is not installed: {install_extra('scale')}."
        ) from error
    with ExitStack() as stack:
        try:
            if urls.is_url(source):
                file = stack.enter_context(urls.opened(source))
                if not file.seekable():  # a web server without ranges
                    copy = stack.enter_context(tempfile.TemporaryFile())
                    shutil.copyfileobj(file, copy)
                    file = copy
            else:
                file = stack.enter_context(open_regular(source))
            yield stack.enter_context(parquet.ParquetFile(file, buffer_size=BUFFER))
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
            reason = shown(" ".join(str(error).split())[:200])
            raise UserError(f"{shown(source)}: the Parquet file is damaged ({reason}). Copy it again.") from error


def choose_column(table: "ParquetFile", source: str, wanted: str | None) -> Column:
    """Returns the column of the images: the named column, else the column with bytes, else the column with paths.

    Args:
        table: The file.
        source: Name of the file in messages.
        wanted: Value of `--image_column`, if given.

    Raises:
        UserError: The named column does not exist, or there is no column of images, or more than one.
    """
    columns = {field.name: Column(field.name, kind) for field in table.schema_arrow if (kind := _kind(field.type))}
    names = ", ".join(table.schema_arrow.names) or "none"
    if wanted is not None:
        if wanted not in columns:
            what = "holds neither bytes nor paths" if wanted in table.schema_arrow.names else "does not exist"
            raise UserError(f"{shown(source)}: the column {wanted!r} {what}. Its columns: {shown(names)}.")
        return columns[wanted]
    found = [column for column in columns.values() if column.kind != "path"]
    found = found or [columns[name] for name in PATH_NAMES if name in columns and columns[name].kind == "path"][:1]
    if len(found) != 1:
        what = "several columns hold bytes" if found else "no column holds images"
        raise UserError(
            f"{shown(source)}: {what}. Its columns: {shown(names)}. Name the one of the images: --image_column NAME."
        )
    return found[0]


def _kind(of: Any) -> Literal["bytes", "struct", "path"] | None:
    """Returns the kind of a column by its pyarrow type; `None` if it cannot contain images."""
    from pyarrow import types

    if types.is_dictionary(of):
        of = of.value_type
    if types.is_binary(of) or types.is_large_binary(of) or types.is_fixed_size_binary(of):
        return "bytes"
    if types.is_string(of) or types.is_large_string(of):
        return "path"
    if types.is_struct(of):
        fields = {of.field(number).name: of.field(number).type for number in range(of.num_fields)}
        return "struct" if "bytes" in fields and _kind(fields["bytes"]) == "bytes" else None
    return None


def row_groups(table: "ParquetFile", rows: int) -> Iterator[tuple[int, int, int]]:
    """Yields runs of row groups: the first group, the number of groups, the number of rows.

    Args:
        table: The file.
        rows: Minimum number of rows per run. A row group is not divided.
    """
    first = held = 0
    total = table.metadata.num_row_groups
    for number in range(total):
        held += table.metadata.row_group(number).num_rows
        if held >= rows or (number == total - 1 and held):
            yield first, number + 1 - first, held
            first, held = number + 1, 0


def read_cells(table: "ParquetFile", column: Column, first: int = 0, count: int | None = None) -> Iterator[Cell]:
    """Yields the images of row groups, in bounded memory.

    Args:
        table: The file.
        column: Column of the images.
        first: The first row group.
        count: Number of row groups. By default all that follow.
    """
    total = table.metadata.num_row_groups
    groups = range(first, total if count is None else min(total, first + count))
    row = sum(table.metadata.row_group(number).num_rows for number in range(min(first, total)))
    at_once = 1000 if column.kind == "path" else ROWS_AT_ONCE
    for batch in table.iter_batches(at_once, row_groups=list(groups), columns=[column.name], use_threads=False):
        for value in batch.column(0):
            yield _cell(row, value.as_py(), column.kind)
            row += 1


def _cell(row: int, value: Any, kind: str) -> Cell:
    if kind == "path":
        return Cell(row, None, value)
    if kind == "bytes" or value is None:
        return Cell(row, value, None)
    path = value.get("path")
    return Cell(row, value["bytes"], path if isinstance(path, str) else None)
