"""Writing files so that a crash or a full disk never leaves half of one."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from afclip_lightning.errors import UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; on success it takes the place of `path`, on failure it is removed.

    Raises:
        UserError: The disk is full or not writable; what was there before is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # two nodes may have equal process ids
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}). Free some space or choose another "
            "folder; what was there before is unchanged."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one step."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file in one step."""
    write_text(path, json.dumps(value, indent=2) + "\n")
