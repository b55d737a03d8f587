"""The output of a process that runs one thing after another: each into a file of its own, and what it said there."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from afclip_runtime.errors import shown

LOOKED_AT = 2**16  # bytes at the end of a log


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Sends all output to the end of a file, that of libraries and of child processes too."""
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


def last_error(log: Path, begin: int = 0) -> str:
    """Returns what a command line said of a mistake at the end of a log; an empty text if it said nothing.

    Args:
        log: The file.
        begin: Bytes at its beginning that are not looked at.
    """
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - LOOKED_AT))
        lines = file.read(LOOKED_AT).decode(errors="backslashreplace").splitlines()
    found = [line for line in lines if line.startswith("error: ")]
    return shown(found[-1].removeprefix("error: ")) if found else ""
