"""Watching a folder: each file is reported once, when it is complete."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from afclip_runtime.errors import UserError
from afclip_runtime.inspection.watching import ROUND, SHARE, WatchedFolder

QUIET = 2.0


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Watch:
    """A watched folder, with its clock and its messages."""

    def __init__(self, folder: Path, quiet: float = QUIET, leave_out: tuple[Path, ...] = ()) -> None:
        self.said: list[str] = []
        self.clock = Clock()
        self.watched = WatchedFolder(folder, leave_out, quiet, self.said.append, clock=self.clock)

    def after(self, seconds: float) -> list[str]:
        """Returns the files that a scan after a number of seconds reports, relative to the folder."""
        self.clock.now += seconds
        return [path.relative_to(self.watched.folder).as_posix() for path in self.watched.look()]

    def settled(self) -> list[str]:
        """Returns the files that are reported when nothing changes any more."""
        return self.after(0) + self.after(QUIET)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def write(path: Path, content: str = "x", mtime: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    if mtime is not None:
        os.utime(path, (mtime, mtime))


def test_a_file_is_handed_on_after_the_quiet_time_and_once(folder: Path) -> None:
    write(folder / "before.png")
    watch = Watch(folder)
    assert watch.after(0) == []
    assert watch.after(QUIET - 0.1) == []
    assert watch.after(0.1) == ["before.png"]
    write(folder / "sub" / "deeper" / "new.png")
    assert watch.settled() == ["sub/deeper/new.png"]
    assert watch.after(1000) == []


def test_a_growing_file_waits(folder: Path) -> None:
    watch = Watch(folder)
    for length in range(1, 6):
        write(folder / "a.png", "x" * length)
        assert watch.after(QUIET) == []
    assert watch.after(QUIET) == ["a.png"]


def test_a_file_that_changes_without_growing_waits(folder: Path) -> None:
    """Like a file whose space is reserved before it is written."""
    watch = Watch(folder)
    for time in range(5):
        write(folder / "a.png", "same", mtime=time)
        assert watch.after(QUIET) == []
    assert watch.after(QUIET) == ["a.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who writes")
@pytest.mark.parametrize("quiet", [0.0, QUIET])
def test_a_file_that_someone_has_open_for_writing_waits_however_long(folder: Path, quiet: float) -> None:
    watch = Watch(folder, quiet)
    with (folder / "stalled.png").open("w") as file:
        file.write("half")
        file.flush()
        assert watch.after(0) == []
        assert watch.after(1000) == []
        with (folder / "stalled.png").open():  # a reader changes nothing
            assert watch.after(1000) == []
    assert watch.after(0) == ["stalled.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who writes")
def test_opening_a_file_for_writing_while_it_is_asked_about_ends_no_process(folder: Path) -> None:
    """A broken lease sends a signal, which by default ends the process."""
    write(folder / "a.png")
    code = """
import fcntl, os, sys, threading
from afclip_runtime.inspection import open_files
close = os.close
def slowly(number):  # the lease is held until a writer comes
    writer = threading.Thread(target=lambda: open(sys.argv[1], "a").close())
    writer.start()
    writer.join(0.5)
    close(number)
    writer.join(5)
os.close = slowly
print(open_files.LocalDisks().is_open_for_writing(sys.argv[1]))
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder / "a.png")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_without_a_quiet_time_a_file_is_handed_on_at_first_sight(folder: Path) -> None:
    write(folder / "a.png")
    assert Watch(folder, quiet=0).after(0) == ["a.png"]


def test_a_file_that_is_renamed_into_the_folder_is_handed_on_by_its_new_name(folder: Path) -> None:
    watch = Watch(folder)
    write(folder / ".a.png.tmp", "whole")
    write(folder.parent / "b.png", "whole", mtime=5)
    assert watch.settled() == []
    (folder / ".a.png.tmp").rename(folder / "a.png")
    (folder.parent / "b.png").rename(folder / "b.png")
    assert watch.settled() == ["b.png", "a.png"]  # the earliest time of change first


