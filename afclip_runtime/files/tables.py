"""CSV files. They are read strictly, and no cell is written in a form that a spreadsheet takes for a formula."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from afclip_runtime.errors import UserError, escape, shown
from afclip_runtime.files.reading import TABLE_LIMIT, read_text
from afclip_runtime.files.typed import REMEDY, Source, check_values, typed

T = TypeVar("T")


def read_rows(
    path: str | Path,
    *,
    delimiter: str = ",",
    remedy: str = REMEDY,
    limit: int = TABLE_LIMIT,
    error: type[UserError] = UserError,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the rows of a CSV file as text by column, each with the number of its first line. Blank lines are skipped.

    Args:
        path: The file. Its first line names the columns.
        delimiter: Separator of cells.
        remedy: See `to_type`.
        limit: Maximum size of the file in bytes.
        error: Class of the error.

    Raises:
        UserError: The file cannot be read, a column name appears twice, the number of cells in a row differs from the
            number of columns, a quote is not closed, or a cell is too long. The message names the line.
    """
    source = Source(shown(path), remedy, error)
    text = read_text(path, limit=limit, error=error)
    lines = (line + "\n" for line in text.removesuffix("\n").split("\n"))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    columns: list[str] = []
    line = 1
    try:
        for cells in reader:
            first, line = line, reader.line_num + 1
            if not cells:
                continue
            if not columns:
                columns = [cell.strip() for cell in cells]
                if twice := [name for name in columns if name and columns.count(name) > 1]:
                    raise source.line(first).refuse(f"the column {twice[0]!r} occurs twice")
                continue
            if len(cells) != len(columns):
                raise source.line(first).refuse(f"has {len(cells)} cells, and there are {len(columns)} columns")
            if any(inner.count(delimiter) >= len(columns) - 1 for c in cells for inner in c.split("\n")[1:]):
                raise source.line(first).refuse("a cell holds whole lines: a quote is not closed")
            yield first, dict(zip(columns, cells, strict=True))
    except csv.Error as problem:
        open_quote = "unexpected end of data" in str(problem)
        what = "a quote is not closed" if open_quote else f"cannot be read as CSV ({problem})"
        raise source.line(line).refuse(what) from problem
    if not columns:
        raise source.refuse("is empty")


def read_csv(
    path: str | Path,
    kind: type[T],
    *,
    remedy: str = REMEDY,
    limit: int = TABLE_LIMIT,
    error: type[UserError] = UserError,
) -> list[T]:
    """Returns the rows of a CSV file that this package wrote, as typed values.

    Args:
        path: The file. Columns without a field in the type are ignored.
        kind: A dataclass or `msgspec.Struct` with a field per column. An empty cell becomes the field's default, if
            any.
        remedy: See `to_type`.
        limit: Maximum size of the file in bytes.
        error: Class of the error.

    Raises:
        UserError: See `read_rows`; or a cell does not have the type of its field, or a number is not finite.
    """
    source = Source(shown(path), remedy, error)
    optional = {field.encode_name for field in msgspec.inspect.type_info(kind).fields if not field.required}  # type: ignore[attr-defined]
    rows = []
    for line, cells in read_rows(path, remedy=remedy, limit=limit, error=error):
        where = source.line(line)
        given = {name: _uncell(cell) for name, cell in cells.items() if cell or name not in optional}
        row = typed(given, kind, where, strict=False)
        check_values(msgspec.to_builtins(row), where, finite=True)
        rows.append(row)
    if not rows:  # the columns are not yet checked
        columns = {name.strip() for name in read_text(path, limit=limit, error=error).split("\n")[0].split(",")}
        required = [field.encode_name for field in msgspec.inspect.type_info(kind).fields if field.required]  # type: ignore[attr-defined]
        if absent := [name for name in required if name not in columns]:
            raise source.line(1).refuse(f"there is no column {absent[0]!r}")
    return rows


def csv_text(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Returns a table as CSV. Numbers have all digits, text is safe from evaluation as a formula, `None` is empty.

    Args:
        columns: Names of the columns.
        rows: A value per column.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([_cell(value) for value in row] for row in (columns, *rows))
    return buffer.getvalue()


_FORMULA = tuple("=+-@＝＋－＠'")  # the apostrophe too, since it marks an escaped cell
_SPECIAL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, bytes that are not UTF-8


def _cell(value: Any) -> Any:
    text = str(value) if isinstance(value, Path) else value
    if not isinstance(text, str) or not (text.startswith(_FORMULA) or _SPECIAL.search(text)):
        return text
    return "'" + re.sub(rf"{_SPECIAL.pattern}|\\", lambda match: escape(match[0]), text)


def _uncell(cell: str) -> str:
    """Returns the text of a cell, the inverse of `_cell`."""
    if not cell.startswith("'"):
        return cell

    def char(match: re.Match[str]) -> str:
        code = int(match[1] or match[2] or match[3], 16)
        return chr(code + 0xDC00 if match[1] and code >= 0x80 else code)

    with suppress(ValueError):  # no such character: the cell was not written by `_cell`
        return re.sub(r"\\x([0-9a-f]{2})|\\u([0-9a-f]{4})|\\U([0-9a-f]{8})", char, cell[1:])
    return cell
