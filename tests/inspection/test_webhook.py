"""Messages of a webhook: signed, kept on disk until delivery, and sent without delaying the inspection."""

import base64
import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from standardwebhooks import Webhook as Verifier

from afclip_runtime.errors import UserError, WriteError
from afclip_runtime.inspection.outbox import KEPT, Message, Outbox
from afclip_runtime.inspection.retry import LONGEST_PAUSE
from afclip_runtime.inspection.webhook import Webhook, check_url, headers_of, read_secret
from tests.support.receiver import Receiver, receiving

SECRET = b"0123456789abcdef0123456789abcdef"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    found = Outbox(tmp_path / "webhook.sqlite")
    yield found
    found.close()


class Hook:
    """A webhook with its own clock, on which pauses pass at once."""

    def __init__(self, url: str, outbox: Outbox, secret: bytes | None = None, until: float = 1e9) -> None:
        self.now, self.until = 0.0, until
        self.pauses: list[float] = []
        self.said: list[str] = []
        self.webhook = Webhook(url, outbox, secret, self.said.append, self.pause)
        self.receiver_back = lambda: None

    def pause(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        self.now += seconds
        if self.now >= self.until:
            self.receiver_back()
        return False

    def run(self) -> int:
        """Sends until no message waits, and returns the number of waiting messages."""
        self.webhook.start()
        return self.webhook.close(grace=20)


def fill(outbox: Outbox, count: int) -> list[str]:
    ids = [f"img_{number}" for number in range(count)]
    for number, id in enumerate(ids):
        outbox.put(id, json.dumps({"number": number}).encode())
    return ids


def test_every_message_arrives_once_in_order_and_can_be_verified(receiver: Receiver, outbox: Outbox) -> None:
    ids = fill(outbox, 20)
    assert Hook(receiver.url, outbox, SECRET).run() == 0
    assert receiver.ids == ids
    verifier = Verifier("whsec_" + base64.b64encode(SECRET).decode())
    for number, request in enumerate(receiver.requests):
        assert verifier.verify(request.body, request.headers) == {"number": number}
        assert request.path == "/hook"
        assert request.headers["content-type"] == "application/json"
    assert outbox.next() is None


def test_without_a_secret_there_is_no_signature() -> None:
    message = Message(1, "img_1", b"{}")
    assert "webhook-signature" not in headers_of(message, None, 5)
    signed = headers_of(message, SECRET, 5)
    assert signed["webhook-timestamp"] == "5"
    assert signed != headers_of(message, SECRET, 6)


def test_a_receiver_that_is_down_for_an_hour_loses_nothing(outbox: Outbox) -> None:
    ids = fill(outbox, 5)
    with receiving() as receiver:
        hook = Hook(receiver.url, outbox, until=3600)
        receiver.answers = [503] * 1000
        hook.receiver_back = receiver.answers.clear
        assert hook.run() == 0
        delivered = receiver.ids[-5:]
    assert delivered == ids
    assert set(receiver.ids[:-5]) == {ids[0]}  # the first one finds out, again and again
    assert hook.pauses[:8] == [1, 2, 4, 8, 16, 32, LONGEST_PAUSE, LONGEST_PAUSE]
    assert 3600 <= hook.now < 3600 + 2 * LONGEST_PAUSE
    assert len(hook.said) == 2  # once down, once up
    assert "503" in hook.said[0]
    assert "5 messages wait" in hook.said[0]


def test_a_receiver_that_is_not_there_is_waited_for(outbox: Outbox) -> None:
    with receiving() as receiver:
        url = receiver.url
    fill(outbox, 1)
    said: list[str] = []
    webhook = Webhook(url, outbox, None, said.append)
    webhook.start()
    begun = time.monotonic()
    assert webhook.close(grace=0.5) == 1  # a pause of a minute does not hold up the end
    assert time.monotonic() - begun < 5
    assert "cannot be reached (" in said[0]
    assert "/hook" not in said[0]  # addresses hold tokens


def test_the_end_waits_for_messages_as_long_as_they_get_out(
    receiver: Receiver, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(outbox, 6)
    mark = outbox.delivered

    def slowly(message: Message, when: str) -> None:
        time.sleep(0.1)
        mark(message, when)

    monkeypatch.setattr(outbox, "delivered", slowly)
    webhook = Webhook(receiver.url, outbox, None, print)
    webhook.start()
    assert webhook.close(grace=0.3, patient=lambda: True) == 0
    for number in range(20):
        outbox.put(f"more_{number}", b"{}")
    webhook = Webhook(receiver.url, outbox, None, print)
    webhook.start()
    assert 10 < webhook.close(grace=0.3) < 20


def test_an_end_that_comes_between_two_looks_is_not_missed(outbox: Outbox) -> None:
    webhook = Webhook("http://127.0.0.1:9/hook", outbox, None, print)

    class Late(threading.Event):
        """Asked to end right before the event is cleared."""

        def clear(self) -> None:
            webhook._ended.set()
            self.set()
            super().clear()

    webhook._woken = Late()
    webhook.start()
    webhook._thread.join(5)
    assert not webhook._thread.is_alive()


def test_a_message_that_is_refused_holds_up_no_other_and_is_not_lost(receiver: Receiver, outbox: Outbox) -> None:
    fill(outbox, 3)
    receiver.answers = [400, 204, 204, 422, 204]
    assert Hook(receiver.url, outbox).run() == 0
    assert receiver.ids == ["img_0", "img_1", "img_2", "img_0", "img_0"]


def test_redirects_are_not_followed(receiver: Receiver, outbox: Outbox) -> None:
    fill(outbox, 1)
    receiver.answers = [302, 307, 308]
    receiver.headers = {"Location": "/elsewhere"}
    hook = Hook(receiver.url, outbox)
    assert hook.run() == 0
    assert {request.path for request in receiver.requests} == {"/hook"}
    assert len(receiver.requests) == 4
    assert "redirect is not followed" in hook.said[0]


def test_a_message_that_is_put_twice_is_sent_once(receiver: Receiver, outbox: Outbox) -> None:
    fill(outbox, 2)
    fill(outbox, 2)
    assert Hook(receiver.url, outbox).run() == 0
    fill(outbox, 2)
    assert len(outbox) == 0
    assert len(receiver.requests) == 2


def test_messages_survive_a_kill(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from afclip_runtime.inspection.outbox import Outbox
outbox = Outbox(Path(sys.argv[1]))
for number in range(50):
    outbox.put(f"img_{number}", b"{}")
outbox.delivered(outbox.next(), "now")
os.kill(os.getpid(), 9)
"""
    path = tmp_path / "webhook.sqlite"
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    outbox = Outbox(path)
    assert len(outbox) == 49
    assert outbox.next() == Message(2, "img_1", b"{}")
    outbox.close()


def test_the_ids_of_old_messages_go(tmp_path: Path) -> None:
    path = tmp_path / "webhook.sqlite"
    outbox = Outbox(path)
    fill(outbox, 3)
    message = outbox.next()
    assert message
    outbox.delivered(message, "now")
    outbox.close()
    with sqlite3.connect(path) as database:
        database.execute("INSERT INTO messages (number, id, body) VALUES (?, 'late', '')", (KEPT + 3,))
    database.close()
    outbox = Outbox(path)
    assert [id for (id,) in outbox._run("SELECT id FROM messages")] == ["img_1", "img_2", "late"]
    outbox.close()


def test_two_processes_cannot_share_an_outbox(tmp_path: Path, outbox: Outbox) -> None:
    with pytest.raises(UserError, match="another process uses it"):
        Outbox(outbox.path)


def test_a_file_that_is_not_an_outbox_is_refused(tmp_path: Path) -> None:
    (tmp_path / "webhook.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match="no queue of messages"):
        Outbox(tmp_path / "webhook.sqlite")


def test_a_full_disk_is_reported_and_waiting_messages_are_kept(tmp_path: Path, outbox: Outbox) -> None:
    fill(outbox, 3)
    (pages,) = outbox._run("PRAGMA page_count")[0]
    outbox._run(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(WriteError, match="full"):
        outbox.put("img_large", b"x" * 100_000)
    assert len(outbox) == 3
    outbox._run("PRAGMA max_page_count = 100000")
    outbox.put("img_large", b"x" * 100_000)
    assert len(outbox) == 4


def test_a_disk_that_is_full_while_sending_ends_no_thread(
    receiver: Receiver, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(outbox, 2)
    mark, full = outbox.delivered, iter([True, True, False, False])

    def delivered(message: Message, when: str) -> None:
        if next(full):
            raise WriteError("the disk is full")
        mark(message, when)

    monkeypatch.setattr(outbox, "delivered", delivered)
    assert Hook(receiver.url, outbox).run() == 0
    assert receiver.ids == ["img_0", "img_0", "img_0", "img_1"]  # at least once


def test_a_fault_of_the_thread_is_raised_where_messages_are_put(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(outbox, 1)
    hook = Hook("http://127.0.0.1:9/", outbox)
    monkeypatch.setattr(outbox, "next", lambda: 1 / 0)
    hook.run()
    with pytest.raises(ZeroDivisionError):
        hook.webhook.put("img_2", b"{}")


@pytest.mark.parametrize(
    "url",
    ["", "ftp://host/", "file:///etc/passwd", "host/hook", "http://", "http:///hook", "http://h:port/", " http://h/"],
)
def test_only_http_and_https_are_sent_to(url: str) -> None:
    with pytest.raises(UserError, match="--webhook"):
        check_url(url)


def test_a_url_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(UserError, match="--webhook_secret_file") as caught:
        check_url("https://me:hunter2@host/hook")
    assert "hunter2" not in str(caught.value)
    assert check_url("https://host:8443/hook?token=1") == "host:8443"


def test_secrets_are_read_from_files(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("a secret of enough many letters \n")
    assert read_secret(file) == b"a secret of enough many letters"
    file.write_text("whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n")
    assert read_secret(file) == SECRET
    for content, message in (("short", "has 5 bytes"), ("", "has 0 bytes"), ("whsec_%%%", "is not base64")):
        file.write_text(content)
        with pytest.raises(UserError, match=message) as caught:
            read_secret(file)
        assert str(file) in str(caught.value)
