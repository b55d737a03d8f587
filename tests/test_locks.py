"""Locks on files: one process at a time, released at its end, and an error on file systems without locks."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from afclip_runtime.errors import UserError
from afclip_runtime.files import holder_of, locks, new_folder, only_writer, only_writer_of, take_lock, wait_for_lock

HOLD = """
import sys, time, pathlib
from afclip_runtime.files import take_lock
lock = take_lock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_ends_with_its_process_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "unit" / "lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert take_lock(path) is None
        assert holder_of(path) == f"process {process.pid} on {os.uname().nodename}"
        monkeypatch.setattr(locks, "PATIENCE", 0.2)
        with pytest.raises(UserError, match=rf"lock: process {process.pid} on .* has this lock for more than 0.2 s"):
            wait_for_lock(path)
    finally:
        process.kill()
        process.wait()
    lock = take_lock(path)
    assert lock is not None
    with lock:
        assert holder_of(path).startswith(f"process {os.getpid()} on ")
    with wait_for_lock(path):
        assert take_lock(path) is None


def test_a_lock_that_others_have_in_turn_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.4)
    path = tmp_path / "lock"
    begun = threading.Event()

    def hold() -> None:
        for _ in range(8):
            with take_lock(path, 10) or pytest.fail("it was taken"):
                begun.set()
                time.sleep(0.2)

    holders = threading.Thread(target=hold)
    holders.start()
    begun.wait()
    start = time.monotonic()
    with wait_for_lock(path):
        assert time.monotonic() - start < 10
    holders.join()


def test_attempts_are_kept_for_the_next_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for attempts in (0, 1, 12):
        lock = take_lock(path)
        assert lock is not None
        with lock:
            assert lock.attempts == attempts
            lock.attempts = 12 if attempts else 1
            assert holder_of(path).startswith(f"process {os.getpid()} on ")
            assert take_lock(path) is None  # reading and writing the file does not release it


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_gives_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    for take in (lambda: take_lock(tmp_path / "lock"), lambda: only_writer(tmp_path).__enter__()):
        with pytest.raises(UserError, match=r"its file system has no locks .* mount it with locks"):
            take()


def test_a_folder_that_is_replaced_and_a_file_have_one_writer(tmp_path: Path) -> None:
    with new_folder(tmp_path / "bundle") as temporary:
        (temporary / "a").write_text("first")
        with (
            pytest.raises(UserError, match="bundle: another process"),
            new_folder(tmp_path / "bundle"),
        ):
            pytest.fail("two writers")
    with only_writer_of(tmp_path / "weights"):
        with pytest.raises(UserError, match="weights: another process"), only_writer_of(tmp_path / "weights"):
            pytest.fail("two writers")
        with only_writer_of(tmp_path / "others"):
            pass
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["bundle", "bundle/a"]