def test_a_replaced_file_is_handed_on_again(folder: Path) -> None:
    write(folder / "a.png", mtime=1)
    watch = Watch(folder)
    assert watch.settled() == ["a.png"]
    write(folder.parent / "next", mtime=2)
    (folder.parent / "next").replace(folder / "a.png")
    assert watch.settled() == ["a.png"]
    write(folder / "a.png", "written over", mtime=3)  # the name and the inode stay
    found = [path for _ in range(ROUND + 1) for path in watch.after(QUIET)]
    assert found == ["a.png"]


def test_a_clock_that_goes_backwards_and_times_in_the_future_do_no_harm(folder: Path) -> None:
    watch = Watch(folder)
    write(folder / "future.png", mtime=2**33)
    write(folder / "past.png", mtime=-(2**30))
    assert watch.settled() == ["past.png", "future.png"]
    write(folder / "future.png", mtime=2**32)
    found = [path for _ in range(ROUND + 1) for path in watch.after(QUIET)]
    assert found == ["future.png"]


def test_hidden_files_and_folders_that_are_left_out_are_passed_over(folder: Path) -> None:
    for name in (".hidden.png", ".hidden/a.png", "good/a.png", "bad/deep/a.png", "shown/good/a.png"):
        write(folder / name)
    watch = Watch(folder, leave_out=(folder / "good", folder / "bad"))
    assert watch.settled() == ["shown/good/a.png"]


def test_a_link_that_leads_back_is_followed_no_further(folder: Path) -> None:
    write(folder / "sub" / "a.png")
    (folder / "sub" / "again").symlink_to("..", target_is_directory=True)
    assert Watch(folder).settled() == ["sub/a.png"]


def test_a_folder_that_goes_and_comes_back_is_waited_for(folder: Path) -> None:
    write(folder / "a.png")
    watch = Watch(folder)
    assert watch.settled() == ["a.png"]
    folder.rename(folder.parent / "away")
    assert watch.after(1) == watch.after(1) == []
    assert [text for text in watch.said if "cannot be read (No such file or directory)" in text] == watch.said
    assert len(watch.said) == 1
    write(folder.parent / "away" / "b.png")
    (folder.parent / "away").rename(folder)
    assert watch.settled() == ["b.png"]
    assert watch.said[1:] == [f"{folder}: can be read again."]


def test_a_share_that_is_unmounted_hands_its_files_on_again_when_it_is_back(folder: Path) -> None:
    """Its folder is empty for a while; by the table, the files are the same."""
    write(folder / "a.png", mtime=1)
    watch = Watch(folder)
    assert watch.settled() == ["a.png"]
    shutil.move(folder / "a.png", folder.parent / "a.png")
    assert watch.after(1) == []
    shutil.move(folder.parent / "a.png", folder / "a.png")
    assert watch.settled() == ["a.png"]


def test_a_subfolder_without_permission_is_reported_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "open" / "a.png")
    write(folder / "closed" / "b.png")
    scan = os.scandir

    def scandir(place: str) -> object:
        if Path(place).name == "closed":  # the tests may run as root, whom no folder is closed to
            raise PermissionError(13, "Permission denied")
        return scan(place)

    watch = Watch(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        assert watch.settled() == ["open/a.png"]
        (said,) = watch.said
        assert said.startswith(f"{folder}/closed: cannot be read (Permission denied).")
    assert watch.settled() == ["closed/b.png"]


def test_a_look_that_takes_long_makes_the_pause_longer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(folder)
    scan = os.scandir

    def slowly(place: str) -> object:
        watch.clock.now += 3
        return scan(place)

    watch.after(0)
    assert watch.watched.pause(1) == 1
    monkeypatch.setattr(os, "scandir", slowly)
    watch.after(0)
    assert watch.watched.pause(1) == pytest.approx(3 / SHARE - 3)


def test_a_look_asks_about_few_of_the_files_that_were_handed_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(600):
        write(folder / f"{number}.png")
    watch = Watch(folder, quiet=0)
    assert len(watch.after(0)) == 600
    asked: list[str] = []
    stat: Callable[..., os.stat_result] = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: asked.append(path) or stat(path, **more))
    assert watch.after(1) == []
    assert len(asked) <= 1 + 600 / ROUND * 3
    assert [path for _ in range(ROUND - 1) for path in watch.after(1)] == []
    assert len({path for path in asked if path.endswith(".png")}) == 600  # in a round, about all of them


def test_a_folder_that_is_not_there_at_the_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Watch(tmp_path / "none")
