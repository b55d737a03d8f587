"""Sources of a sharded `inspect`: files, folders, patterns, archives, tables and URLs, listed as a stream."""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import msgspec

from afclip_runtime.bulk import images_in_parquet, tars, urls
from afclip_runtime.bulk.images_in_parquet import Column, choose_column, open_table, read_cells, row_groups
from afclip_runtime.errors import MissingPackageError, UserError, shown
from afclip_runtime.images.find import DICOM_BY_CONTENT, IMAGE_SUFFIXES, kind_of, walk_files
from afclip_runtime.inspection.inputs import is_ignored, require_any, why_left_out

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class File(msgspec.Struct, frozen=True, omit_defaults=True):
    """An image file to inspect.

    Attributes:
        path: Its path or URL, as in the table.
        size: Size in bytes; `None` if it is not known.
        mtime_ns: Time of its last change, in nanoseconds; `None` if it is not known.
        error: Reason why it is not an image. Empty if it may be one.
        left_out: Whether it is a file of a folder and of a kind that is not read.
    """

    path: str
    size: int | None = None
    mtime_ns: int | None = None
    error: str = ""
    left_out: bool = False

    @property
    def volume(self) -> str:
        """Empty, since these files are not slices of volumes."""
        return ""

    @property
    def slice(self) -> None:
        """`None`, since these files are not slices of volumes."""

    @property
    def key(self) -> str:
        """Returns the identity of the file: its absolute path, or its URL."""
        return self.path if urls.is_url(self.path) else os.path.abspath(self.path)


