"""A file system that several machines share: it shows late what another one has just written, and has its own clock.

A client of a network share caches for up to a minute what a folder holds, and that a name was not there. What it
changes there itself, and for most shares a listing, makes it ask the file server again.
"""

import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from afclip_runtime.errors import UserError, shown

LONGEST_LAG = 60.0  # seconds; NFS caches the content of a folder for at most that long, unless it is mounted otherwise
LOOK = 0.5  # seconds between two looks


def refresh(folder: Path) -> float:
    """Makes the system ask the file server anew what a folder holds, by a file that is made there and removed.

    Returns the time by the clock that times of files there are from, in seconds; that of this machine where nothing can
    be written.

    Args:
        folder: The folder. If it is not there, the next one above it is taken.
    """
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    probe = folder / f".{secrets.token_hex(8)}.tmp"
    now = time.time()
    with suppress(OSError):
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
    return now


def is_there(path: Path) -> bool:
    """Returns whether a file is there by its name, or in the list of its folder, which a share may know sooner."""
    if path.exists():
        return True
    try:
        return path.name in os.listdir(path.parent)
    except OSError:
        return False


def wait_for(path: Path) -> None:
    """Waits for a file that another process has written or is about to, for `LONGEST_LAG`.

    Raises:
        UserError: It has not appeared.
    """
    deadline = time.monotonic() + LONGEST_LAG
    while not is_there(path):
        if time.monotonic() > deadline:
            raise UserError(
                f"{shown(path)} has not appeared within {LONGEST_LAG:g} s. If another machine has written it, the "
                "shared file system lags: start the same command again later. If it was removed, choose another "
                "folder."
            )
        time.sleep(LOOK)
