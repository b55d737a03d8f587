"""Moving inspected files: nothing is overwritten or lost, and interrupted moves are completed."""

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from afclip_runtime.errors import UserError, WriteError
from afclip_runtime.inspection.moving import Destinations, ReplacedError, State, TakenError, finish, free_path, move


def write(path: Path, content: str) -> State:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path.stat().st_size, path.stat().st_mtime_ns


def files(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if not p.is_dir()}


@pytest.fixture
def other_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder `good` is on another file system."""
    replace = os.replace

    def across(source: Any, target: Any) -> None:
        if Path(target).parent.name == "good" and Path(source).parent.name != "good":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", across)


@pytest.fixture(params=["one disk", "two disks"])
def disks(request: pytest.FixtureRequest) -> None:
    if request.param == "two disks":
        request.getfixturevalue("other_disk")


@pytest.mark.usefixtures("disks")
def test_a_file_moves_with_its_time(tmp_path: Path) -> None:
    state = write(tmp_path / "in" / "a.png", "a")
    move(tmp_path / "in" / "a.png", tmp_path / "good" / "a.png", state)
    assert files(tmp_path) == {"good/a.png": "a"}
    assert (tmp_path / "good" / "a.png").stat().st_mtime_ns == state[1]


def test_a_file_moves_to_a_disk_that_is_really_another(tmp_path: Path) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one disk only")
    state = write(tmp_path / "in" / "a.png", "a")
    with tempfile.TemporaryDirectory(dir=shared) as other:
        move(tmp_path / "in" / "a.png", Path(other) / "good" / "a.png", state)
        assert files(Path(other)) == {"good/a.png": "a"}
        assert (Path(other) / "good" / "a.png").stat().st_mtime_ns == state[1]
    assert files(tmp_path) == {}


@pytest.mark.usefixtures("disks")
def test_no_file_is_overwritten(tmp_path: Path) -> None:
    state = write(tmp_path / "in" / "a.png", "new")
    write(tmp_path / "good" / "a.png", "old")
    write(tmp_path / "good" / "a_2.png", "old too")
    before = files(tmp_path)
    with pytest.raises(TakenError):
        move(tmp_path / "in" / "a.png", tmp_path / "good" / "a.png", state)
    assert files(tmp_path) == before
    assert free_path(tmp_path / "good" / "a.png") == tmp_path / "good" / "a_3.png"
    assert free_path(tmp_path / "good" / "b.png") == tmp_path / "good" / "b.png"


@pytest.mark.usefixtures("disks")
def test_a_file_that_was_replaced_after_its_verdict_stays(tmp_path: Path) -> None:
    state = write(tmp_path / "in" / "a.png", "judged")
    write(tmp_path / "in" / "a.png", "another")
    with pytest.raises(ReplacedError):
        move(tmp_path / "in" / "a.png", tmp_path / "good" / "a.png", state)
    assert files(tmp_path) == {"in/a.png": "another"}


def test_a_file_that_is_replaced_during_the_move_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = write(tmp_path / "in" / "a.png", "judged")
    replace = os.replace

    def late(source: Any, target: Any) -> None:
        if Path(source).parent.name == "in":
            write(Path(source), "another")
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    with pytest.raises(ReplacedError):
        move(tmp_path / "in" / "a.png", tmp_path / "good" / "a.png", state)
    assert files(tmp_path) == {"in/a.png": "another"}


@pytest.mark.usefixtures("disks")
def test_a_link_is_moved_as_its_target(tmp_path: Path) -> None:
    state = write(tmp_path / "store" / "a.png", "a")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to("../store/a.png")
    move(tmp_path / "in" / "a.png", tmp_path / "good" / "a.png", state)
    assert files(tmp_path) == {"good/a.png": "a", "store/a.png": "a"}
    assert not (tmp_path / "good" / "a.png").is_symlink()


@pytest.mark.usefixtures("other_disk")
def test_a_full_disk_leaves_the_file_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = write(tmp_path / "in" / "a.png", "a")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(WriteError, match=r"good/a\.png.*No space left"):
            move(tmp_path / "in" / "a.png", tmp_path / "good" / "a.png", state)
    assert files(tmp_path) == {"in/a.png": "a"}
    finish(tmp_path / "in" / "a.png", tmp_path / "good" / "a.png", state)
    assert files(tmp_path) == {"good/a.png": "a"}


class Kill(BaseException):
    """Simulates a kill: nothing after it reaches the file system."""


@pytest.mark.usefixtures("disks")
@pytest.mark.parametrize("step", range(8))
def test_a_move_that_was_killed_at_any_step_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Each call that changes the disk is once the last one before a kill."""
    state = write(tmp_path / "in" / "a.png", "content")
    (tmp_path / "good").mkdir()
    calls = iter(range(100))

    def until(call: Any) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            if next(calls) >= step:
                raise Kill
            return call(*args, **options)

        return run

    with monkeypatch.context() as patch:
        for owner, name in ((os, "replace"), (os, "unlink"), (os, "utime"), (shutil, "copyfile"), (os, "open")):
            patch.setattr(owner, name, until(getattr(owner, name)))
        for name in ("replace", "unlink"):
            patch.setattr(Path, name, until(getattr(Path, name)))
        try:
            move(tmp_path / "in" / "a.png", tmp_path / "good" / "a.png", state)
        except Kill:
            pass
        else:
            assert step > 1
    assert "content" in files(tmp_path).values()
    finish(tmp_path / "in" / "a.png", tmp_path / "good" / "a.png", state)
    finish(tmp_path / "in" / "a.png", tmp_path / "good" / "a.png", state)
    assert files(tmp_path) == {"good/a.png": "content"}


def test_a_move_is_not_ended_onto_another_file(tmp_path: Path) -> None:
    state = write(tmp_path / "in" / "a.png", "judged")
    write(tmp_path / "good" / "a.png", "foreign")
    with pytest.raises(TakenError):
        finish(tmp_path / "in" / "a.png", tmp_path / "good" / "a.png", state)
    write(tmp_path / "in" / "a.png", "new one")
    with pytest.raises(ReplacedError):
        finish(tmp_path / "in" / "a.png", tmp_path / "good" / "b.png", state)
    assert files(tmp_path) == {"in/a.png": "new one", "good/a.png": "foreign"}


def test_destinations_are_two_or_three_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = Destinations.read("good/, bad/", Path("in"))
    assert found == Destinations(Path("good"), Path("bad"))
    assert (found.of("normal"), found.of("anomalous"), found.of(None)) == (Path("good"), Path("bad"), None)
    found = Destinations.read("in/good,in/bad,in/unread", Path("in"))
    assert found.of(None) == Path("in/unread")
    for text in ("good", "good,", "a,b,c,d", "good,good/", "good,./good", "in,bad", "good,.", "good,.."):
        with pytest.raises(UserError, match="--move_to"):
            Destinations.read(text, Path("in"))
