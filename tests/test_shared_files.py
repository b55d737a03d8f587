"""Files that another machine has just written, on a share whose client has not seen them yet."""

import ast
import os
import threading
from pathlib import Path

import pytest

from afclip_runtime.errors import UserError
from afclip_runtime.files import is_there, refresh, shared, wait_for
from tests.support import REPOSITORY


@pytest.fixture
def late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that does not exist by its name until its folder is listed, as with the cache of an NFS client."""
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


def test_a_refresh_leaves_nothing_behind(tmp_path: Path) -> None:
    before = tmp_path.stat().st_mtime_ns
    refresh(tmp_path / "absent" / "folder")
    assert list(tmp_path.iterdir()) == []
    assert tmp_path.stat().st_mtime_ns > before  # which outdates what a client remembers of it


CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
CLOCKS |= {"time.localtime", "time.gmtime", "time.ctime", "time.strftime"}
USES = {  # of the clock that people read. It may be wrong on each machine, so that nothing is decided by it
    "afclip_runtime/files/shared.py": "the time of a folder that nobody can write into",
    "afclip_runtime/inspection/webhook.py": "a signature, which the receiver compares with its clock; dates in files",
    "afclip_runtime/inspection/calibration.py": "a date in a file",
    "afclip_runtime/inspection/feedback.py": "a date in a file",
    "afclip_runtime/serving/service.py": "since when drift is shown",
    "afclip_lightning/engine/run_folder.py": "a date in a file, and in the name of a folder",
    "afclip_lightning/heads/pack.py": "a date in a file",
    "afclip_lightning/cli/knowledge.py": "a date in a file",
}


def clocks_read(tree: ast.AST) -> set[str]:
    """Returns which clocks of `CLOCKS` a file names, however it imports them."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(".".join(ast.unparse(node).split(".")[-2:]))
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found & CLOCKS


@pytest.mark.parametrize(
    "text",
    ["import time\ntime.time()", "from time import time as now", "x = datetime.datetime.now(utc)", "date.today()"],
)
def test_a_clock_is_found_however_it_is_imported(text: str) -> None:
    assert len(clocks_read(ast.parse(text))) == 1


def test_no_wait_and_no_comparison_depends_on_the_clock_of_a_machine() -> None:
    """Waits are measured with `time.monotonic`, and times of files are compared with each other."""
    files = [path for name in ("afclip_lightning", "afclip_runtime") for path in (REPOSITORY / name).rglob("*.py")]
    using = {
        path.relative_to(REPOSITORY).as_posix()
        for path in files
        if clocks_read(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert using == USES.keys(), "time.monotonic measures; a date of a file needs a line in USES"
