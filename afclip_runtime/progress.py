"""Progress of long work on standard error: a bar on a terminal, else a line every 30 seconds for logs and pipes."""

import io
import sys
import threading
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines


class _Lines(tqdm):  # type: ignore[type-arg]
    """Progress as whole lines, also while nothing is counted: one shard may take minutes."""

    def __init__(self, items: Iterable[Any] | None, total: int | None, unit: str, desc: str | None) -> None:
        self.ended = threading.Event()
        self.log = sys.stderr
        super().__init__(items, desc, total, unit=unit, smoothing=0, ncols=0, file=io.StringIO())
        threading.Thread(target=self._print, daemon=True).start()

    def _print(self) -> None:
        while not self.ended.wait(EVERY):
            print(str(self).strip(), file=self.log, flush=True)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Shows nothing, in place of a bar at each update."""
        return True

    def close(self) -> None:
        """Ends the lines."""
        self.ended.set()
        super().close()


def progress_of(
    items: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    unit: str = "images",
    desc: str | None = None,
    silent: bool = False,
) -> "tqdm[Any]":
    """Returns a progress bar, or lines if standard error is no terminal. Short work prints no line.

    Args:
        items: Items to iterate over. Without them, `update` of the result counts.
        total: Their number; `None` if it is not known.
        unit: Plural noun of an item.
        desc: Text before the numbers.
        silent: Whether to show nothing.
    """
    if silent:
        return tqdm(items, disable=True)
    if sys.stderr.isatty():
        return tqdm(items, desc, total, unit=f" {unit}", smoothing=0)
    return _Lines(items, total, f" {unit}", desc)
