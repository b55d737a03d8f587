"""The page behind Caddy with deploy/Caddyfile: HTTPS, the token, and the addresses of clients."""

import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import free_port
from tests.support.bundles import write_bundle
from tests.support.deploy import DEPLOY, tool
from tests.support.uploads import encoded, picture

pytestmark = pytest.mark.slow

TOKEN = "Zm9yIHRlc3RzLCBhbmQgbm93aGVyZSBlbHNl"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client at the address of the proxy that trusts only Caddy's own authority."""
    caddy, folder = tool("caddy"), tmp_path_factory.mktemp("proxy")
    token = folder / "token"
    token.write_text(TOKEN)
    inside, outside = free_port(), free_port()
    page = [sys.executable, "-m", "afclip_runtime", "serve", "--bundle", str(write_bundle(folder / "bundle"))]
    page += ["--port", inside, "--token_file", str(token), "--proxy", "127.0.0.1"]
    proxy = [caddy, "run", "--adapter", "caddyfile", "--config", str(DEPLOY / "Caddyfile")]
    places = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    names = {"AFCLIP_HOST": f"localhost:{outside}", "AFCLIP_PAGE": f"127.0.0.1:{inside}"}
    root = folder / "caddy/pki/authorities/local/root.crt"
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(page, stdout=log, stderr=log) as served,
        subprocess.Popen(proxy, stdout=log, stderr=log, env={**os.environ, **places, **names}) as passed,
    ):
        try:
            client = wait_for(root, f"https://localhost:{outside}", folder / "log")
            yield client
            client.close()
        finally:
            passed.kill()
            served.kill()


def wait_for(root: Path, address: str, log: Path) -> httpx.Client:
    """Returns a client of the address as soon as the page answers."""
    for _ in range(300):
        if root.is_file():
            context = ssl.create_default_context(cafile=str(root))
            client = httpx.Client(base_url=address, verify=context, timeout=60, trust_env=False)
            try:
                if client.get("/health").status_code == 200:
                    return client
            except httpx.TransportError:
                client.close()
        time.sleep(0.2)
    pytest.fail(log.read_text(errors="replace"))


def test_an_image_is_judged_through_https(browser: httpx.Client) -> None:
    own = {**BEARER, "Origin": str(browser.base_url).rstrip("/")}  # as the page sends it
    answer = browser.post("/api/inspect?map=true", content=encoded(picture()), headers=own)
    assert answer.status_code == 200
    assert answer.json()["map"]
    assert browser.get("/api/model").status_code == 401
    assert browser.post("/api/inspect", headers={**BEARER, "Origin": "https://evil.example"}).status_code == 403


def test_the_largest_image_passes_the_proxy(browser: httpx.Client) -> None:
    largest = bytes(32 * 2**20)
    answer = browser.post("/api/inspect", content=largest, headers=BEARER)
    assert (answer.status_code, "not an image in a supported format" in answer.text) == (422, True)
    answer = browser.post("/api/inspect", files={"file": ("a.png", largest)}, headers=BEARER)
    assert answer.status_code == 422
    assert browser.post("/api/inspect", content=bytes(40 * 2**20), headers=BEARER).status_code == 413


def test_who_guesses_cannot_say_that_it_is_another(browser: httpx.Client) -> None:
    wrong = [{"Authorization": "Bearer wrong", "X-Forwarded-For": f"192.0.2.{number}"} for number in range(11)]
    codes = [browser.get("/api/model", headers=headers).status_code for headers in wrong]
    assert codes == [401] * 10 + [429]  # the proxy puts the true address in its place
