"""A client of language model servers with the OpenAI-compatible protocol.

The key is only in the header of a request. It is removed from everything that a server sends back.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from time import monotonic
from typing import Any, NoReturn
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from afclip_runtime.errors import UserError
from afclip_runtime.files import parse_json

LARGEST_ANSWER = 2**22  # bytes
SHORTEST_SECRET = 8  # letters; shorter keys are placeholders (`none`, `x`) for local servers


class TransientError(Exception):
    """A request failed temporarily. The message gives the reason.

    Attributes:
        wait: Wait that the server requests, in seconds, or `None`.
    """

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _NoRedirects(HTTPRedirectHandler):
    """Refuses redirects, because a redirected request would send the key to another address."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class _Message:
    content: Any = None


@dataclass(frozen=True)
class _Choice:
    message: _Message
    finish_reason: str | None = None


@dataclass(frozen=True)
class _Completion:
    """The part of a chat completion that is read."""

    choices: list[_Choice]


@dataclass(frozen=True)
class _Reason:
    message: str


@dataclass(frozen=True)
class _Refusal:
    """The part of a refusal that is read."""

    error: _Reason


class ChatServer:
    """An OpenAI-compatible server.

    Args:
        endpoint: Address of the server, with or without `/v1` at the end.
        key: Bearer token; empty for a server that needs none.
        timeout: Time limit of one answer, in seconds.

    Raises:
        UserError: The endpoint is not such an address, the key cannot be sent, or the timeout is not positive.
    """

    def __init__(self, endpoint: str, key: str = "", timeout: float = 120.0) -> None:
        try:
            parts = urlsplit(endpoint)
            valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
        except ValueError:
            valid = False
        if not valid or "@" in parts.netloc or parts.query or parts.fragment:
            raise UserError(
                "The endpoint must be an address such as http://localhost:8000, with no user, password or query in it: "
                "a key is read from the environment."
            )
        if not re.fullmatch(r"[!-~]*", key):
            raise UserError("The key holds blanks, line breaks or letters beyond ASCII. Set its variable again.")
        if not timeout > 0:
            raise UserError(f"The timeout must be positive, got {timeout:g} s.")
        self.endpoint = endpoint.rstrip("/").removesuffix("/v1")
        self.timeout = timeout
        self._key = key
        self._opener = build_opener(_NoRedirects)

    def complete(self, model: str, messages: Sequence[Mapping[str, Any]]) -> str:
        """Returns the text of the model's answer, which may be empty.

        Raises:
            UserError: The server refuses the request for good.
        """
        body = json.dumps({"model": model, "messages": list(messages)}).encode()
        request = Request(f"{self.endpoint}/v1/chat/completions", body, {"Content-Type": "application/json"})
        if self._key:
            request.add_header("Authorization", f"Bearer {self._key}")
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                received = self._read(response)
        except HTTPError as error:
            with error:
                self._refuse(error)
        except TimeoutError as error:
            raise TransientError(f"no whole answer within {self.timeout:g} s") from error
        except (URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise TransientError(f"no answer within {self.timeout:g} s") from error
            detail = getattr(reason, "strerror", None) or type(reason).__name__
            raise TransientError(f"the connection failed ({detail})") from error
        try:
            choice = parse_json(received, _Completion, "the answer", finite=False).choices[0]
        except (UserError, IndexError) as error:
            raise ValueError("the answer is not JSON of a chat completion") from error
        content = choice.message.content
        if not isinstance(content, str):
            raise ValueError("the answer holds no text")
        if choice.finish_reason == "length":
            raise ValueError("the answer was cut off at the server's limit of length")
        return self._clear(content)

    def _read(self, response: HTTPResponse) -> bytes:
        """Returns the body. The time limit also holds for a server that sends it slowly."""
        deadline, received = monotonic() + self.timeout, b""
        while part := response.read1(2**16):
            received += part
            if monotonic() > deadline:
                raise TimeoutError
            if len(received) > LARGEST_ANSWER:
                raise TransientError(f"an answer of more than {LARGEST_ANSWER} bytes")
        return received

    def _refuse(self, error: HTTPError) -> NoReturn:
        status = error.code
        if status in (408, 429) or status >= 500:
            raise TransientError(f"status {status}", _retry_after(error.headers))
        if status in (401, 403):
            key = "the key was not accepted" if self._key else "it requires a key, and none is set"
            raise UserError(f"{self.endpoint} refuses (status {status}): {key}.")
        if status < 400:
            raise UserError(f"{self.endpoint} answers from another address (status {status}). Give that one.")
        try:
            said = parse_json(error.read(2**16), _Refusal, "the answer", finite=False).error.message
            detail = ": " + " ".join(self._clear(said).split())[:300]
        except (OSError, HTTPException, UserError):
            detail = ""
        raise UserError(f"{self.endpoint} refuses (status {status}){detail}. Check the endpoint and the model's name.")

    def _clear(self, text: str) -> str:
        return text.replace(self._key, "[key]") if len(self._key) >= SHORTEST_SECRET else text


def _retry_after(headers: Message) -> float | None:
    """Returns the seconds of the header `Retry-After`, a number or a date; `None` if it is neither.

    A date is that of the server's clock, and is compared with the header `Date`.
    """
    value = headers.get("Retry-After", "")
    if value.strip().isdigit():
        return float(value)
    try:
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("Date", ""))
    except (ValueError, TypeError):
        return None
    return max(wait.total_seconds(), 0.0)
