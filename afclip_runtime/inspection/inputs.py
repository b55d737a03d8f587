"""Inputs of `inspect`: files, folders with all their subfolders, patterns. Files that are not images are errors."""

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from afclip_runtime.errors import UserError, shown


@dataclass(frozen=True)
class Input:
    """A file to be inspected.

    Attributes:
        path: Path, as given.
        name: Name of its output files: the path relative to the common parent folder of all inputs, without suffix. For
            the input `shop/bolts`, all names begin with `bolts`.
        error: Reason why it is not an image. Empty if it may be one.
        left_out: Whether it is a file of a folder and of a kind that is not read.
        size: Size in bytes; `None` if the file does not exist.
        mtime_ns: Time of the last change, in nanoseconds. With the size, it shows whether the file was replaced.
        volume: Name of its volume if it is a slice, else empty.
        slice: Number of the slice.
    """

    path: Path
    name: str
    error: str = ""
    left_out: bool = False
    size: int | None = None
    mtime_ns: int | None = None
    volume: str = ""
    slice: int | None = None

    @property
    def key(self) -> str:
        """Returns the key of the file, its absolute path."""
        return os.path.abspath(self.path)


def require_any(patterns: Iterable[str]) -> None:
    """Checks early that at least one of the named sources exists.

    Args:
        patterns: Files, folders, patterns.

    Raises:
        UserError: There are sources, and none of them exists.
    """
    first, count = "", 0
    for pattern in patterns:
        if os.path.lexists(pattern) or next(glob.iglob(pattern, recursive=True), None) is not None:
            return
        first, count = first or pattern, count + 1
    if count > 1:
        raise UserError(f"none of the {count:,} named sources exists, the first is {shown(first)}. Check their paths.")
    if count:
        problem = f"nothing matches {shown(first)}" if glob.has_magic(first) else f"{shown(first)} does not exist"
        raise UserError(f"{problem}. Check the path.")


def find_inputs(
    patterns: Iterable[str], leave_out: Path, ignore: Sequence[str] = (), taken: Collection[str] = ()
) -> list[Input]:
    """Returns the files of paths, folders and patterns in the given order, each file once.

    An input with an error results from a missing file, a folder that cannot be read or has no image, and a file in a
    folder that is not an image. Hidden files are left out.

    Args:
        patterns: Files, folders, patterns.
        leave_out: Folder whose files are not inputs: the output folder.
        ignore: Patterns of names of files that are silently left out of folders.
        taken: Absolute paths of files that are not inputs, since they belong to volumes.
    """
    out = os.path.abspath(leave_out)
    found: dict[Path, tuple[str, bool]] = {}
    parents: set[str] = set()
    for pattern in patterns:
        matches = [Path(pattern)]
        if not os.path.lexists(pattern):
            matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))] or matches
        for match in matches:
            parents.add(os.path.dirname(os.path.abspath(match)))
            for path, problem in _below(match, out, ignore) if match.is_dir() else [(match, ("", False))]:
                found.setdefault(path, problem)
    root = os.path.commonpath(parents) if parents else ""
    inputs: dict[str, Input] = {}
    for path, (error, left_out) in found.items():
        whole = os.path.abspath(path)
        if whole in taken or (path.is_dir() and any(Path(whole) in Path(file).parents for file in taken)):
            continue
        name = Path(os.path.relpath(whole, root)).with_suffix("").as_posix()
        inputs.setdefault(whole, Input(path, name, error, left_out, *_state(path)))
    return list(inputs.values())


def _state(path: Path) -> tuple[int | None, int | None]:
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return None, None
    return facts.st_size, facts.st_mtime_ns


def _below(folder: Path, out: str, ignore: Sequence[str]) -> list[tuple[Path, tuple[str, bool]]]:
    """Returns the files below a folder, sorted by path, each with `error` and `left_out` of `Input`.

    Args:
        folder: The folder.
        out: A folder that is not entered.
        ignore: Patterns of names of files that are silently left out.
    """
    from afclip_runtime.images.find import survey

    found = survey(folder, [folder / os.path.relpath(out, os.path.abspath(folder))])
    files = dict.fromkeys(found.images, ("", False))
    files |= {path: (problem, False) for path, problem in found.problems.items()}
    for path in found.others:
        if not is_ignored(path, ignore):
            files[path] = (why_left_out(path), True)
    if not found.images:
        files.setdefault(folder, (f"{folder}: the folder has no image.", False))
    return sorted(files.items())


def input_below(folder: Path, path: Path, ignore: Sequence[str] = ()) -> Input | None:
    """Returns a file of a folder as `find_inputs` of the folder does; `None` if `find_inputs` would ignore it.

    Args:
        folder: The folder.
        path: A file in it or below it, not hidden.
        ignore: See `find_inputs`.
    """
    from afclip_runtime.images.find import kind_of

    kind = kind_of(path)
    if kind == "beside" or (kind == "other" and is_ignored(path, ignore)):
        return None
    error = why_left_out(path) if kind == "other" else ""
    name = Path(os.path.relpath(os.path.abspath(path), os.path.dirname(os.path.abspath(folder)))).with_suffix("")
    return Input(path, name.as_posix(), error, kind == "other", *_state(path))


def is_ignored(path: Path, patterns: Sequence[str]) -> bool:
    """Returns whether one of the patterns matches the name of a file."""
    return any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)


def why_left_out(path: Path, name: str = "") -> str:
    """Returns the error message of a file of a kind that is not read.

    Args:
        path: The file.
        name: Name of the file in the message. The default is its path.
    """
    kind = f"of the kind {path.suffix}" if path.suffix else "without suffix"
    way = "It is a volume: cut it with --axis axial" if _volume_suffix(path) else "Save it as PNG, TIFF or JPEG"
    return f"{name or path}: left out, as a file {kind} is not read here. {way}, or --ignore it."


def _volume_suffix(path: Path) -> str:
    """Returns the suffix of a volume's file, such as `.nii.gz`; empty for other files."""
    from afclip_runtime.images.find import VOLUME_SUFFIXES

    return max((suffix for suffix in VOLUME_SUFFIXES if path.name.lower().endswith(suffix)), key=len, default="")


def count_left_out(inputs: Iterable[Input]) -> str:
    """Returns the number of files that were left out, by suffix, as `3 left out (.cr2 1, .heic 2)`.

    With volumes, it also names the option that cuts them into slices.
    """
    paths = [item.path for item in inputs if item.left_out]
    suffixes = Counter(_volume_suffix(path) or path.suffix.lower() or "no suffix" for path in paths)
    if not suffixes:
        return "0 left out"
    kinds = ", ".join(f"{suffix} {count}" for suffix, count in sorted(suffixes.items()))
    way = "; --axis axial cuts volumes into slices" if any(map(_volume_suffix, paths)) else ""
    return f"{suffixes.total()} left out ({kinds}{way})"
