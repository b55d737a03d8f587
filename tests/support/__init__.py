"""Common parts of tests: no test module imports another."""

import socket
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def free_port() -> str:
    """Returns a port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])
