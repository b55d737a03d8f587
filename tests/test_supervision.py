"""Heartbeats: messages to systemd, health checks, and changed clocks."""

import socket
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from afclip_runtime.cli.health import main
from afclip_runtime.errors import UserError
from afclip_runtime.supervision import FILE, Heartbeat, check_alive, notify


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = "@afclip-" + tmp_path.name if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        pulse = Heartbeat(tmp_path)
        pulse.beat()
        pulse.beat()
        assert [manager.recv(99) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
    notify("READY=1")  # no process listens any more


def test_a_watcher_lives_as_long_as_it_gives_signs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path)]) == 2
    assert f"{tmp_path}: no watcher has written there. Name the --out of `inspect --watch`." in capsys.readouterr().err
    pulse = Heartbeat(tmp_path)
    for _ in range(2):
        pulse.beat()
        assert main(["--out", str(tmp_path)]) == 0
        assert capsys.readouterr().out.startswith("alive 0.")
    assert (tmp_path / FILE).read_text().count("\n") == 1
    time.sleep(0.05)
    assert main(["--out", str(tmp_path), "--within", "0.01"]) == 2
    assert "the last sign of life was 0 seconds ago; at most 0.01 are allowed" in capsys.readouterr().err


def test_a_clock_that_is_set_back_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    Heartbeat(tmp_path).beat()
    assert check_alive(tmp_path, 60) < 60
    (tmp_path / FILE).write_text(f"{1000 * int(time.monotonic() + 3600):020d}\n")  # before a restart
    with pytest.raises(UserError, match="before this machine started"):
        check_alive(tmp_path, 60)
    for text in ("", "nan", "inf", "yesterday"):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(UserError, match="contains no time"):
            check_alive(tmp_path, 60)


def test_a_full_disk_or_a_folder_that_is_gone_does_not_stop_a_watcher(tmp_path: Path) -> None:
    Heartbeat(tmp_path / "gone").beat()
    (tmp_path / FILE).symlink_to("/dev/full")
    Heartbeat(tmp_path).beat()


def test_an_address_that_is_not_a_page_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # answers 501, since it does not support GET
        thread = Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/healthy"
        assert main(["--url", url]) == 2
        thread.join()
    assert f"{url} answers with 501, not with 200." in capsys.readouterr().err


def test_a_page_that_does_not_answer_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/health"
        assert main(["--url", url, "--within", "0.2"]) == 2  # it listens and sends nothing
    assert f"{url} does not answer" in capsys.readouterr().err
    assert main(["--url", url]) == 2
    assert main(["--url", "file:///etc/passwd"]) == 2
    assert "is not the address of a page" in capsys.readouterr().err
