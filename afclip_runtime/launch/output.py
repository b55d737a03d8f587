"""Redirection of a process's output to log files, and the last error in a log."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from afclip_runtime.errors import UserError, shown
from afclip_runtime.launch.signals import STOPPED, StoppedError

LOOKED_AT = 2**16  # bytes at the end of a log


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Appends all output to a file, including that of libraries and child processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = [os.dup(1), os.dup(2)]
    with path.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        with suppress(OSError):  # the disk is full
            sys.stdout.flush()
        with suppress(OSError):
            sys.stderr.flush()
        for number, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, number)
            os.close(kept)


def check_exit_code(code: int, log: Path, begin: int) -> None:
    """Turns the exit code of a command that ran in this process into an exception.

    Args:
        code: The exit code.
        log: Log of the command, with its error message.
        begin: Size of the log before the command, in bytes.

    Raises:
        StoppedError: A signal stopped the command.
        UserError: The command failed. The message has its exit code and its last error.
    """
    if code == STOPPED:
        raise StoppedError
    if code:
        said = last_error(log, begin)
        raise UserError(f"exit code {code}{': ' * bool(said)}{said}")


def last_error(log: Path, begin: int = 0) -> str:
    """Returns the last error message of a command in its log; empty without a message.

    Args:
        log: The file.
        begin: Number of bytes to skip at the beginning.
    """
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - LOOKED_AT))
        lines = file.read(LOOKED_AT).decode(errors="backslashreplace").splitlines()
    found = [line for line in lines if line.startswith("error: ")]
    return shown(found[-1].removeprefix("error: ")) if found else ""
