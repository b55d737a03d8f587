"""Files that another machine has just written, on a share whose client does not know of them yet."""

import os
import re
import threading
from pathlib import Path

import pytest

from afclip_runtime.errors import UserError
from afclip_runtime.files import is_there, refresh, shared, wait_for
from tests.support import REPOSITORY


@pytest.fixture
def late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is not there by its name until its folder has been listed, as an NFS client remembers it."""
    path, known = tmp_path / "part", set[Path]()
    exists, listdir = Path.exists, os.listdir

    def list_folder(folder: Path) -> list[str]:
        known.add(folder)
        return listdir(folder)

    monkeypatch.setattr(Path, "exists", lambda self: (self != path or self.parent in known) and exists(self))
    monkeypatch.setattr(os, "listdir", list_folder)
    return path


def test_a_file_is_found_where_only_its_folder_shows_it(late: Path) -> None:
    assert not is_there(late)
    late.write_text("")
    assert is_there(late)
    assert not is_there(late.parent / "absent" / "part")


def test_a_late_file_is_waited_for_and_one_that_never_comes_is_told(
    late: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "LOOK", 0.05)
    monkeypatch.setattr(shared, "LONGEST_LAG", 5.0)
    timer = threading.Timer(0.2, late.write_text, [""])
    timer.start()
    wait_for(late)
    timer.join()
    late.unlink()
    monkeypatch.setattr(shared, "LONGEST_LAG", 0.2)
    with pytest.raises(UserError, match=r"part has not appeared within 0.2 s\. .* the shared file system lags"):
        wait_for(late)


def test_a_look_anew_leaves_nothing_behind(tmp_path: Path) -> None:
    before = tmp_path.stat().st_mtime_ns
    refresh(tmp_path / "absent" / "folder")
    assert list(tmp_path.iterdir()) == []
    assert tmp_path.stat().st_mtime_ns > before  # which outdates what a client remembers of it


def test_no_other_code_compares_times_of_files_with_the_clock_of_this_machine() -> None:
    packages = [REPOSITORY / name for name in ("afclip_lightning", "afclip_runtime")]
    files = [path for package in packages for path in package.rglob("*.py")]
    using = {path.name for path in files if re.search(r"\btime\.time\(|datetime\.now\(\)", path.read_text("utf-8"))}
    assert using == {"shared.py", "webhook.py"}  # a webhook's receiver compares the time of its signature