class Archive(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tar archive, or row groups of a Parquet file that holds the bytes of images.

    Attributes:
        kind: Kind of the archive.
        path: Its path or URL.
        size: Size in bytes; `None` if it is not known.
        mtime_ns: Time of its last change, in nanoseconds; `None` if it is not known.
        column: Column of the images.
        first: The first row group.
        groups: Number of row groups.
        images: Number of images; `None` if it is not known before reading.
        error: Reason why it cannot be read, or empty.
    """

    kind: Literal["tar", "parquet"]
    path: str
    size: int | None = None
    mtime_ns: int | None = None
    column: str = ""
    first: int = 0
    groups: int = 0
    images: int | None = None
    error: str = ""

    @property
    def key(self) -> str:
        """Returns the identity of the archive's file: its absolute path, or its URL."""
        return self.path if urls.is_url(self.path) else os.path.abspath(self.path)


@dataclass(frozen=True)
class Listing:
    """A listing of sources.

    Attributes:
        patterns: Files, folders, patterns, URLs.
        leave_out: Folder whose files are not sources: the output folder.
        ignore: Patterns of names of files that are silently left out of folders.
        image_column: Column of the images in Parquet files. By default it is found by its type.
        shard_images: Minimum number of rows of a Parquet file per shard.
    """

    patterns: Sequence[str]
    leave_out: Path
    ignore: Sequence[str] = ()
    image_column: str | None = None
    shard_images: int = 1000

    def __iter__(self) -> Iterator[File | Archive]:
        """Yields files and archives in the order of the patterns; files of a folder are sorted by path.

        A source that is given twice is yielded twice. Sources that are missing, cannot be read or are not images are
        yielded with an error.

        Raises:
            MissingPackageError: A package that a source needs is not installed.
        """
        for pattern in self.patterns:
            for text in expand_braces(pattern):
                if urls.is_url(text) and not text.lower().startswith("file://"):
                    yield from self._at_url(text)
                else:
                    yield from self._local(_path_of(text))

    def _local(self, pattern: str) -> Iterator[File | Archive]:
        matches = [pattern]
        if not os.path.lexists(pattern):
            matches = sorted(glob.glob(pattern, recursive=True)) or matches
        for match in matches:
            if os.path.isdir(match):
                yield from self._below(Path(match))
            else:
                yield from self._file(match, *_state(match))

    def _below(self, folder: Path) -> Iterator[File | Archive]:
        out = folder / os.path.relpath(self.leave_out, os.path.abspath(folder))
        found = problem_here = False
        for path, kind, problem in walk_files(folder, [out]):
            if kind == "problem":
                problem_here |= path == folder
                yield File(str(path), error=problem)
            elif kind == "image" or is_archive(path.name):
                found = True
                yield from self._file(str(path), *_state(path))
            elif kind == "other" and not is_ignored(path, self.ignore):
                yield File(str(path), *_state(path), why_left_out(path), True)
        if not found and not problem_here:
            yield File(str(folder), error=f"{shown(folder)}: the folder has no image.")

    def _at_url(self, url: str) -> Iterator[File | Archive]:
        urls.require_packages(url)
        try:
            if "*" in url:
                files: Iterable[urls.UrlFile] | None = urls.matching(url)
                if not files:
                    yield File(url, error=f"{shown(url)}: nothing matches this pattern.")
            elif is_archive(urls.suffix_source(url)):
                files = [urls.describe(url)]
            elif _has_image_suffix(url):
                files = None  # a request for the size would take as long as reading a small file
            else:
                files = urls.walk(url) if not url.startswith("http") or url.endswith("/") else None
            if files is None:
                yield File(url)
                return
            found = False
            for file in files:
                name = Path(urls.suffix_source(file.url).rpartition("/")[2])
                if _has_image_suffix(file.url) or is_archive(name.name):
                    found = True
                    yield from self._file(*file)
                elif _is_of_no_kind(name) and not is_ignored(name, self.ignore):
                    yield File(*file, why_left_out(name, file.url), True)
            if not found and "*" not in url:
                yield File(url, error=f"{shown(url)}: the folder has no image.")
        except MissingPackageError:
            raise
        except UserError as error:
            yield File(url, error=str(error))

    def _file(self, path: str, size: int | None, mtime_ns: int | None) -> Iterator[File | Archive]:
        name = urls.suffix_source(path).lower()
        if name.endswith(tars.SUFFIXES):
            yield Archive("tar", path, size, mtime_ns)
        elif name.endswith(images_in_parquet.SUFFIXES):
            yield from self._table(path, size, mtime_ns)
        else:
            yield File(path, size, mtime_ns)

    def _table(self, path: str, size: int | None, mtime_ns: int | None) -> Iterator[File | Archive]:
        """Yields the row groups of a Parquet file with bytes, or the files of a Parquet file with paths."""
        try:
            with open_table(path) as table:
                column = choose_column(table, path, self.image_column)
                if column.kind == "path":
                    yield from _listed(path, table, column)
                else:
                    facts = path, size, mtime_ns, column.name
                    for first, groups, rows in row_groups(table, self.shard_images):
                        yield Archive("parquet", *facts, first, groups, rows)
                if not table.metadata.num_rows:
                    yield File(path, size, mtime_ns, f"{shown(path)}: the table has no row.")
        except MissingPackageError:
            raise
        except UserError as error:
            yield Archive("parquet", path, size, mtime_ns, error=str(error))


def _listed(source: str, table: "images_in_parquet.ParquetFile", column: Column) -> Iterator[File]:
    """Yields the files of a column: URLs, and paths relative to the folder of the table."""
    for cell in read_cells(table, column):
        if not cell.path:
            yield File(f"{source}/{cell.row}", error=f"{shown(source)}, row {cell.row}: the cell is empty.")
        else:
            path = beside(source, cell.path)
            if urls.is_url(path):
                urls.require_packages(path)
                yield File(path)
            else:
                yield File(path, *_state(path))


def beside(source: str, path: str) -> str:
    """Resolves a path in a table: it is relative to the table's folder, unless it is absolute."""
    if urls.is_url(path):
        return _path_of(path)
    if urls.is_url(source):
        return path if path.startswith("/") else f"{source.rpartition('/')[0]}/{path}"
    return os.path.join(os.path.dirname(source), path)


def require_packages(patterns: Iterable[str]) -> None:
    """Checks early that the packages for all URLs among the sources are installed.

    Raises:
        MissingPackageError: A package is not installed.
    """
    for pattern in patterns:
        if urls.is_url(pattern) and not pattern.lower().startswith("file://"):
            urls.require_packages(pattern)


def require_sources(patterns: Sequence[str]) -> None:
    """Checks early that something is named, and that some of it exists. Whether a URL exists is not checked.

    Raises:
        UserError: There is no source, or none of them exists.
    """
    if not patterns:
        raise UserError("there is nothing to inspect: name files, folders, archives or URLs.")
    paths = [_path_of(pattern) for pattern in patterns]
    if not any(map(urls.is_url, paths)):
        require_any(text for path in paths for text in expand_braces(path))


def is_sharded(patterns: Iterable[str]) -> bool:
    """Returns whether a source can only be inspected by shards: a URL, a tar archive or a Parquet file."""
    return any(urls.is_url(pattern) or (is_archive(pattern) and not os.path.isdir(pattern)) for pattern in patterns)


def is_archive(name: str) -> bool:
    """Returns whether a file is a tar archive or a Parquet file by its name."""
    return name.lower().endswith((*tars.SUFFIXES, *images_in_parquet.SUFFIXES))


def expand_braces(pattern: str) -> Iterator[str]:
    """Expands braces in a pattern as shells do: `{000..127}`, `{train,val}`.

    The name of an existing file is not expanded.
    """
    match = _BRACES.search(pattern)
    if match is None or os.path.lexists(pattern):
        yield pattern
        return
    inner = match[1]
    if numbers := _RANGE.fullmatch(inner):
        first, last = int(numbers[1]), int(numbers[2])
        padded = any(len(number) > 1 and number.startswith("0") for number in numbers.groups())
        width = max(map(len, numbers.groups())) if padded else 0
        step = 1 if first <= last else -1
        parts: Iterable[str] = (str(n).zfill(width) for n in range(first, last + step, step))
    elif "," in inner:
        parts = inner.split(",")
    else:
        yield pattern
        return
    for part in parts:
        yield from expand_braces(pattern[: match.start()] + part + pattern[match.end() :])


def _path_of(text: str) -> str:
    """Returns the path of a `file://` URL; other texts are unchanged."""
    return unquote(urlsplit(text).path) if text.lower().startswith("file://") else text


def _is_of_no_kind(name: Path) -> bool:
    """Returns whether a file at a URL may be meant as an image by its suffix, but its kind is not read."""
    suffix = name.suffix.lower()
    return bool(suffix) and not suffix[1:].isdigit() and suffix not in DICOM_BY_CONTENT and kind_of(name) == "other"


def _has_image_suffix(url: str) -> bool:
    return os.path.splitext(urls.suffix_source(url))[1].lower() in IMAGE_SUFFIXES


def _state(path: str | Path) -> tuple[int | None, int | None]:
    try:
        facts = os.stat(path)
    except (OSError, ValueError):
        return None, None
    return facts.st_size, facts.st_mtime_ns
