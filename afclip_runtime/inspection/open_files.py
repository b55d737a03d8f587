"""Detection of files that are still open for writing. It works on local disks of Linux."""

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path

from afclip_runtime.errors import UserError
from afclip_runtime.files import read_text

LOCAL = frozenset({"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"})
MOUNTS = Path("/proc/self/mountinfo")


class LocalDisks:
    """Finds out whether a process has a file on a local disk open for writing.

    On a local disk, Linux grants a read lease unless a process has the file open for writing. It grants a lease only to
    the owner of a file and to root, so nothing is known about files of other users. On a network share, a lease may be
    denied for other reasons, so files there are not tested.
    """

    def __init__(self) -> None:
        self._devices: dict[int, bool] = {}

    def is_open_for_writing(self, path: str) -> bool:
        """Returns whether a process of this machine has a file open for writing; `False` if it is not known."""
        if sys.platform != "linux":
            return False
        import fcntl
        import signal

        try:
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            device = os.fstat(file).st_dev
            if device not in self._devices:
                self._devices[device] = _is_local(device)
            if not self._devices[device]:
                return False
            fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)  # the default signal of a broken lease ends a process
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            return error.errno == errno.EAGAIN
        finally:
            os.close(file)  # releases the lease
        return False


def _is_local(device: int) -> bool:
    """Returns whether a device is a local file system, by the mount table."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with suppress(UserError):
        for line in read_text(MOUNTS).splitlines():
            before, _, after = line.partition(" - ")
            if before.split()[2] == number:
                return after.split()[0] in LOCAL
    return False
