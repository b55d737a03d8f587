"""A server on this machine that answers as Hugging Face's hub does, and cuts connections when told to."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Hub(ThreadingHTTPServer):
    """The server.

    Attributes:
        files: Content by `ORG/NAME/FILE`.
        cuts: After how many bytes of the body each next answer ends, the first first; empty for whole answers.
        resumes: Whether a range of a file may be asked for.
        hashes: Stated hashes of files, if they differ from the real ones.
        asked: The method, the path and the range of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.resumes = True
        self.hashes: dict[str, str] = {}
        self.asked: list[tuple[str, str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Reports no connections that a test has cut."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.close_connection = True
        hub, asked = self.server, self.headers.get("Range")
        hub.asked.append((self.command, self.path, asked))
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path)
        name = "/".join(match.groups()) if match else ""
        if name not in hub.files:
            self.send_response(404)
            self.send_header("Connection", "close")
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = hub.files[name]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and hub.resumes else 0
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Connection", "close")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        digest = hub.hashes.get(name, hashlib.sha256(content).hexdigest())
        self.send_response(206 if start else 200)
        self.send_header("Connection", "close")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            cut = hub.cuts.pop(0) if hub.cuts else len(content)
            self.wfile.write(content[start : start + cut])

    def log_message(self, *args: object) -> None:
        """Logs nothing."""


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Runs the server, and makes the hub's own client use it."""
    from huggingface_hub import constants

    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
