"""The output of a process that runs one thing after another: each into a file of its own."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
