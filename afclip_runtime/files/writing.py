"""Atomic writing of files: a crash or a full disk never leaves half of a file."""

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from afclip_runtime.errors import UserError, WriteError, shown
from afclip_runtime.files.locks import LOCK_FILE, holder_of, take_lock


@contextmanager
def atomic_path(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to. On success it replaces `path`, on failure it is removed.

    Args:
        path: The file.
        durable: Whether to flush the file to disk first, so that a loss of power leaves the old file or the new one.
            This costs milliseconds per file. It is not needed if the reader detects an incomplete file and writes it
            again.

    Raises:
        WriteError: The disk is full or not writable. The old file is unchanged.
    """
    # two nodes may have equal process ids; the name may already have the maximum length
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path` to write to. On success it replaces `path`, on failure it is removed.

    Only one process at a time can write it. A process that is killed during the replacement may leave the old folder as
    `.NAME.….before`.

    Args:
        path: The folder. An existing folder is replaced with all of its content.

    Raises:
        WriteError: The disk is full or not writable. The old folder is unchanged.
        UserError: Another process writes the folder.
    """
    with only_writer_of(path):
        yield from _new_folder(path)


def _new_folder(path: Path) -> Iterator[Path]:
    mark = secrets.token_hex(4)
    temporary, before = (path.absolute().with_name(f".{path.name[:40]}.{mark}.{what}") for what in ("tmp", "before"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in (part for part in temporary.rglob("*") if part.is_file()):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if path.exists():
            path.rename(before)
        temporary.rename(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            if before.exists() and not path.exists():  # failed or interrupted between the two renames
                before.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        if path.exists():  # else `before` is the only copy of the old folder
            shutil.rmtree(before, ignore_errors=True)


def _cannot_write(path: Path, error: OSError) -> WriteError:
    return WriteError(
        f"{shown(path)}: cannot be written ({error.strerror or error}). Free some space or choose another folder; what "
        "was there before is unchanged."
    )


def check_writable(path: Path) -> None:
    """Creates the folder of a file, and raises early if the file could not be written later.

    Raises:
        UserError: The file cannot be written, or is a folder.
    """
    if path.is_dir():
        raise UserError(f"{shown(path)} is a folder. Name a file.")
    probe = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{shown(path)}: cannot be written ({error.strerror or error}). Choose another place."
        ) from error


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Locks a folder for this process while the body runs. The lock of a killed process is released.

    The folder and its parents are created. They are removed again if they stay empty.

    Raises:
        UserError: Another process writes there, or the folder cannot be written.
    """
    made = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        with _locked(folder / LOCK_FILE, folder):
            yield
    finally:
        with suppress(OSError):
            for part in made:
                part.rmdir()


@contextmanager
def only_writer_of(path: Path) -> Iterator[None]:
    """Locks a file, or a folder that is replaced, for this process while the body runs. The lock file is beside it.

    Raises:
        UserError: Another process writes it, or its folder cannot be written.
    """
    with _locked(path.absolute().with_name(f".{path.name[:40]}{LOCK_FILE}"), path):
        yield


@contextmanager
def _locked(lock_file: Path, what: Path) -> Iterator[None]:
    if (lock := take_lock(lock_file)) is None:
        raise UserError(
            f"{shown(what)}: another process is writing there ({holder_of(lock_file)}). Wait until it has ended, or "
            "choose another place."
        )
    try:
        yield
    finally:
        lock.release(remove=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically. Bytes of names that are not UTF-8 are escaped."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Writes a file with one JSON text per line atomically. `read_json_lines` reads it."""
    write_text(path, "".join(json.dumps(value) + "\n" for value in values))


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")
