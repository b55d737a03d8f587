"""Signs of life of a command that runs for months: for systemd, and for the health check of a container."""

import math
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from afclip_runtime.errors import UserError, shown
from afclip_runtime.files import read_text

FILE = ".alive"
"""Of a folder of results: milliseconds of the machine's monotonic clock at the last sign of life."""


def notify(state: str) -> None:
    """Tells systemd a state of this service, as its sd_notify(3) does; tells nobody where systemd did not start it.

    Args:
        state: `READY=1`, `WATCHDOG=1` or `STOPPING=1`.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    if address.startswith("@"):  # a name that lies in no folder
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), address)


class Heartbeat:
    """Signs of life of what writes into a folder; a full disk or a folder that is gone does not stop it.

    The clock is the monotonic one, which all processes of a machine share until it starts anew: whoever sets the time
    neither hides a dead process nor makes a living one look dead.

    Args:
        folder: Where the results lie.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._ready = False

    def beat(self) -> None:
        """Gives a sign of life; the first also says that the service is ready."""
        if not self._ready:
            notify("READY=1")
            self._ready = True
        notify("WATCHDOG=1")
        text = f"{math.floor(1000 * time.monotonic()):020d}\n".encode()  # of one length, for a full disk takes it too
        with suppress(OSError):
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
            try:
                os.write(file, text)
            finally:
                os.close(file)


def check_alive(folder: Path, within: float) -> float:
    """Returns how many seconds ago what writes into a folder gave a sign of life.

    Args:
        folder: Where its results lie.
        within: Most seconds.

    Raises:
        UserError: It gave none, or a longer time ago, or before the machine started.
    """
    path = folder / FILE
    if not path.exists():
        raise UserError(f"{shown(folder)}: no watcher has written there. Name the --out of `inspect --watch`.")
    text = read_text(path, limit=64).strip()
    try:
        age = time.monotonic() - int(text) / 1000
    except ValueError as error:
        raise UserError(f"{shown(path)}: holds no time. Remove it; a running watcher writes it anew.") from error
    if age < 0:
        raise UserError(
            f"{shown(folder)}: the last sign of life is of before this machine started. Is the watcher running?"
        )
    if age > within:
        past = f"{age:.0f} seconds ago; at most {within:g} are allowed"
        raise UserError(f"{shown(folder)}: the last sign of life was {past}. Is the watcher running?")
    return age
