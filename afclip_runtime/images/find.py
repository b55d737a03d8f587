"""Images on disk: finding them in folders, and telling what else lies there."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from afclip_runtime.errors import DatasetError, UserError
from afclip_runtime.files import open_regular
from afclip_runtime.images.reader import DICOM_MARK, DICOM_SUFFIXES, is_dicom

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
IMAGE_SUFFIXES = (
    frozenset({".png", ".apng", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif", ".gif", ".tga", ".pcx", ".qoi"})
    | frozenset({".jp2", ".j2k", ".jpx", ".jpf", ".pbm", ".pgm", ".ppm", ".pnm", ".sgi", ".ras"})
    | JPEG_SUFFIXES
    | DICOM_SUFFIXES
)
DICOM_BY_CONTENT = frozenset({".ima"})  # and files without a suffix
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")  # whose slices are images
# What lies beside images and is none, in files that need no word.
OTHER_SUFFIXES = (
    frozenset({".txt", ".md", ".rst", ".log", ".html", ".htm", ".css", ".js", ".pdf", ".rtf", ".doc", ".docx", ".tex"})
    | frozenset({".json", ".jsonl", ".yaml", ".yml", ".xml", ".toml", ".ini", ".cfg", ".csv", ".tsv", ".xls", ".xlsx"})
    | frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".md5", ".sha1", ".sha256", ".bib"})
    | frozenset({".py", ".ipynb", ".sh", ".bat", ".m", ".ckpt", ".pt", ".pth", ".safetensors", ".onnx", ".lock"})
    | frozenset({".npy", ".npz", ".mat", ".db", ".lnk", ".url", ".tmp", ".part", ".bak"})
    | frozenset({".partial", ".filepart", ".crdownload", ".download", ".swp"})
)
OTHER_NAMES = frozenset({"thumbs.db", "desktop.ini", "dicomdir"})


def list_images(folder: Path) -> list[Path]:
    """Returns the image files directly in `folder` but hidden ones, sorted by name; an absent folder has none.

    What an image file is, its suffix says. DICOM files are told by their content where they have no suffix, a number
    (part of a UID) or `.IMA` in its place. A link that leads nowhere, or to itself, counts as an image, and so does
    what has an image's name and is no file (a FIFO, a device): left out in silence it would change the counts.

    Raises:
        DatasetError: The folder cannot be listed.
    """
    return _sort(folder).images


def list_folders(folder: Path) -> list[Path]:
    """Returns the folders directly in `folder` but hidden ones, sorted by name; an absent folder has none.

    Raises:
        DatasetError: The folder cannot be listed, or a link that could be meant as a folder leads nowhere or to itself.
    """
    entries = _sort(folder)
    if entries.lost:
        raise DatasetError(_LOST.format(entries.lost[0]))
    return entries.folders


def walk_folders(folder: Path, leave_out: Collection[Path] = ()) -> Iterator[Path]:
    """Yields a folder and all below it but hidden ones, each before what lies in it; nothing if it does not exist.

    Args:
        folder: Where to begin.
        leave_out: Folders that are not stepped into.

    Raises:
        DatasetError: A folder cannot be listed, or a symbolic link leads nowhere or back to a folder that it lies in.
    """
    out = {os.path.abspath(path) for path in leave_out}
    return _walk(folder, out, ()) if folder.is_dir() else iter(())


def _walk(folder: Path, leave_out: Collection[str], above: tuple[str, ...]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:
        raise DatasetError(_BACK.format(folder, real))
    yield folder
    for inner in list_folders(folder):
        if os.path.abspath(inner) not in leave_out:
            yield from _walk(inner, leave_out, (*above, real))


def walk_images(folder: Path, leave_out: Collection[Path] = ()) -> list[Path]:
    """Returns the images in `folder` and all folders below it, sorted by path.

    Args:
        folder: Where to begin.
        leave_out: Folders that are not stepped into.

    Raises:
        DatasetError: A folder cannot be listed, or a symbolic link leads nowhere or back to a folder that it lies in.
    """
    found = survey(folder, leave_out)
    if found.problems:
        raise DatasetError(next(iter(found.problems.values())))
    return found.images


@dataclass(frozen=True)
class Found:
    """What lies in a folder and all folders below it.

    Attributes:
        images: The images, sorted by path.
        others: Files that are not read and look as if they were meant, sorted by path: of an unknown suffix
            (`.heic`, `.cr2`), or binary without one. Texts, tables, archives and hidden files are not among them.
        problems: By path, a sentence each: a folder that cannot be listed, a link that leads nowhere or back.
    """

    images: list[Path]
    others: list[Path]
    problems: dict[Path, str]


def survey(folder: Path, leave_out: Collection[Path] = ()) -> Found:
    """Returns the images in `folder` and all folders below it, and what else lies there; it goes on after a problem.

    Args:
        folder: Where to begin; an absent folder has nothing.
        leave_out: Folders that are not stepped into.
    """
    found = Found([], [], {})
    for path, kind, problem in walk_files(folder, leave_out):
        if kind == "image":
            found.images.append(path)
        elif kind == "other":
            found.others.append(path)
        elif kind == "problem":
            found.problems[path] = problem
    return found


def other_files(folder: Path) -> list[Path]:
    """Returns the `others` of `Found` that lie directly in `folder`, sorted by name.

    Raises:
        DatasetError: The folder cannot be listed.
    """
    return _sort(folder).others


def say_others(others: Sequence[Path]) -> str:
    """Returns a sentence that names files that are not read, with their number; empty for none."""
    if not others:
        return ""
    kinds = Counter(path.suffix.lower() or "without suffix" for path in others)
    named = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
    files = "1 file is" if len(others) == 1 else f"{len(others)} files are"
    return (
        f"{files} of no kind that is read here, and left out: {named}. The first: {others[0]}. Save what is an image "
        "as PNG, TIFF or JPEG."
    )


_BACK = "{}: this link leads back to {}, which it lies in. Remove the link."


_LOST = "{}: this link leads nowhere or to itself. Restore what it names, or remove it."


class Entry(NamedTuple):
    """A file below a folder, or a problem there.

    Attributes:
        path: The file, or the folder or link that has the problem.
        kind: See `kind_of`.
        problem: A sentence; empty if there is none.
    """

    path: Path
    kind: Literal["image", "other", "beside", "problem"]
    problem: str = ""


def walk_files(folder: Path, leave_out: Collection[Path] = ()) -> Iterator[Entry]:
    """Yields the files in `folder` and below it but hidden ones, sorted by path. It goes on after a problem.

    Memory holds the names of one folder at a time, and of those above it.

    Args:
        folder: Where to begin; an absent folder has nothing.
        leave_out: Folders that are not stepped into.
    """
    yield from _walk_files(folder, leave_out, ())


def _walk_files(folder: Path, leave_out: Collection[Path], above: tuple[str, ...]) -> Iterator[Entry]:
    real = os.path.realpath(folder)
    if real in above:
        yield Entry(folder, "problem", _BACK.format(folder, real))
        return
    try:
        entries = _list(folder)
    except DatasetError as error:
        yield Entry(folder, "problem", str(error))
        return
    for entry in entries:
        path = folder / entry.name
        kind = _kind(entry, path)
        if kind == "folder":
            if path not in leave_out:
                yield from _walk_files(path, leave_out, (*above, real))
        elif kind == "lost":
            yield Entry(path, "problem", _LOST.format(path))
        elif kind is not None:
            yield Entry(path, kind)


class _Entries(NamedTuple):
    """What lies directly in a folder, each sorted by name; `lost` are links that could be meant as folders."""

    images: list[Path]
    folders: list[Path]
    others: list[Path]
    lost: list[Path]


def _sort(folder: Path) -> _Entries:
    """Returns what lies directly in a folder but hidden entries.

    Raises:
        DatasetError: The folder cannot be listed.
    """
    found = _Entries([], [], [], [])
    lists = {"image": found.images, "folder": found.folders, "other": found.others, "lost": found.lost}
    for entry in _list(folder):
        path = folder / entry.name
        if (kind := _kind(entry, path)) in lists:
            lists[kind].append(path)
    return found


def _list(folder: Path) -> "list[os.DirEntry[str]]":
    """Returns the entries of a folder but hidden ones, sorted by name; an absent folder has none.

    Raises:
        DatasetError: The folder cannot be listed.
    """
    try:
        with os.scandir(folder) as scan:
            return sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be listed ({error.strerror}). Allow it to be read.") from error


def _kind(entry: "os.DirEntry[str]", path: Path) -> Literal["folder", "image", "other", "beside", "lost"] | None:
    """Returns what an entry of a folder is; `None` of a FIFO, a device and the like without an image's name."""
    if _is(entry.is_dir):
        return "folder"
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES and not _is(entry.is_file):
        return "lost" if not suffix and _leads_nowhere(path) else None
    return kind_of(path)


def kind_of(path: Path) -> Literal["image", "other", "beside"]:
    """Returns what a file is by its name, and by its content where the name does not say: see `Found`.

    Args:
        path: The file, no folder. What lies beside images and needs no word is `beside`.
    """
    name, suffix = path.name.lower(), path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "image"
    if name.endswith(VOLUME_SUFFIXES):
        return "other"
    if suffix in OTHER_SUFFIXES or name in OTHER_NAMES or name.endswith("~"):
        return "beside"
    unnamed = not suffix or suffix[1:].isdigit()
    start = first_bytes(path) if unnamed or suffix in DICOM_BY_CONTENT else b""
    if is_dicom(start):
        return "image"
    return "other" if not unnamed or b"\0" in start else "beside"  # a text has no zero byte


def _is(what: Callable[[], bool]) -> bool:
    try:
        return what()
    except OSError:  # a link to itself, a closed folder
        return False


def first_bytes(path: Path) -> bytes:
    """Returns as much of a file's beginning as tells DICOM; nothing of a file that cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(DICOM_MARK.stop)
    except (OSError, UserError):
        return b""


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists()
