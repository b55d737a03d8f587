"""Opening and reading files: only regular files, and only up to a size limit."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from afclip_runtime.errors import UserError, shown

DOCUMENT_LIMIT = 2**26  # bytes of a JSON or YAML file
TABLE_LIMIT = 2**31  # bytes of a file of lines: a million images need about 300 MB


def open_regular(path: str | Path, *, error: type[UserError] = UserError) -> BinaryIO:
    """Opens a regular file for reading. Never blocks, as opening a named pipe would.

    Args:
        path: The file. Links are followed.
        error: Class of the error.

    Raises:
        UserError: The file does not exist, may not be read, or is a folder, a named pipe, a device or a socket.
    """
    try:
        _check_regular(os.stat(path), path, error)  # before opening, since opening alone may trigger a device
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags), "rb")
        try:
            _check_regular(os.fstat(file.fileno()), path, error)  # the file may have been replaced in between
        except UserError:
            file.close()
            raise
    except FileNotFoundError as problem:
        raise error(f"{shown(path)} does not exist.") from problem
    except (OSError, ValueError) as problem:  # ValueError: an invalid file name
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else problem
        remedy = ": allow it to be read" if isinstance(problem, PermissionError) else ""
        raise error(f"{shown(path)}: cannot be opened ({reason}{remedy}).") from problem
    return file


def _check_regular(status: os.stat_result, path: str | Path, error: type[UserError]) -> None:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket"}
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in kinds.items() if test(status.st_mode)), "a device")
        raise error(f"{shown(path)} is {kind}, not a file. Name a file, or move it away from there.")


def exposed(path: Path) -> str:
    """Returns a warning if other users of this machine may read or change a file with a secret, else ""."""
    if os.name != "posix" or not stat.S_IMODE(path.stat().st_mode) & 0o027:
        return ""
    return f"warning: {shown(path)} can be read or changed by other users of this machine: chmod 600 it."


def read_bytes(path: str | Path, *, limit: int = DOCUMENT_LIMIT, error: type[UserError] = UserError) -> bytes:
    """Returns the content of a regular file.

    Args:
        path: The file.
        limit: Maximum size of the file in bytes.
        error: Class of the error.

    Raises:
        UserError: The file cannot be opened or read, or exceeds the limit.
    """
    try:
        with open_regular(path, error=error) as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(limit + 1) if size <= limit else b""
    except OSError as problem:
        raise error(f"{shown(path)}: cannot be read ({problem.strerror or problem}).") from problem
    if max(size, len(content)) > limit:
        raise error(f"{shown(path)} has {size:,} bytes; at most {limit:,} are read. Is it the right file?")
    return content


def fingerprint(path: str | Path, *, error: type[UserError] = UserError) -> str:
    """Returns the first 16 hexadecimal digits of the SHA-256 of a file's content; see `sha256_of`."""
    return sha256_of(path, error=error)[:16]


def sha256_of(path: str | Path, *, error: type[UserError] = UserError) -> str:
    """Returns the SHA-256 of a file's content, 64 hexadecimal digits.

    Args:
        path: The file, of any size.
        error: Class of the error.

    Raises:
        UserError: The file cannot be opened or read.
    """
    digest = hashlib.sha256()
    for part in parts_of(path, error=error):
        digest.update(part)
    return digest.hexdigest()


def parts_of(path: str | Path, *, remedy: str = "", error: type[UserError] = UserError) -> Iterator[bytes]:
    """Yields the content of a file of any size in parts of 1 MiB.

    Args:
        path: The file.
        remedy: Last sentence of the message if the file cannot be read.
        error: Class of the error.

    Raises:
        UserError: The file cannot be opened or read.
    """
    try:
        with open_regular(path, error=error) as file:
            while part := file.read(2**20):
                yield part
    except OSError as problem:
        what = f"{shown(path)}: cannot be read ({problem.strerror or problem})."
        raise error(" ".join(filter(None, [what, remedy]))) from problem


def read_text(path: str | Path, *, limit: int = DOCUMENT_LIMIT, error: type[UserError] = UserError) -> str:
    r"""Returns the content of a text file in UTF-8, with line breaks as `\n` and without a byte order mark.

    Args:
        path: The file.
        limit: Maximum size of the file in bytes.
        error: Class of the error.

    Raises:
        UserError: The file cannot be read, exceeds the limit, or is not text in UTF-8. The message names the line.
    """
    content = read_bytes(path, limit=limit, error=error)
    at, what = content.find(b"\0"), "NUL"
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        at, what = problem.start, f"the byte 0x{content[problem.start]:02x}"
    if at >= 0:
        line = content.count(b"\n", 0, at) + 1
        raise error(f"{shown(path)}, line {line}: holds {what}, so it is not UTF-8 text. Save it as UTF-8.")
    return text.replace("\r\n", "\n").replace("\r", "\n")
