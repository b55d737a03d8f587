"""A disk of a few hundred kilobytes, which is soon full."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Callable[[], None]]:
    """Mounts a small disk as a new folder, and yields a function that gives it space; skips the test if not allowed.

    Args:
        folder: Where.
        kilobytes: Its size.
    """
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o"]
    try:
        subprocess.run([*options, f"size={kilobytes}k", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting a disk needs root: {error}")
    try:
        yield lambda: subprocess.run([*options, "remount,size=100m", folder], check=True)  # type: ignore[func-returns-value]
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def half_written(folder: Path) -> list[Path]:
    """Returns the temporary files that were left behind."""
    return [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".before"))]
