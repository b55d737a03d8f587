"""The file of a study, a journal or a SQLite database, and the check that it stays the same one during a sweep."""

import os
from functools import cached_property
from pathlib import Path

from sqlalchemy.engine import make_url

from afclip_runtime.errors import UserError

SQLITE = (".db", ".sqlite", ".sqlite3")


class StudyFile:
    """Watches the file of a study. If it were removed or replaced, the processes of a sweep would use several studies.

    It is picklable: a worker checks that it opens the file that the launcher has opened.

    Args:
        place: Database URL or file of the study.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self._seen: tuple[int, int] | None = None  # inode and size

    @cached_property
    def url(self) -> str | None:
        """The database URL; `None` for a journal."""
        if "://" in self.place:
            return self.place
        return f"sqlite:///{self.place}" if Path(self.place).suffix in SQLITE else None

    @cached_property
    def is_sqlite(self) -> bool:
        """Whether the study is in a SQLite database."""
        return self.url is not None and make_url(self.url).get_backend_name() == "sqlite"

    @cached_property
    def path(self) -> Path | None:
        """Absolute path of the file; `None` for a database of a server or in memory."""
        if self.url is None:
            return Path(self.place).absolute()
        name = (make_url(self.url).database or ":") if self.is_sqlite else ":"
        return None if name.startswith((":", "file:")) else Path(name).absolute()

    def check(self, whole: bool = True) -> None:
        """Checks that the file is the one of the earlier checks, if there were any.

        It is not opened: when a process closes a SQLite file, it loses all of its locks on it.

        Args:
            whole: See `compare`.

        Raises:
            UserError: The file was removed, replaced or emptied.
        """
        if self.path is not None:
            self.compare(self.path.stat() if self.path.exists() else None, whole)

    def compare(self, now: os.stat_result | None, whole: bool) -> None:
        """Checks a state of the file; see `check`.

        Args:
            now: Current state; `None` if the file does not exist.
            whole: Whether the file ends with a whole change, so that nothing of it is removed from now on.

        Raises:
            UserError: The file was removed, replaced or emptied.
        """
        if self._seen is not None and (now is None or now.st_ino != self._seen[0] or now.st_size < self._seen[1]):
            raise UserError(
                f"{self.path}: was removed or exchanged while the sweep ran. Restore it, or start again with another "
                "--out."
            )
        if now is not None and whole:
            self._seen = now.st_ino, now.st_size
