"""The journal of a study: a file of JSON lines that Optuna appends to, one line per change."""

import json
import os
from pathlib import Path

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from afclip_runtime.errors import UserError
from afclip_runtime.files import open_regular


def open_journal(path: Path) -> JournalFileBackend:
    """Returns a journal, a new one if there is none; a last line that a kill has cut off is removed.

    Optuna would append to such a line, and could then read neither.

    Raises:
        UserError: A line is no change of a study.
    """
    path = path.absolute()  # Optuna's lock is a link to it, which leads nowhere from a path relative to another folder
    if path.exists():
        lock = JournalFileSymlinkLock(str(path))
        lock.acquire()
        try:
            _mend(path)
        finally:
            lock.release()
    return JournalFileBackend(str(path))


def _mend(path: Path) -> None:
    with open_regular(path) as file:
        content = file.read()
    whole = content.rfind(b"\n") + 1
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            is_change = isinstance(json.loads(line)["op_code"], int)
        except (ValueError, LookupError, TypeError, RecursionError):
            is_change = False
        if not is_change:
            raise UserError(
                f"{path}, line {number}: is no change of a study. Remove the line, and what it said of a trial is "
                "lost; or begin anew with another --out."
            )
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
            os.fsync(file.fileno())
        print(f"{path}: the last line was cut off and is removed.", flush=True)
