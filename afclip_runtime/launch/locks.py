"""Locks on a shared file system. A lock ends with its process, also after a crash."""

import errno
import os
from pathlib import Path

from afclip_runtime.errors import UserError, shown

_held: set[str] = set()  # system locks belong to the process: a second claim in the same process would succeed


class Lock:
    """A lock that this process holds. It is a context manager that releases the lock.

    Args:
        path: Lock file. It is kept after the release, since removing it could remove the file of the next holder.
        descriptor: Descriptor of the open file. Closing another descriptor of the file would also release the lock.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor
        _held.add(os.path.abspath(path))

    @property
    def attempts(self) -> int:
        """Number of attempts that did not end. It is stored in the lock file, and passed from holder to holder."""
        assert self._descriptor is not None
        content = os.pread(self._descriptor, 16, 0)
        return int(content) if content.isdigit() else 0

    @attempts.setter
    def attempts(self, count: int) -> None:
        assert self._descriptor is not None
        try:
            os.ftruncate(self._descriptor, 0)
            if count > 0:
                os.pwrite(self._descriptor, b"%d" % count, 0)
        except OSError as error:
            raise _unusable(self.path, error) from error

    def release(self) -> None:
        """Releases the lock. A second call does nothing."""
        if self._descriptor is not None:
            _held.discard(os.path.abspath(self.path))
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *problem: object) -> None:
        self.release()


def try_lock(path: Path, wait: bool = False) -> Lock | None:
    """Takes a lock. Returns `None` while a living process holds it.

    Args:
        path: Lock file. A missing file is created, with its folder.
        wait: Whether to wait until the lock is free. Not allowed for a lock that this process holds.

    Raises:
        UserError: The file cannot be created, or the file system has no locks.
    """
    import fcntl

    if os.path.abspath(path) in _held:
        if wait:
            raise RuntimeError(f"{path}: this process would wait for itself.")
        return None
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        try:
            descriptor = os.open(path, flags, 0o666)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, flags, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            os.close(descriptor)
            raise
    except (BlockingIOError, PermissionError) as error:
        if error.errno == errno.EAGAIN or (error.errno == errno.EACCES and os.access(path, os.W_OK)):
            return None  # POSIX allows either error for a lock of another process
        raise _unusable(path, error) from error
    except OSError as error:
        raise _unusable(path, error) from error
    return Lock(path, descriptor)


def _unusable(path: Path, error: OSError) -> UserError:
    if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
        return UserError(
            f"{shown(path)}: its file system has no locks ({error.strerror}), which workers need to share work. "
            "Mount it with locks (NFS: without nolock; Lustre: with flock), or choose another --out."
        )
    return UserError(f"{shown(path)}: cannot be used ({error.strerror or error}). Choose another --out.")
