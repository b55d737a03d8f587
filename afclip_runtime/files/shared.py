"""File systems that several machines share: changes of another machine appear late, and the file server has its clock.

A client of a network share caches the entries of a folder, and also missing names, for up to a minute. A change that
the client itself makes in the folder refreshes the cache. On most shares a listing of the folder does so, too.
"""

import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from afclip_runtime.errors import UserError, shown

LONGEST_LAG = 60.0  # seconds; maximum time that NFS caches a folder, unless mounted with other options
LOOK = 0.5  # seconds between two checks


def refresh(folder: Path) -> float:
    """Refreshes the cached entries of a folder. For this, it creates a file there and removes it.

    Returns the current time of the file server's clock, which sets the times of files there, in seconds. If nothing can
    be written, returns the time of this machine.

    Args:
        folder: The folder. If it does not exist, the nearest existing parent is used.
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
    """Returns whether a file exists: by its name, or in the list of its folder, which a share may update sooner."""
    if path.exists():
        return True
    try:
        return path.name in os.listdir(path.parent)
    except OSError:
        return False


def wait_for(path: Path) -> None:
    """Waits up to `LONGEST_LAG` for a file that another process writes.

    Raises:
        UserError: The file has not appeared.
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
