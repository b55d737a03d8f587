"""`inspect --webhook URL`: one signed message per inspected image, sent by a thread from a queue on disk.

Messages follow the Standard Webhooks specification (standardwebhooks.com), so receivers can check them with its
libraries. The headers are `webhook-id`, `webhook-timestamp` (of the attempt, in seconds since 1970) and
`webhook-signature`: `v1,` and the base64 of HMAC-SHA256 over `ID.TIMESTAMP.BODY`.
"""

import base64
import binascii
import hashlib
import hmac
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from afclip_runtime.errors import UserError, WriteError, counted, shown
from afclip_runtime.files import read_text
from afclip_runtime.inspection.outbox import Message, Outbox
from afclip_runtime.inspection.retry import pause_after
from afclip_runtime.inspection.table import Record, plain

TIMEOUT = 10.0  # seconds for the connection, and for each answer
FEWEST_BYTES = 24  # of a secret, as in the specification
MARK = "whsec_"  # prefix of a secret in base64
REFUSALS = frozenset({400, 413, 415, 422})  # status codes that may concern a single message


class Webhook:
    """Sends the messages of an outbox to a URL, one after another, in a separate thread.

    A message is delivered when the status of the answer is 2xx. Otherwise it is sent again without limit, after pauses
    that grow from 1 to 60 seconds. Delivery is thus at least once, and a receiver recognises repeated messages by
    `webhook-id`. Redirects are not followed, since they would disclose the rows to another host.

    Args:
        url: URL of the receiver, http or https.
        outbox: Queue of the messages.
        secret: Secret of the signature; `None` sends unsigned messages.
        say: Function that receives a message when the receiver cannot be reached, and when it can be reached again.
        pause: Function that waits for a number of seconds or until the end is requested, and returns whether it is.

    Raises:
        UserError: The URL is invalid, see `check_url`.
    """

    def __init__(
        self,
        url: str,
        outbox: Outbox,
        secret: bytes | None,
        say: Callable[[str], None],
        pause: Callable[[float], bool] | None = None,
    ) -> None:
        self.host = check_url(url)
        self.url, self.outbox, self.secret = url, outbox, secret
        self._say = say
        self._ended, self._woken = threading.Event(), threading.Event()
        self._pause = pause or self._ended.wait
        self._fault: Exception | None = None
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def put(self, id: str, content: bytes) -> None:
        """Puts a message into the outbox, and returns at once.

        Args:
            id: See `Message`.
            content: JSON in UTF-8.

        Raises:
            WriteError: The outbox cannot be written.
        """
        if self._fault is not None:
            raise self._fault
        self.outbox.put(id, content)
        self._woken.set()

    def close(self, grace: float = 0.0, patient: Callable[[], bool] = lambda: False) -> int:
        """Ends the thread when no message waits or the grace period is over. Returns the number of waiting messages.

        Args:
            grace: Grace period in seconds.
            patient: Function that returns whether the grace period restarts with each delivered message.
        """
        end, waiting = time.monotonic() + grace, len(self.outbox)
        while self._thread.is_alive() and (left := len(self.outbox)) and time.monotonic() < end:
            if left < waiting and patient():
                end, waiting = time.monotonic() + grace, left
            time.sleep(0.02)
        self._ended.set()
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join(2 * TIMEOUT)
        return len(self.outbox)

    def _work(self) -> None:
        try:
            self._send_all()
        except Exception as error:  # else the thread would end silently
            self._fault = error

    def _send_all(self) -> None:
        failures = 0
        while True:
            self._woken.clear()  # before the check of `_ended`, else its signal could be lost
            if self._ended.is_set():
                return
            try:
                message = self.outbox.next()
                if message is None:
                    self._woken.wait()
                    continue
                problem = self._send(message)
            except WriteError as error:
                problem = str(error)
            if problem:
                failures += 1
                if failures == 1:
                    waiting = counted(len(self.outbox), "message waits", "messages wait")
                    self._say(f"webhook: {problem.rstrip('.')}. {waiting} for the next attempt.")
                self._pause(pause_after(failures))
            elif failures:
                failures = 0
                self._say(f"webhook: {self.host} takes messages again.")

    def _send(self, message: Message) -> str:
        """Sends a message and records the outcome. Returns the problem, or an empty text."""
        status, problem = self._post(message)
        if not problem:
            self.outbox.delivered(message, datetime.now(timezone.utc).isoformat(timespec="seconds"))
        elif status in REFUSALS:
            self.outbox.refused(message)
        return problem

    def _post(self, message: Message) -> tuple[int | None, str]:
        """Sends a message. Returns the status of the answer, if any, and the problem, or an empty text."""
        request = urllib.request.Request(self.url, message.body, headers_of(message, self.secret, int(time.time())))
        try:
            with self._opener.open(request, timeout=TIMEOUT) as answer:
                return answer.status, ""
        except urllib.error.HTTPError as error:
            error.close()
            moved = ". A redirect is not followed: give the new URL" if 300 <= error.code < 400 else ""
            return error.code, f"{self.host} answers {error.code} ({shown(error.reason)}){moved}"
        except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
            return None, f"{self.host} cannot be reached ({shown(getattr(error, 'reason', None) or error)})"


def image_message(row: Record, scope: str) -> tuple[str, bytes]:
    """Returns the id and the body of the message for an image's row.

    The id is the same if the same file is inspected again with the same outcome (a score or an error) in a scope.

    Args:
        row: The row.
        scope: Identifier of the models and their settings.
    """
    identity = [scope, row.method, os.path.abspath(row.path), row.size, row.mtime_ns, row.error]
    id = f"img_{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]}"
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    body = {"type": "image.judged", "id": id, "timestamp": now, "data": plain(row)}
    return id, json.dumps(body).encode()


def headers_of(message: Message, secret: bytes | None, now: int) -> dict[str, str]:
    """Returns the headers of a message.

    Args:
        message: The message.
        secret: Secret of the signature; `None` for no signature.
        now: Time in seconds since 1970.
    """
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "afclip",
        "webhook-id": message.id,
        "webhook-timestamp": str(now),
    }
    if secret is not None:
        content = f"{message.id}.{now}.".encode() + message.body
        digest = hmac.digest(secret, content, hashlib.sha256)
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers


def check_url(url: str) -> str:
    """Checks a URL. Returns its host, with its port if given: the part that messages may show.

    Raises:
        UserError: The URL is not http or https, has no host, or contains a user name or a password.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"--webhook: this is not a URL ({error}).") from error
    if parts.scheme not in ("http", "https") or not host or url != url.strip() or not url.isascii():
        raise UserError("--webhook takes a URL as http://HOST/PATH or https://HOST/PATH.")
    if parts.username is not None or parts.password is not None:
        raise UserError(
            "--webhook: the URL holds a name or a password, which all who list processes can read. Leave it out, and "
            "sign the messages: --webhook_secret_file FILE."
        )
    return parts.netloc


def read_secret(path: Path) -> bytes:
    """Reads a secret from a file: `whsec_` and base64, or else the text itself without surrounding spaces.

    Raises:
        UserError: The file cannot be read, or the secret is too short.
    """
    text = read_text(path, limit=4096).strip()
    secret = text.encode()
    if text.startswith(MARK):
        try:
            secret = base64.b64decode(text.removeprefix(MARK), validate=True)
        except binascii.Error as error:
            raise UserError(f"{shown(path)}: what follows {MARK} is not base64.") from error
    if len(secret) < FEWEST_BYTES:
        raise UserError(
            f"{shown(path)}: the secret has {len(secret)} bytes, and at least {FEWEST_BYTES} are needed. Make one: "
            'python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    return secret


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None
