"""The token of the page: content of its file, accepted requests, and the limit of wrong tokens."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from afclip_runtime.errors import UserError
from afclip_runtime.files import exposed
from afclip_runtime.serving import access
from afclip_runtime.serving.access import ATTEMPTS, FEWEST, WINDOW, TokenCheck, network_of, read_token

TOKEN = "Zm9yIHRlc3RzLCBhbmQgbm93aGVyZSBlbHNl-_x"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def app(clock: Clock) -> FastAPI:
    app = FastAPI()

    @app.get("/api", dependencies=[Depends(TokenCheck(TOKEN, clock))])
    async def secret() -> str:
        return "secret"

    return app


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_only_the_token_passes(client: TestClient) -> None:
    assert client.get("/api", headers=bearer(TOKEN)).text == '"secret"'
    assert client.get("/api", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200  # schemes have no case
    for headers in (
        {},
        bearer(""),
        bearer(TOKEN[:-1]),
        bearer(TOKEN + "x"),
        bearer(TOKEN.swapcase()),
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Cookie": f"token={TOKEN}"},
    ):
        answer = client.get("/api", headers=headers)
        assert answer.status_code == 401, headers
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert TOKEN not in answer.text


def test_the_scheme_stands_in_the_openapi_document(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    (name,) = document["paths"]["/api"]["get"]["security"][0]
    assert document["components"]["securitySchemes"][name]["scheme"] == "bearer"


def test_wrong_tokens_are_limited_and_the_limit_ends(client: TestClient, clock: Clock) -> None:
    for _ in range(ATTEMPTS):
        assert client.get("/api", headers=bearer("x" * FEWEST)).status_code == 401
        assert client.get("/api").status_code in (401, 429)  # one without a token is no guess
        clock.now += 1
    refused = client.get("/api", headers=bearer(TOKEN))  # nobody learns of a right guess
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) == WINDOW - ATTEMPTS
    clock.now += int(refused.headers["Retry-After"])
    assert client.get("/api", headers=bearer(TOKEN)).status_code == 200
    assert client.get("/api", headers=bearer("x" * FEWEST)).status_code == 401  # the oldest counts no longer
    assert client.get("/api", headers=bearer(TOKEN)).status_code == 429


def test_one_address_does_not_lock_out_another(app: FastAPI) -> None:
    with TestClient(app, client=("192.0.2.1", 5)) as guesser, TestClient(app, client=("192.0.2.2", 5)) as other:
        for _ in range(ATTEMPTS):
            guesser.get("/api", headers=bearer("wrong"))
        assert guesser.get("/api", headers=bearer(TOKEN)).status_code == 429
        assert other.get("/api", headers=bearer(TOKEN)).status_code == 200


def test_the_addresses_that_are_counted_have_a_limit(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(access, "ADDRESSES", 3)
    check = TokenCheck(TOKEN, clock)
    for number in range(10):
        check._count(f"192.0.2.{number}")
    assert list(check._failed) == ["192.0.2.7", "192.0.2.8", "192.0.2.9"]


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_wrong_tokens_are_counted_per_network(host: str, network: str) -> None:
    assert network_of(host) == network


@pytest.mark.parametrize("text", [TOKEN, f"{TOKEN}\n", f"\ufeff {TOKEN} \r\n"])
def test_a_token_is_read_without_what_stands_around_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text, encoding="utf-8")
    assert read_token(tmp_path / "token") == TOKEN


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the token has 0 characters; it needs 32"),
        (b"hunter2", "the token has 7 characters; it needs 32"),
        (b"x" * (FEWEST - 1), "the token has 31 characters"),
        (b"x" * 5000, "the token has 5000 characters"),
        (b"x" * 10000, "at most 8,192 are read"),
        (b"two words that are long enough for a token", "contains white space"),
        ("ä".encode() * FEWEST, "contains white space or a character that is not allowed in a header"),
        (b"\xff" * FEWEST, "Save it as UTF-8"),
    ],
)
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as told:
        read_token(path)
    assert str(path) in str(told.value)
    assert content == b"" or content.decode("utf-8", "replace") not in str(told.value)
    with pytest.raises(UserError, match="does not exist"):
        read_token(tmp_path / "absent")


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
def test_a_file_that_others_can_read_gives_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    for mode, told in ((0o600, False), (0o400, False), (0o440, False), (0o644, True), (0o660, True), (0o602, True)):
        path.chmod(mode)
        assert bool(exposed(path)) == told, oct(mode)
        assert not told or "chmod 600" in exposed(path)
