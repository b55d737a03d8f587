"""The token of the service: read from a file, compared in constant time, with a limit of wrong tokens per address."""

import hashlib
import hmac
import ipaddress
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from fastapi import HTTPException, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from afclip_runtime.errors import UserError, shown
from afclip_runtime.files import read_text

FEWEST = 32  # characters of a token: 128 bits as hexadecimal digits
MOST = 4096  # characters; headers have a limit, too
ATTEMPTS = 10  # wrong tokens per address and window
WINDOW = 60.0  # seconds
ADDRESSES = 4096  # maximum number of addresses with counts; the one whose last failure is oldest is dropped
MAKE = "python -c 'import secrets; print(secrets.token_urlsafe(32))' > FILE"
BEARER = HTTPBearer(auto_error=False, description="The token of the file that `serve --token_file` names.")


def read_token(path: Path) -> str:
    """Reads a token from a file, without surrounding white space.

    Args:
        path: A text file of one line.

    Raises:
        UserError: The file cannot be read, or the token is too short, too long, or contains other than visible ASCII
            characters.
    """
    token = read_text(path, limit=2 * MOST).strip()
    if not FEWEST <= len(token) <= MOST:
        raise UserError(
            f"{shown(path)}: the token has {len(token)} characters; it needs {FEWEST} to {MOST}. Make one: {MAKE}"
        )
    if not all("!" <= char <= "~" for char in token):
        raise UserError(
            f"{shown(path)}: the token contains white space or a character that is not allowed in a header. "
            f"Make one: {MAKE}"
        )
    return token


class TokenCheck:
    """Accepts requests that have the token.

    After `ATTEMPTS` wrong tokens within `WINDOW` seconds, all requests of an address are rejected until the window has
    passed, even with the right token. Otherwise the address could continue to guess.

    Args:
        token: The token.
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, token: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._digest = hashlib.sha256(token.encode()).digest()  # fixed length: the comparison discloses nothing
        self._clock = clock
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()

    async def __call__(
        self, request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)]
    ) -> None:
        """Checks the token of a request.

        Raises:
            HTTPException: 401: the token is missing or wrong. 429: too many wrong tokens came from this address.
        """
        address = network_of(request.client.host if request.client else "")
        wait = self._wait(address)
        if wait > 0:
            seconds = math.ceil(wait)
            raise HTTPException(
                429,
                f"Too many wrong tokens came from your address. Try again in {seconds} seconds.",
                {"Retry-After": str(seconds)},
            )
        if given is None:
            raise HTTPException(401, "A token is needed: Authorization: Bearer TOKEN.", {"WWW-Authenticate": "Bearer"})
        if not hmac.compare_digest(hashlib.sha256(given.credentials.encode()).digest(), self._digest):
            self._count(address)
            raise HTTPException(401, "This is not the token.", {"WWW-Authenticate": 'Bearer error="invalid_token"'})

    def _wait(self, address: str) -> float:
        """Returns the number of seconds for which an address is still rejected."""
        failed = self._failed.get(address)
        return failed[0] + WINDOW - self._clock() if failed is not None and len(failed) == ATTEMPTS else 0.0

    def _count(self, address: str) -> None:
        failed = self._failed.setdefault(address, deque(maxlen=ATTEMPTS))
        failed.append(self._clock())
        self._failed.move_to_end(address)
        if self._wait(address) > 0:
            logging.getLogger("uvicorn.error").warning("%d wrong tokens came from %s.", ATTEMPTS, address)
        if len(self._failed) > ADDRESSES:
            self._failed.popitem(last=False)


def network_of(host: str) -> str:
    """Returns the key for counts of wrong tokens: an IPv4 address, or the /64 network of an IPv6 address.

    Args:
        host: Address of a client. Any other text is returned unchanged.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
    return host
