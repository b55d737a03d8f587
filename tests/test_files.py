"""Writing in one step: what was there before stays until the new file is whole."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from afclip_lightning.errors import UserError
from afclip_lightning.files import LOCK_FILE, atomic_path, only_writer, write_json, write_text


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


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with only_writer(folder):
        with pytest.raises(UserError, match="run: another process is writing there"), only_writer(folder):
            pytest.fail("two writers")
        (folder / "table.csv").write_text("")
    assert [path.name for path in folder.iterdir()] == ["table.csv"]
    with only_writer(folder), only_writer(tmp_path / "other"):
        pass
    assert not (tmp_path / "other").exists()  # nothing was written there
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written"), only_writer(tmp_path / "file"):
        pytest.fail("a file is no folder")


def test_a_killed_writer_leaves_its_folder_free(tmp_path: Path) -> None:
    hold = "import sys, time, pathlib\nfrom afclip_lightning.files import only_writer\n"
    hold += "with only_writer(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    process = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process"), only_writer(tmp_path):
            pytest.fail("two writers")
    finally:
        process.kill()
        process.wait()
    with only_writer(tmp_path):
        assert (tmp_path / LOCK_FILE).exists()
