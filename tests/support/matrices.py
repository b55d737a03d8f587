"""A working folder for a benchmark."""

from pathlib import Path

import pytest

from tests.support import REPOSITORY


def enter(folder: Path, matrix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a folder with the project's configs and a matrix, `matrix.yaml`, the working folder of a test."""
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    (folder / "matrix.yaml").write_text(matrix)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("AFCLIP_DATA", raising=False)
