"""The images of one shard, as a stream."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from afclip_runtime.bulk import urls
from afclip_runtime.bulk.images_in_parquet import Cell, choose_column, open_table, read_cells
from afclip_runtime.bulk.sources import Archive, File, beside
from afclip_runtime.bulk.tars import read_tar
from afclip_runtime.errors import UserError, shown
from afclip_runtime.files import open_regular
from afclip_runtime.images.reader import Content

if TYPE_CHECKING:
    from afclip_runtime.views.decoding import Fetch, Source

    Image = tuple[File, "Source | Fetch"]


def open_files(files: list[File]) -> "Iterator[Image]":
    """Yields files, each with the source of its image."""
    for file in files:
        yield file, _source(file)


def open_archive(archive: Archive) -> "Iterator[Image]":
    """Yields the images of an archive, in its order.

    Raises:
        UserError: The archive is damaged. Images before the damage were yielded.
    """
    if archive.error:
        raise UserError(archive.error)
    if archive.images == 0:  # its file was replaced, and has fewer row groups now
        return
    yield from _of_tar(archive) if archive.kind == "tar" else _of_table(archive)


def _of_tar(archive: Archive) -> "Iterator[Image]":
    opened = urls.opened(archive.path) if urls.is_url(archive.path) else open_regular(archive.path)
    empty = True
    with opened as content:
        for member in read_tar(content, shown(archive.path)):
            empty = False
            path = f"{archive.path}/{member.name}"
            file = File(path, member.size, member.mtime_ns, member.error)
            yield file, _refusing(member.error) if member.data is None else Content(path, member.data)
    if empty:
        raise UserError(f"{shown(archive.path)}: the archive has no image.")


def _of_table(archive: Archive) -> "Iterator[Image]":
    with open_table(archive.path) as table:
        column = choose_column(table, archive.path, archive.column)
        for cell in read_cells(table, column, archive.first, archive.groups):
            yield _of_cell(archive.path, cell)


def _of_cell(source: str, cell: Cell) -> "Image":
    path = f"{source}/{cell.row}"
    if cell.data is not None:
        name = f"{path}/{cell.path}" if cell.path else path
        return File(name, len(cell.data)), Content(name, cell.data)
    if cell.path:  # the table has only the path
        file = File(beside(source, cell.path))
        return file, _source(file)
    error = f"{shown(source)}, row {cell.row}: the cell is empty."
    return File(path, error=error), _refusing(error)


def _source(file: File) -> "Source | Fetch":
    if file.error:
        return _refusing(file.error)
    if urls.is_url(file.path):
        return lambda: Content(file.path, urls.fetch(file.path))
    return Path(file.path)


def _refusing(error: str) -> "Callable[[], NoReturn]":
    """Returns a function that raises the error of an image, in place of reading it."""

    def refuse() -> NoReturn:
        raise UserError(error)

    return refuse
