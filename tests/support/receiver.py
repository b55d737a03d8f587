"""A receiver of webhooks: a real HTTP server on this machine, which records its requests and answers as configured."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Request(NamedTuple):
    """A received request."""

    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """What came, and what is answered.

    Attributes:
        url: Where it listens.
        requests: The received requests, in order.
        answers: Status of the next answers, the first one first; 204 once there are no more.
        headers: Headers of every answer.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answers: list[int] = []
        self.headers: dict[str, str] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append(Request(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(receiver.answers.pop(0) if receiver.answers else 204)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"

    @property
    def ids(self) -> list[str]:
        return [request.headers["webhook-id"] for request in self.requests]


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Yields a receiver that listens while the body runs."""
    receiver = Receiver()
    os.environ["no_proxy"] = "127.0.0.1"  # whatever proxy this machine has
    thread = threading.Thread(target=receiver.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join()
