"""Closing of silent connections of `serve`: after a time limit, and the oldest first if there are too many."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

SILENCE = 10.0  # seconds within which the head of a request must arrive


def _most() -> int:
    """Returns the maximum number of connections, each of which needs a file descriptor."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return 512
    return min(512, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


MOST = _most()


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP protocol with a time limit for silent connections, which would use up all file descriptors.

    uvicorn closes a connection that is silent after an answer. It does not close one that never sends a request, or
    whose request head never ends. Bodies that never end have a separate limit in the application.
    """

    silence: asyncio.TimerHandle | None = None
    since = 0.0

    @property
    def waits(self) -> bool:
        """Returns whether the peer has not yet sent a whole request."""
        return self.silence is not None or (self.cycle is not None and self.cycle.more_body)

    def connection_made(self, transport: Any) -> None:
        """Starts the clock, and closes the oldest silent connection if there are too many."""
        super().connection_made(transport)
        self._listen()
        waiting = [other for other in self.connections if isinstance(other, PatientProtocol) and other.waits]
        if len(self.connections) > MOST and waiting:
            min(waiting, key=lambda other: other.since).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Stops the clock when the head of a request has arrived."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self.silence is None:
            self._listen()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._stop()
        super().connection_lost(exc)

    def _listen(self) -> None:
        self.since = self.loop.time()
        self.silence = self.loop.call_later(SILENCE, self.transport.abort)

    def _stop(self) -> None:
        if self.silence is not None:
            self.silence.cancel()
            self.silence = None
