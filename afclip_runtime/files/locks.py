"""Locks on files between processes of one machine, and of all machines that share a file system.

The operating system releases a lock when its process ends, also after a crash. On a network share, the file server does
this. If a machine is lost, its locks remain until the server releases them.
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

LOCK_FILE = ".lock"  # held by the process that writes into a folder
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
PATIENCE = 120.0  # seconds; longer than this package holds any lock that others wait for
WIDTH = 5  # characters of the number of attempts at the beginning of a lock file; the process that holds it follows


class Lock:
    """A lock that this process holds until the end of the `with` body, `release`, or garbage collection.

    Args:
        path: The lock file. It remains when the lock is released, unless `release` removes it.
        held: Lock of the package filelock.
    """

    def __init__(self, path: Path, held: "FileLock") -> None:
        self.path = path
        self._held = held

    @property
    def attempts(self) -> int:
        """How often the work that the lock protects was begun and not ended. The file keeps it for the next holder.

        Raises:
            WriteError: It cannot be set, for example because the disk is full.
        """
        with self.path.open("rb") as file:
            content = file.read(WIDTH).strip()
        return int(content) if content.isdigit() else 0

    @attempts.setter
    def attempts(self, count: int) -> None:
        try:
            self._write(count)
        except OSError as error:
            raise _unusable(self.path, error) from error

    def _write(self, attempts: int) -> None:
        with self.path.open("r+b", buffering=0) as file:  # in place: a process that is killed here loses no count
            file.write(f"{attempts:{WIDTH}d} {this_process()}\n".encode())
            file.truncate()

    def release(self, remove: bool = False) -> None:
        """Releases the lock.

        Args:
            remove: Whether to remove the lock file as well. Waiting processes check that the file still exists.
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
    """Returns the lock of a file, or `None` while another process holds it. The file and its folder are created.

    The file names the process that holds the lock, see `holder_of`.

    Args:
        path: The lock file. It has no other content.
        patience: Seconds to wait for the lock.

    Raises:
        WriteError: The file cannot be written.
        UserError: The file system has no locks.
    """
    from filelock import FileLock, Timeout

    # the fallback on a file system without locks is a file that remains for ever after a killed process
    held = FileLock(path, timeout=patience, thread_local=False, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except Timeout:
        return None
    except OSError as error:
        raise _unusable(path, error) from error
    lock = Lock(path, held)
    with suppress(OSError):  # a lock works also on a full disk
        lock._write(lock.attempts)
    return lock


def _unusable(path: Path, error: OSError) -> UserError:
    where = shown(path.parent)
    if error.errno in NO_LOCKS:
        return UserError(
            f"{where}: its file system has no locks ({error.strerror}), so that two processes could write there at "
            "once. Choose a folder on another one, or mount it with locks (NFS without nolock, Lustre with flock)."
        )
    reason = error.strerror or error
    return WriteError(f"{where}: cannot be written ({reason}). Choose another folder (most commands: --out).")


def wait_for_lock(path: Path) -> Lock:
    """Waits for the lock of a file that processes hold only briefly, and returns it.

    Many processes may wait. So the wait ends only when one of them has kept the lock for too long.

    Raises:
        UserError: See `take_lock`; or another process holds the lock for longer than `PATIENCE`.
    """
    while True:
        taken = _written(path)
        if (lock := take_lock(path, PATIENCE)) is not None:
            return lock
        if _written(path) == taken:
            raise UserError(
                f"{shown(path)}: {holder_of(path)} has this lock for more than {PATIENCE:g} s. Start again when it has "
                "ended; if its machine is gone, when the file server has given up its locks. Or choose another folder."
            )


def _written(path: Path) -> tuple[int, int] | None:
    """Returns a state of a lock file that each holder changes, as it writes its name."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns


def this_process() -> str:
    """Returns the number of this process and its machine, as `4711 on node07`. On SLURM the name is SLURM's."""
    return f"{os.getpid()} on {os.environ.get('SLURMD_NODENAME') or platform.node()}"


def holder_of(path: Path) -> str:
    """Returns the process that holds a lock, as `process 4711 on node07`, or `another process` if it is not known."""
    with suppress(UserError):
        if text := read_text(path, limit=1000)[WIDTH:].strip():
            return f"process {shown(text)}"
    return "another process"
