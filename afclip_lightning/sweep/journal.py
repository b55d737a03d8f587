"""The journal of a study: a file of JSON lines that Optuna appends to, one line per change."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from afclip_lightning.sweep.study_file import StudyFile
from afclip_runtime.errors import UserError
from afclip_runtime.files import open_regular


class Journal(JournalFileBackend):
    """A journal that raises an error if its file is removed or replaced while processes use it.

    Args:
        path: Absolute path of the file.
        file: Watches the file.
    """

    def __init__(self, path: Path, file: StudyFile) -> None:
        super().__init__(str(path))
        self.path = path
        self.file = file

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yields the changes from a number on.

        Raises:
            UserError: The file was replaced, or has become shorter.
        """
        now: os.stat_result | None = None
        whole = False
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            now = os.fstat(file.fileno())
            file.seek(max(0, now.st_size - 1))
            whole = file.read(1) in (b"\n", b"")
        self.file.compare(now, whole)
        yield from super().read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends changes.

        Raises:
            UserError: The file was replaced, or has become shorter. Optuna would begin a new one.
        """
        self.file.check(whole=False)
        super().append_logs(logs)


def open_journal(path: Path, file: StudyFile) -> Journal:
    """Returns a journal, a new one if there is none. A last line that a kill has cut off is removed.

    Optuna would append to such a line, and could then read neither.

    Args:
        path: Absolute path: Optuna's lock is a link to it, so a relative path would be wrong.
        file: Watches the file.

    Raises:
        UserError: A line is not an entry of a study.
    """
    if path.exists():
        lock = JournalFileSymlinkLock(str(path))
        lock.acquire()
        try:
            _mend(path)
        finally:
            lock.release()
    return Journal(path, file)


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
                f"{path}, line {number}: is not an entry of a study. Remove the line; what it says of a trial is then "
                "lost. Or start again with another --out."
            )
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
            os.fsync(file.fileno())
        print(f"{path}: the last line was cut off and is removed.", flush=True)
