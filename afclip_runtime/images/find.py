"""Finding image files in folders, and telling them from other files."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from afclip_runtime.errors import DatasetError, UserError, shown
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
# Files that often accompany images, and are skipped without a message.
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
    """Returns the image files directly in `folder`, sorted by name, without hidden files. A missing folder has none.

    The suffix decides what an image file is. A file without a suffix, or with a number (part of a UID) or `.IMA` as
    suffix, is an image if its content is DICOM. A broken link with an image's name counts as an image, and so does a
    FIFO or a device: skipping them silently would change the counts.

    Raises:
        DatasetError: The folder cannot be listed.
    """
    return _sort(folder).images


def list_folders(folder: Path) -> list[Path]:
    """Returns the folders directly in `folder`, sorted by name, without hidden folders. A missing folder has none.

    Raises:
        DatasetError: The folder cannot be listed, or contains a broken link that may be meant as a folder.
    """
    entries = _sort(folder)
    if entries.lost:
        raise DatasetError(_LOST.format(entries.lost[0]))
    return entries.folders


def walk_folders(folder: Path, leave_out: Collection[Path] = ()) -> Iterator[Path]:
    """Yields a folder and all folders below it, parents first, without hidden folders. A missing folder yields nothing.

    Args:
        folder: Folder at which to start.
        leave_out: Folders that are not entered.

    Raises:
        DatasetError: A folder cannot be listed, or a symbolic link is broken or leads back to a folder that contains
            it.
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
        folder: Folder at which to start.
        leave_out: Folders that are not entered.

    Raises:
        DatasetError: A folder cannot be listed, or a symbolic link is broken or leads back to a folder that contains
            it.
    """
    found = survey(folder, leave_out)
    if found.problems:
        raise DatasetError(next(iter(found.problems.values())))
    return found.images


@dataclass(frozen=True)
class Found:
    """Images and other files of a folder and all folders below it.

    Attributes:
        images: The images, sorted by path.
        others: Files that are not read but may be meant as images, sorted by path: with an unknown suffix (`.heic`,
            `.cr2`), or binary without a suffix. Texts, tables, archives and hidden files are not included.
        problems: One sentence per path: a folder that cannot be listed, a link that is broken or leads back.
    """

    images: list[Path]
    others: list[Path]
    problems: dict[Path, str]


def survey(folder: Path, leave_out: Collection[Path] = ()) -> Found:
    """Returns the images, other files and problems of `folder` and all folders below it. It continues after a problem.

    Args:
        folder: Folder at which to start. A missing folder has no files.
        leave_out: Folders that are not entered.
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


def require_images(images: Sequence[Path], folder: Path, role: str) -> None:
    """Checks that images were found in a folder.

    Args:
        images: The images that were found.
        folder: The folder.
        role: Role of the folder in words, such as `the folder of normal images`.

    Raises:
        UserError: There are none: the folder does not exist, is a file, or has no image.
    """
    if images:
        return
    problem = "has no image. Check the path" if folder.is_dir() else "does not exist. Check the path"
    if folder.is_file():
        problem = "is a file. Name the folder that it is in"
    raise UserError(f"{shown(folder)}, {role}, {problem}.")


def other_files(folder: Path) -> list[Path]:
    """Returns the `others` of `Found` directly in `folder`, sorted by name.

    Raises:
        DatasetError: The folder cannot be listed.
    """
    return _sort(folder).others


def say_others(others: Sequence[Path]) -> str:
    """Returns a sentence with the number and kinds of files that are not read. Empty without files."""
    if not others:
        return ""
    kinds = Counter(path.suffix.lower() or "without suffix" for path in others)
    named = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
    files = "1 file is" if len(others) == 1 else f"{len(others)} files are"
    return (
        f"{files} of a kind that is not read here, and left out: {named}. The first: {others[0]}. Save images as PNG, "
        "TIFF or JPEG."
    )


_BACK = "{}: this link leads back to {}, a folder that contains it. Remove the link."


_LOST = "{}: this link leads nowhere or to itself. Restore its target, or remove the link."


class Entry(NamedTuple):
    """A file below a folder, or a problem there.

    Attributes:
        path: The file, or the folder or link that has the problem.
        kind: See `kind_of`.
        problem: The problem as a sentence, or empty.
    """

    path: Path
    kind: Literal["image", "other", "beside", "problem"]
    problem: str = ""


def walk_files(folder: Path, leave_out: Collection[Path] = ()) -> Iterator[Entry]:
    """Yields the files in `folder` and below it, sorted by path, without hidden files. It continues after a problem.

    Memory holds only the names of the current folder and of its parents.

    Args:
        folder: Folder at which to start. A missing folder has no files.
        leave_out: Folders that are not entered.
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
    """Entries of a folder, each list sorted by name. `lost` are broken links that may be meant as folders."""

    images: list[Path]
    folders: list[Path]
    others: list[Path]
    lost: list[Path]


def _sort(folder: Path) -> _Entries:
    """Returns the entries of a folder by kind, without hidden entries.

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
    """Returns the entries of a folder, sorted by name, without hidden entries. A missing folder has none.

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
    """Returns the kind of an entry of a folder; `None` for a FIFO, a device and the like without an image's name."""
    if _is(entry.is_dir):
        return "folder"
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES and not _is(entry.is_file):
        return "lost" if not suffix and _leads_nowhere(path) else None
    return kind_of(path)


def kind_of(path: Path) -> Literal["image", "other", "beside"]:
    """Returns the kind of a file by its name, or by its content if the name does not tell. See `Found`.

    `beside` is a file that often accompanies images and is skipped without a message.

    Args:
        path: The file, not a folder.
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
    return "other" if not unnamed or b"\0" in start else "beside"  # texts have no zero byte


def _is(what: Callable[[], bool]) -> bool:
    try:
        return what()
    except OSError:  # a link to itself, a folder without permission
        return False


def first_bytes(path: Path) -> bytes:
    """Returns the first bytes of a file, enough to recognise DICOM. Empty if the file cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(DICOM_MARK.stop)
    except (OSError, UserError):
        return b""


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists()
