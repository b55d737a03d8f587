"""Whether a file is still being written, where the system can tell: on the local disks of Linux."""

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
    """The disks of this machine, asked whether a process has a file open for writing.

    A read lease is granted on such a disk unless someone has the file open for writing. It is granted to the owner of a
    file and to root; of files of others, nothing is known. On a network share it may be denied for other reasons, so
    files there are not asked about.
    """

    def __init__(self) -> None:
        self._devices: dict[int, bool] = {}

    def is_open_for_writing(self, path: str) -> bool:
        """Returns whether a process of this machine has a file open for writing; `False` where none can tell."""
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
            fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)  # by default the signal of a broken lease ends a process
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            return error.errno == errno.EAGAIN
        finally:
            os.close(file)  # which gives the lease back
        return False


def _is_local(device: int) -> bool:
    """Returns whether a device is a file system of this machine, by the table of mounts."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with suppress(UserError):
        for line in read_text(MOUNTS).splitlines():
            before, _, after = line.partition(" - ")
            if before.split()[2] == number:
                return after.split()[0] in LOCAL
    return False
