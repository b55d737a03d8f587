"""Requests over a real connection: forms, truncated uploads, silence, slow bodies, and many connections."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import HTTPException

from afclip_lightning import load
from afclip_runtime.serving import connections, intake
from afclip_runtime.serving.intake import file_of_form
from afclip_runtime.serving.server import create_app
from afclip_runtime.serving.service import Limits
from tests.support.small_models import write_head
from tests.support.uploads import encoded, picture

BODY = encoded(picture())


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """A server in this process, with a short limit of silence and few connections."""
    patch = pytest.MonkeyPatch()
    patch.setattr(connections, "SILENCE", 1.0)
    patch.setattr(connections, "MOST", 20)
    patch.setattr(intake, "PATIENCE", 3)
    model = load(write_head(tmp_path_factory.mktemp("intake"), "CLIP"), device="cpu")
    app = create_app(model, Limits(queue=2), ["127.0.0.1"])
    config = uvicorn.Config(app, http=connections.PatientProtocol, ws="none", log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()
        server.should_exit = True
        thread.join(30)
    patch.undo()


def judge(address: tuple[str, int]) -> int:
    """Returns the status of an inspection."""
    return httpx.post(f"http://127.0.0.1:{address[1]}/api/inspect", content=BODY, timeout=20).status_code


def head(length: int) -> bytes:
    return f"POST /api/inspect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n".encode()


def closed(connection: socket.socket) -> bool:
    """Returns whether the server closes a connection within some seconds."""
    connection.settimeout(8)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def test_forms_are_taken(address: tuple[str, int]) -> None:
    url = f"http://127.0.0.1:{address[1]}/api/inspect"
    wanted = httpx.post(url, content=BODY).json()
    given = {"file": ("a.png", BODY, "image/png")}
    assert httpx.post(url, files=given).json() == wanted
    assert httpx.post(url, files=given, data={"note": "a field beside it"}).json() == wanted
    for files, message in (
        ([("a", ("a.png", BODY)), ("b", ("b.png", BODY))], "The form has 2 files, and one image is judged."),
        ([("a", (None, b"text"))], "The form has no file. Send the image as form field `file` (curl -F file=@"),
    ):
        answer = httpx.post(url, files=files)
        assert answer.status_code == 422
        assert message in answer.json()["detail"]
        assert "--data-binary @image.png" in answer.json()["detail"]


@pytest.mark.parametrize("boundary", [b"", b"x", b"y" * 100])
@pytest.mark.parametrize(
    "body", [b"", b"no form", b"--x\r\n", b"--x\r\nContent-Disposition: form-data; filename=a\r\n\r\nabc"]
)
def test_invalid_forms_are_reported(body: bytes, boundary: bytes) -> None:
    with pytest.raises(HTTPException) as refused:
        file_of_form(body, boundary, 100)
    assert refused.value.status_code == 422
    assert "curl" in str(refused.value.detail)


def test_a_large_file_in_a_form_is_refused() -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n' + b"y" * 101 + b"\r\n--x--\r\n"
    assert file_of_form(body, b"x", 101) == b"y" * 101
    with pytest.raises(HTTPException) as refused:
        file_of_form(body, b"x", 100)
    assert refused.value.status_code == 413


def test_an_upload_that_is_cut_off_costs_a_line(address: tuple[str, int], caplog: pytest.LogCaptureFixture) -> None:
    for part in (b"", BODY[:100]):
        with socket.create_connection(address) as connection:
            connection.sendall(head(len(BODY)) + part)
            time.sleep(0.1)
    assert judge(address) == 200
    time.sleep(0.2)
    lines = [record.getMessage() for record in caplog.records if record.name == "uvicorn.error"]
    assert lines == ["An upload was cut off after 0 bytes.", "An upload was cut off after 100 bytes."]
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"POST /api/inspect HTTP/1.1\r\nHost:"])
def test_silent_connections_are_closed(address: tuple[str, int], sent: bytes) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(sent)
        assert closed(connection)


@pytest.mark.slow
def test_silence_after_an_answer_is_closed(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"200" in connection.recv(4096)
        connection.sendall(b"GET /he")  # which stops the clock that uvicorn starts after an answer
        while part := connection.recv(4096):
            assert b"HTTP" not in part


def test_many_connections_do_not_make_it_deaf(address: tuple[str, int]) -> None:
    silent = [socket.create_connection(address) for _ in range(30)]
    assert judge(address) == 200
    for connection in silent:
        connection.close()


@pytest.mark.slow
def test_slow_bodies_hold_no_place_and_end(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "PATIENCE", 60)  # longer than `judge` waits: they have not ended when it is answered
    slow = [socket.create_connection(address) for _ in range(8)]  # four times the queue
    for connection in slow:
        connection.sendall(head(len(BODY)) + BODY[:50])
    assert judge(address) == 200
    for connection in slow:
        connection.close()
    monkeypatch.setattr(intake, "PATIENCE", 1)
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(head(len(BODY)) + BODY[:50])
        assert b"408" in connection.recv(200)


def test_half_read_bodies_are_bounded(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        headers: ClassVar[dict[str, str]] = {}

        async def stream(self) -> object:
            for _ in range(3):
                yield b"x" * 400
                await asyncio.sleep(0.01)

    async def many(count: int) -> list[object]:
        taken = intake.Intake(2000)
        found = await asyncio.gather(*(taken.image(Slow()) for _ in range(count)), return_exceptions=True)  # type: ignore[arg-type]
        assert taken.arriving == 0
        return list(found)

    monkeypatch.setattr(intake, "ARRIVING", 0)
    assert asyncio.run(many(2)) == [b"x" * 1200] * 2
    refused = [one for one in asyncio.run(many(8)) if isinstance(one, HTTPException)]
    assert refused
    assert {one.status_code for one in refused} == {503}


@pytest.mark.slow
def test_damaged_images_are_not_a_fault_of_the_server(address: tuple[str, int]) -> None:
    url = f"http://127.0.0.1:{address[1]}/api/inspect"
    rng = np.random.default_rng(0)
    bodies = [encoded(picture(), kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")]
    for body in bodies:
        for _ in range(4):
            damaged = bytearray(body)
            for place in rng.integers(0, len(body), 20):
                damaged[place] = rng.integers(0, 256)
            for content in (bytes(damaged), body[: rng.integers(1, len(body))]):
                answer = httpx.post(url, content=content, timeout=20)
                assert answer.status_code in (200, 422), answer.text
    assert httpx.post(url, content=Path(__file__).read_bytes()).status_code == 422
