"""The token of the page: read from a file, compared in constant time, and few wrong ones taken from one address."""

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
MOST = 4096  # characters; a header has a limit of its own
ATTEMPTS = 10  # wrong tokens of one address within the window
WINDOW = 60.0  # seconds
ADDRESSES = 4096  # addresses whose wrong tokens are counted; the one that failed longest ago is dropped
MAKE = "python -c 'import secrets; print(secrets.token_urlsafe(32))' > FILE"
BEARER = HTTPBearer(auto_error=False, description="The token of the file that `serve --token_file` names.")


def read_token(path: Path) -> str:
    """Returns the token that a file holds, without the white space around it.

    Args:
        path: A text file of one line.

    Raises:
        UserError: It cannot be read, or its token is short, long, or holds anything but visible ASCII characters.
    """
    token = read_text(path, limit=2 * MOST).strip()
    if not FEWEST <= len(token) <= MOST:
        raise UserError(
            f"{shown(path)}: the token has {len(token)} characters; it needs {FEWEST} to {MOST}. Make one: {MAKE}"
        )
    if not all("!" <= char <= "~" for char in token):
        raise UserError(
            f"{shown(path)}: the token holds white space or a character that no header takes. Make one: {MAKE}"
        )
    return token


class TokenCheck:
    """Lets requests pass that bring the token.

    An address that sent `ATTEMPTS` wrong tokens within `WINDOW` seconds is refused until the window has passed, with
    the right one too: otherwise it could go on guessing.

    Args:
        token: The token.
        clock: Seconds that never go backwards.
    """

    def __init__(self, token: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._digest = hashlib.sha256(token.encode()).digest()  # of one length: a comparison tells nothing of it
        self._clock = clock
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()

    async def __call__(
        self, request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)]
    ) -> None:
        """Returns if the request may pass.

        Raises:
            HTTPException: 401, no token or a wrong one; 429, too many wrong ones came from this address.
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
        """Returns for how many seconds an address is still refused."""
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
    """Returns the key that wrong tokens are counted by: an IPv4 address, or the /64 network of an IPv6 address.

    Args:
        host: Address of a client; any other text is returned as it is.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
    return host
