"""Heartbeats of a long-running command, for systemd and for the health check of a container."""

import math
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from afclip_runtime.errors import UserError, shown
from afclip_runtime.files import read_text

FILE = ".alive"
"""File in a folder of results. It holds the time of the last heartbeat, in ms of the machine's monotonic clock."""


def notify(state: str) -> None:
    """Reports a state of this service to systemd, like sd_notify(3). Does nothing if systemd did not start it.

    Args:
        state: `READY=1`, `WATCHDOG=1` or `STOPPING=1`.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    if address.startswith("@"):  # an abstract socket, without a file
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), address)


class Heartbeat:
    """Heartbeat of the process that writes into a folder. A full disk or a missing folder does not stop the process.

    It uses the monotonic clock, which all processes of a machine share until a restart. A change of the system time
    therefore neither hides a dead process nor makes a living process look dead.

    Args:
        folder: Folder of the results.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._ready = False

    def beat(self) -> None:
        """Writes a heartbeat. The first one also reports that the service is ready."""
        if not self._ready:
            notify("READY=1")
            self._ready = True
        notify("WATCHDOG=1")
        text = f"{math.floor(1000 * time.monotonic()):020d}\n".encode()  # fixed length: fits a full disk
        with suppress(OSError):
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
            try:
                os.write(file, text)
            finally:
                os.close(file)


def check_alive(folder: Path, within: float) -> float:
    """Returns the age in seconds of the last heartbeat of the process that writes into a folder.

    Args:
        folder: Folder of its results.
        within: Maximum age in seconds.

    Raises:
        UserError: There is no heartbeat, or it is older, or it is from before the machine started.
    """
    path = folder / FILE
    if not path.exists():
        raise UserError(f"{shown(folder)}: no watcher has written there. Name the --out of `inspect --watch`.")
    text = read_text(path, limit=64).strip()
    try:
        age = time.monotonic() - int(text) / 1000
    except ValueError as error:
        raise UserError(f"{shown(path)}: contains no time. Remove it: a running watcher writes it again.") from error
    if age < 0:
        raise UserError(
            f"{shown(folder)}: the last sign of life is from before this machine started. Is the watcher running?"
        )
    if age > within:
        past = f"{age:.0f} seconds ago; at most {within:g} are allowed"
        raise UserError(f"{shown(folder)}: the last sign of life was {past}. Is the watcher running?")
    return age
