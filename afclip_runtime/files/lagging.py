"""Files that another machine has just written: a shared file system may show them late.

A client of a network share remembers for up to a minute that a name was not there, and asks the server again when it
lists the folder.
"""

import os
import time
from pathlib import Path

from afclip_runtime.errors import UserError, shown

LONGEST_LAG = 60.0  # seconds; NFS remembers what a folder holds for at most that long, unless it is told otherwise
LOOK = 0.5  # seconds between two looks


def is_there(path: Path) -> bool:
    """Returns whether a file is there, as the file server says; a share may take longer to know of it by itself."""
    if path.exists():
        return True
    try:
        return path.name in os.listdir(path.parent)
    except OSError:
        return False


def wait_for(path: Path, patience: float | None = None) -> None:
    """Waits for a file that another process has written or is about to.

    Args:
        path: The file.
        patience: Seconds; `LONGEST_LAG` by default.

    Raises:
        UserError: It has not appeared.
    """
    seconds = LONGEST_LAG if patience is None else patience
    deadline = time.monotonic() + seconds
    while not is_there(path):
        if time.monotonic() > deadline:
            raise UserError(
                f"{shown(path)} has not appeared within {seconds:g} s. If another machine has written it, the shared "
                "file system lags: start the same command again later."
            )
        time.sleep(min(LOOK, seconds))
