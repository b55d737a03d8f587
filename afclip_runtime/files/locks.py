"""Locks on files: which process works on what, on this machine and on all that share a file system.

The system lets go of a lock when its process ends, however it ends. On a network share that is the file server's to
notice: where a machine is lost, its locks stay until the server gives them up.
"""

import errno
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from afclip_runtime.errors import UserError, WriteError, shown
from afclip_runtime.files.reading import read_text

if TYPE_CHECKING:
    from filelock import FileLock

LOCK_FILE = ".lock"  # of the process that writes into a folder
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
PATIENCE = 120.0  # seconds; longer than any of our own holds a lock that others wait for


class Lock:
    """A lock that this process has, until the body or `release` ends it, or nothing refers to it any more.

    Args:
        held: Of the package filelock.
    """

    def __init__(self, held: "FileLock") -> None:
        self._held = held

    def release(self, remove: bool = False) -> None:
        """Lets go of the lock.

        Args:
            remove: Removes its file as well. Whoever waits for it looks whether the file is still there.
        """
        if remove:
            with suppress(OSError):
                os.unlink(self._held.lock_file)
        self._held.release()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def take_lock(path: Path, patience: float = 0) -> Lock | None:
    """Returns the lock of a file, which is made with its folder; `None` while another process has it.

    The file names the process that has the lock, see `holder_of`.

    Args:
        path: The file. Nothing else is kept in it.
        patience: Seconds to wait for it.

    Raises:
        WriteError: The file cannot be written.
        UserError: Its file system has no locks.
    """
    from filelock import FileLock, Timeout

    # its way out where a file system has no locks is a file that a killed process leaves for ever
    lock = FileLock(path, timeout=patience, thread_local=False, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        return None
    except OSError as error:
        where = shown(path.parent)
        if error.errno in NO_LOCKS:
            raise UserError(
                f"{where}: its file system has no locks ({error.strerror}), so that two processes could write there at "
                "once. Choose a folder on another one, or mount it with locks (NFS without nolock, Lustre with flock)."
            ) from error
        raise WriteError(f"{where}: cannot be written ({error.strerror or error}). Choose another folder.") from error
    with suppress(OSError):  # a full disk holds a lock all the same
        path.write_text(f"{os.getpid()} on {platform.node()}\n", encoding="utf-8")
    return Lock(lock)


def wait_for_lock(path: Path) -> Lock:
    """Returns the lock of a file that processes hold for moments only.

    Raises:
        UserError: See `take_lock`; or another process has it for longer than `PATIENCE`.
    """
    if (lock := take_lock(path, PATIENCE)) is None:
        raise UserError(
            f"{shown(path)}: {holder_of(path)} has this lock for more than {PATIENCE:g} s. Start again when it has "
            "ended; if its machine is gone, when the file server has given up its locks. Or choose another folder."
        )
    return lock


def holder_of(path: Path) -> str:
    """Returns which process has a lock, as `process 4711 on node07`; `another process` where that cannot be read."""
    with suppress(UserError):
        if text := read_text(path, limit=1000).strip():
            return f"process {shown(text)}"
    return "another process"
