"""Writing in one step: what was there before stays until the new file is whole."""

import errno
from pathlib import Path

import pytest

from afclip_lightning.errors import UserError
from afclip_lightning.files import atomic_path, write_json, write_text


def fail_halfway(path: Path, error: BaseException) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise error


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep/results.csv"
    write_text(path, "old")
    with pytest.raises(UserError, match=r"results\.csv: cannot be written \(No space left"):
        fail_halfway(path, OSError(errno.ENOSPC, "No space left on device"))
    assert path.read_text() == "old"
    with pytest.raises(KeyboardInterrupt):
        fail_halfway(path, KeyboardInterrupt())
    assert [p.name for p in path.parent.iterdir()] == ["results.csv"]
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n  "a": 1\n}\n'


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"table\.csv: cannot be written"):
        write_text(tmp_path / "file/table.csv", "x")
