"""A queue on disk of messages that wait for delivery."""

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afclip_runtime.errors import UserError, WriteError, shown

KEPT = 100_000  # delivered messages whose ids are kept, so that no message is sent again


@dataclass(frozen=True)
class Message:
    """A waiting message.

    Attributes:
        number: Number in the order of arrival.
        id: Unique id. A message that is added twice has the same id.
        body: Content, JSON in UTF-8.
    """

    number: int
    id: str
    body: bytes


class Outbox:
    """A queue on disk of messages that wait for delivery, each id once. Two threads may use it.

    It is a SQLite database in one file. After `put` has returned, a message survives a crash of the process. After
    `sync` has returned, it survives a loss of power. Memory holds one message.

    Args:
        path: The file. A missing file is created.

    Raises:
        UserError: The file is not such a database, or another process uses it.
        WriteError: The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise self._cannot_write(error) from error
        try:
            # with exclusive access, SQLite needs no shared memory, which network file systems lack
            self._run("PRAGMA locking_mode = EXCLUSIVE")
            self._run("PRAGMA journal_mode = WAL")
            self._run("PRAGMA synchronous = NORMAL")
            self._run(
                "CREATE TABLE IF NOT EXISTS messages (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, "
                "body BLOB NOT NULL, refusals INTEGER NOT NULL DEFAULT 0, delivered_at TEXT)"
            )
            self._run("CREATE INDEX IF NOT EXISTS waiting ON messages (refusals, number) WHERE delivered_at IS NULL")
            self._run(
                "DELETE FROM messages WHERE delivered_at IS NOT NULL "
                "AND number <= (SELECT max(number) FROM messages) - ?",
                (KEPT,),
            )
        except BaseException:
            self._database.close()
            raise

    def put(self, id: str, body: bytes) -> None:
        """Adds a message, unless a message with this id was added before.

        Raises:
            WriteError: It cannot be written.
        """
        self._run("INSERT OR IGNORE INTO messages (id, body) VALUES (?, ?)", (id, body))

    def next(self) -> Message | None:
        """Returns the next message to send: the first of those with the fewest refusals; `None` if none waits."""
        columns = "SELECT number, id, body FROM messages WHERE delivered_at IS NULL"
        found = self._run(f"{columns} ORDER BY refusals, number LIMIT 1")
        return Message(*found[0]) if found else None

    def delivered(self, message: Message, when: str) -> None:
        """Marks a message as delivered, and removes its body.

        Args:
            message: The message.
            when: Time of the delivery, for a reader of the file.

        Raises:
            WriteError: It cannot be written.
        """
        self._run("UPDATE messages SET delivered_at = ?, body = x'' WHERE number = ?", (when, message.number))

    def refused(self, message: Message) -> None:
        """Moves a message behind those with fewer refusals, so that one bad message does not block the others.

        Raises:
            WriteError: It cannot be written.
        """
        self._run("UPDATE messages SET refusals = refusals + 1 WHERE number = ?", (message.number,))

    def __len__(self) -> int:
        (count,) = self._run("SELECT count(*) FROM messages WHERE delivered_at IS NULL")[0]
        return int(count)

    def sync(self) -> None:
        """Flushes all messages to disk.

        Raises:
            WriteError: They cannot be written.
        """
        self._run("PRAGMA wal_checkpoint")

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._database.close()

    def _run(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock, self._explained():
            return self._database.execute(statement, values).fetchall()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise UserError(
                    f"{shown(self.path)}: another process uses it. Wait until it has ended, or choose another folder."
                ) from error
            raise self._cannot_write(error) from error
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{shown(self.path)}: is no queue of messages that can be read ({error}). Move it away: a new one is "
                "made, and the messages that waited in it are not sent."
            ) from error

    def _cannot_write(self, error: OSError | sqlite3.Error) -> WriteError:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        return WriteError(f"{shown(self.path)}: cannot be written ({reason}). Free some space, or restore the folder.")
