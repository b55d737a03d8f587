"""`knowledge build` against a stand-in server on the loopback address."""

import base64
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import sleep, time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from afclip_lightning.__main__ import main as command_line
from afclip_lightning.cli.knowledge import main
from afclip_lightning.knowledge import builder, chat
from afclip_lightning.knowledge.base import load_image_sentences, load_knowledge, load_provenance
from afclip_lightning.knowledge.builder import ATTEMPTS, parse_list, parse_sentence
from afclip_lightning.knowledge.chat import ChatServer
from afclip_runtime.errors import UserError

KEY = "sk-secret/0123456789"
Reply = Callable[[BaseHTTPRequestHandler], None]


def sentences(count: int = 5) -> str:
    kinds = ("cracked", "stained", "bent", "scratched", "burnt", "wet")
    return "\n".join(f"{i + 1}. The item is {kinds[i]}." for i in range(count))


def says(content: Any, **choice: Any) -> Reply:
    """A reply with this text as the model's answer."""
    return sends(json.dumps({"choices": [{"message": {"role": "assistant", "content": content}, **choice}]}))


def sends(body: str, status: int = 200, **headers: str) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status, f"reason {KEY}")
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body.encode())))
        handler.end_headers()
        handler.wfile.write(body.encode())

    return reply


def is_a_month_behind(handler: BaseHTTPRequestHandler) -> None:
    """A reply whose dates are those of a wrong clock; it asks to wait 9 s."""
    now = time() - 30 * 86400
    handler.send_response_only(429)
    for name, value in {"Date": formatdate(now, usegmt=True), "Retry-After": formatdate(now + 9, usegmt=True)}.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def hangs_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


def drips(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(40):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            sleep(0.05)
    except OSError:
        pass  # the client has left


def is_silent(handler: BaseHTTPRequestHandler) -> None:
    sleep(0.6)


class StandIn:
    """A server that gives the replies in turn, then usable answers. It records the questions."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand_in.asked.append(body)
                stand_in.headers.append(dict(self.headers))
                stand_in.paths.append(self.path)
                vision = isinstance(body["messages"][0]["content"], list)
                usual = says("The item has a dark hole in the center." if vision else sentences())
                (stand_in.replies.pop(0) if stand_in.replies else usual)(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = StandIn()
    thread = threading.Thread(target=server.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.server.shutdown()
    server.server.server_close()
    thread.join()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which take no time here."""
    waited: list[float] = []
    monkeypatch.setattr(builder, "sleep", waited.append)
    return waited


@pytest.fixture
def out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Path]:
    """The folder in which a base is built. At the end, no file in it contains the key."""
    yield tmp_path / "built" / "base.yaml"
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


def build(stand_in: StandIn, out: Path, *more: str, categories: str = "[bottle]") -> int:
    where = ["--dataset", "mvtec", "--endpoint", stand_in.url, "--model", "writer", "--out", str(out)]
    return main(["build", *where, *more, "--categories", categories])


def error_of(capfd: pytest.CaptureFixture[str]) -> str:
    """Returns the one error on the screen, without the key anywhere."""
    output, errors = capfd.readouterr()
    assert KEY not in output + errors
    assert "Traceback" not in errors
    assert not output
    assert errors.startswith("error: ")
    return errors


def cached(out: Path) -> list[dict[str, str]]:
    lines = out.with_suffix(".answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_base_is_built(stand_in: StandIn, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert build(stand_in, out, categories="[bottle,metal_nut]") == 0
    expected = [f"The item is {kind}." for kind in ("cracked", "stained", "bent", "scratched", "burnt")]
    assert load_knowledge(out) == {"bottle": expected, "metal_nut": expected}
    assert load_image_sentences(out) == {}
    provenance = load_provenance(out)
    assert provenance.keys() == {"generator", "endpoint", "date", "prompts"}
    assert (provenance["generator"], provenance["endpoint"]) == ("writer", stand_in.url)
    assert stand_in.paths == ["/v1/chat/completions"] * 2
    assert {headers["Authorization"] for headers in stand_in.headers} == {f"Bearer {KEY}"}
    assert [body["model"] for body in stand_in.asked] == ["writer"] * 2
    prompts = [body["messages"][0]["content"] for body in stand_in.asked]
    assert prompts[0].startswith("Describe what an abnormal image of bottle looks like?")
    assert "abnormal image of metal nut looks" in prompts[1]
    assert "exactly 5 sentences" in prompts[0]
    output, errors = capfd.readouterr()
    assert "base.yaml is written: 2 × 5 sentences on categories, 0 on images; 2 of 2 answers are new." in output
    assert KEY not in output + errors


def test_categories_with_one_class_name_share_an_answer(stand_in: StandIn, out: Path) -> None:
    assert (
        main(["build", "--dataset", "visa", "--endpoint", f"{stand_in.url}/v1/", "--model", "m", "--out", str(out)])
        == 0
    )
    assert list(load_knowledge(out))[-3:] == ["pcb3", "pcb4", "pipe_fryum"]
    assert len(load_knowledge(out)) == 12
    assert len(stand_in.asked) == 12 - 1 - 3
    assert set(stand_in.paths) == {"/v1/chat/completions"}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A dataset of one category, one normal and two anomalous test images, the second large."""
    for name, size in (("test/good/0", (8, 8)), ("test/bent/0", (30, 20)), ("test/bent/1", (1500, 300))):
        path = tmp_path / "set" / "nut" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*size[::-1], 3), (200, 40, 90), np.uint8)).save(path)
    return tmp_path / "set"


def look(stand_in: StandIn, out: Path, pictures: Path) -> int:
    where = ["--dataset", "MVTecLayout", "--root", str(pictures), "--endpoint", stand_in.url, "--out", str(out)]
    return main(["build", *where, "--model", "writer", "--vision_model", "viewer"])


def test_images_are_described(stand_in: StandIn, out: Path, pictures: Path) -> None:
    assert look(stand_in, out, pictures) == 0
    assert load_image_sentences(out) == dict.fromkeys(
        ("nut/test/bent/0.png", "nut/test/bent/1.png"), "The item has a dark hole in the center."
    )
    assert load_provenance(out)["image_generator"] == "viewer"
    assert [body["model"] for body in stand_in.asked] == ["writer", "viewer", "viewer"]
    sizes = []
    for body in stand_in.asked[1:]:
        picture, text = body["messages"][0]["content"]
        assert text["text"].startswith("Identify anomalies in the input image of the specified class (nut).")
        start, data = picture["image_url"]["url"].split(",")
        assert (picture["type"], text["type"], start) == ("image_url", "text", "data:image/jpeg;base64")
        decoded = Image.open(io.BytesIO(base64.b64decode(data)))
        sizes.append(decoded.size)
        assert np.abs(np.asarray(decoded).astype(int) - (200, 40, 90)).max() < 8
    assert sizes == [(30, 20), (1024, 205)]


def test_an_image_that_changed_is_described_anew(stand_in: StandIn, out: Path, pictures: Path) -> None:
    assert look(stand_in, out, pictures) == 0
    out.unlink()
    Image.new("RGB", (30, 20)).save(pictures / "nut/test/bent/0.png")
    assert look(stand_in, out, pictures) == 0
    assert len(stand_in.asked) == 4


def test_what_was_answered_is_not_asked_again(
    stand_in: StandIn, out: Path, waits: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    stand_in.replies = [says(sentences())] + [sends("", 500)] * ATTEMPTS
    assert build(stand_in, out, categories="[bottle,cable]") == 2
    message = error_of(capfd)
    assert f"cable: {stand_in.url} gave no usable answer in 5 attempts; the last: status 500." in message
    assert f"{out.with_suffix('.answers.jsonl')}: the same command goes on from there" in message
    assert not out.exists()
    assert [entry["about"] for entry in cached(out)] == ["bottle"]
    stand_in.asked.clear()
    assert build(stand_in, out, categories="[bottle,cable]") == 0
    assert ["cable" in body["messages"][0]["content"] for body in stand_in.asked] == [True]
    assert "1 of 2 answers are new" in capfd.readouterr().out
    assert [entry["about"] for entry in cached(out)] == ["bottle", "cable"]


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_a_line_that_a_kill_cut_off_is_asked_again(stand_in: StandIn, out: Path, cut: int) -> None:
    assert build(stand_in, out, categories="[bottle,cable]") == 0
    out.unlink()
    answers = out.with_suffix(".answers.jsonl")
    first, second = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(first + second[: cut if cut > 0 else -2])
    stand_in.asked.clear()
    for _ in range(2):
        assert build(stand_in, out, categories="[bottle,cable]") == 0
        out.unlink()
    assert ["cable" in body["messages"][0]["content"] for body in stand_in.asked] == [True]
    assert len(answers.read_bytes().splitlines()) == 3


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b"\xff\xfe", b"3", b"null", b'{"prompt": 3, "answer": "a"}', b'{"prompt": "a"}', b"\0"]
)
def test_lines_that_are_not_answers_are_skipped(stand_in: StandIn, out: Path, line: bytes) -> None:
    assert build(stand_in, out) == 0
    out.unlink()
    answers = out.with_suffix(".answers.jsonl")
    answers.write_bytes(line + b"\n" + answers.read_bytes())
    stand_in.asked.clear()
    assert build(stand_in, out) == 0
    assert stand_in.asked == []


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_answers_that_are_not_a_file_are_named(
    stand_in: StandIn, out: Path, make: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    out.parent.mkdir(parents=True)
    make(out.with_suffix(".answers.jsonl"))
    assert build(stand_in, out) == 2
    assert ".answers.jsonl is a" in error_of(capfd)
    assert stand_in.asked == []


def test_another_model_is_asked_anew(stand_in: StandIn, out: Path) -> None:
    assert build(stand_in, out) == 0
    out.unlink()
    assert build(stand_in, out, "--model", "other") == 0
    assert [body["model"] for body in stand_in.asked] == ["writer", "other"]


@pytest.mark.parametrize(
    ("reply", "wait"),
    [
        (sends("", 500), 1),
        (sends("", 503, Retry_After="7"), 7),
        (sends("slow down", 429), 1),
        (sends("", 429, Retry_After="30"), 30),
        (sends("", 429, Retry_After="soon"), 1),
        (sends("", 429, Retry_After=formatdate(time() - 60, usegmt=True)), 0),
        (is_a_month_behind, 9),
        (hangs_up, 1),
    ],
)
def test_what_passes_is_tried_again(
    stand_in: StandIn, out: Path, waits: list[float], reply: Reply, wait: float
) -> None:
    stand_in.replies = [reply]
    assert build(stand_in, out) == 0
    assert waits == [wait]
    assert stand_in.asked[0] == stand_in.asked[1]


@pytest.mark.slow
@pytest.mark.parametrize("reply", [is_silent, drips])
def test_a_server_that_takes_too_long(
    stand_in: StandIn, out: Path, waits: list[float], reply: Reply, capfd: pytest.CaptureFixture[str]
) -> None:
    stand_in.replies = [reply]
    assert build(stand_in, out, "--timeout", "0.2") == 0
    assert waits == [1]
    out.unlink()
    out.with_suffix(".answers.jsonl").unlink()
    capfd.readouterr()
    stand_in.replies = [reply] * ATTEMPTS
    assert build(stand_in, out, "--timeout", "0.2") == 2
    assert waits == [1, 1, 2, 4, 8]
    assert "answer within 0.2 s" in error_of(capfd)


def test_nobody_listens(stand_in: StandIn, out: Path, waits: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    stand_in.server.server_close()
    assert build(stand_in, out) == 2
    assert "the last: the connection failed (Connection refused)" in error_of(capfd)
    assert waits == [1, 2, 4, 8]


def test_a_server_that_wants_an_hour(
    stand_in: StandIn, out: Path, waits: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    stand_in.replies = [sends("", 429, Retry_After="3600")]
    assert build(stand_in, out) == 2
    assert "says status 429 and asks to wait 3600 s." in error_of(capfd)
    assert waits == []


UNUSABLE = [
    (sends("<html>busy</html>"), "not JSON of a chat completion"),
    (sends('{"choices": ['), "not JSON of a chat completion"),
    (sends('{"choices": []}'), "not JSON of a chat completion"),
    (sends('["choices"]'), "not JSON of a chat completion"),
    (sends(""), "not JSON of a chat completion"),
    (sends("[" * 100_000), "not JSON of a chat completion"),
    (sends('{"choices": {"0": 1}}'), "not JSON of a chat completion"),
    (sends('{"choices": [{"message": {"content": NaN}}]}'), "holds no text"),
    (says(None), "holds no text"),
    (says([{"type": "text", "text": "1. A"}]), "holds no text"),
    (says(""), "has 0 sentences where 5 were asked for"),
    (says("I cannot help with that."), "has 0 sentences where 5 were asked for"),
    (says(sentences(4)), "has 4 sentences where 5 were asked for"),
    (says(sentences(6)), "has 6 sentences where 5 were asked for"),
    (says(sentences(4) + "\n5."), "the answer is empty"),
    (says(sentences(4) + "\n5. The item is bent."), "two sentences of the list are the same"),
    (says(sentences(4) + "\n5. " + "crack " * 76), "has 76 tokens; at most 75 are allowed"),
    (says(sentences(4) + "\n5. \ud800 is odd."), "cannot be printed"),
    (says(sentences(), finish_reason="length"), "cut off at the server's limit"),
]


@pytest.mark.parametrize(("reply", "reason"), UNUSABLE)
def test_an_answer_that_cannot_be_used_is_asked_for_again(
    stand_in: StandIn, out: Path, waits: list[float], reply: Reply, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    stand_in.replies = [reply]
    assert build(stand_in, out) == 0
    assert len(load_knowledge(out)["bottle"]) == 5
    assert len(cached(out)) == 1
    assert stand_in.asked[1]["messages"][0] == stand_in.asked[0]["messages"][0]
    out.unlink()
    out.with_suffix(".answers.jsonl").unlink()
    capfd.readouterr()
    stand_in.asked.clear()
    stand_in.replies = [reply] * ATTEMPTS
    assert build(stand_in, out) == 2
    assert reason in error_of(capfd)
    assert len(stand_in.asked) == ATTEMPTS
    assert waits == []
    assert not list(out.parent.iterdir())


def test_the_model_is_told_what_was_wrong(stand_in: StandIn, out: Path) -> None:
    stand_in.replies = [says(sentences(3)), says(sentences(4))]
    assert build(stand_in, out) == 0
    prompt, answer, complaint = stand_in.asked[2]["messages"]
    assert prompt == stand_in.asked[0]["messages"][0]
    assert answer == {"role": "assistant", "content": sentences(4)}
    assert complaint["content"].startswith("This cannot be used: the numbered list has 4 sentences where 5 were asked")


def test_an_image_without_a_description(
    stand_in: StandIn, out: Path, pictures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stand_in.replies = [says(sentences())] + [says(" \n")] * ATTEMPTS
    assert look(stand_in, out, pictures) == 2
    assert "nut/test/bent/0.png: " in (message := error_of(capfd))
    assert "the last: the answer is empty." in message


def test_an_answer_of_endless_length(stand_in: StandIn, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "LARGEST_ANSWER", 1000)
    monkeypatch.setattr(builder, "sleep", lambda _: None)
    stand_in.replies = [sends(" " * 2000)]
    assert build(stand_in, out) == 0
    assert len(stand_in.asked) == 2


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            sends(json.dumps({"error": {"message": f"Incorrect key:\n{KEY}"}}), 401),
            "(status 401): the key was not accepted.",
        ),
        (sends(KEY, 403), "(status 403): the key was not accepted."),
        (
            sends(json.dumps({"error": {"message": f"no model;\n{KEY}"}}), 404),
            "(status 404): no model; [key]. Check the",
        ),
        (sends(f"<html>{KEY}", 400), "(status 400). Check the endpoint"),
        (sends(json.dumps({"error": KEY}), 422), "(status 422). Check the endpoint"),
        (sends("[" * 60_000, 400), "(status 400). Check the endpoint"),
        (sends(json.dumps({"error": {"message": "\x1b[31mred"}}), 404), r"(status 404): \x1b[31mred. Check the"),
        (sends("", 302, Location=f"http://127.0.0.1:9/{KEY}"), "answers from another address (status 302)"),
        (sends("", 307, Location=f"http://127.0.0.1:9/{KEY}"), "answers from another address (status 307)"),
    ],
)
def test_a_refusal_ends_the_run_at_once(
    stand_in: StandIn, out: Path, reply: Reply, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    stand_in.replies = [reply]
    assert build(stand_in, out) == 2
    assert message in error_of(capfd)
    assert len(stand_in.asked) == 1


def test_a_server_that_repeats_the_key(stand_in: StandIn, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = json.dumps({"choices": [{"message": {"content": f"1. The {KEY} is bent."}}]}).replace("/", "\\/")
    stand_in.replies = [sends(body)]
    assert build(stand_in, out, "--sentences", "1") == 0
    assert load_knowledge(out) == {"bottle": ["The [key] is bent."]}
    output, errors = capfd.readouterr()
    assert KEY not in output + errors


def test_the_key_of_another_variable(
    stand_in: StandIn, out: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert build(stand_in, out, "--key_variable", "OTHER_KEY") == 2
    assert "OTHER_KEY, which --key_variable names, is not set" in error_of(capfd)
    monkeypatch.setenv("OTHER_KEY", f"{KEY}\r\nX-Evil: {KEY}")
    assert build(stand_in, out, "--key_variable", "OTHER_KEY") == 2
    assert "The key holds blanks" in error_of(capfd)
    monkeypatch.setenv("OTHER_KEY", " other \n")
    assert build(stand_in, out, "--key_variable", "OTHER_KEY") == 0
    assert stand_in.headers[0]["Authorization"] == "Bearer other"


def test_a_local_server_needs_no_key(
    stand_in: StandIn, out: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    stand_in.replies = [sends("", 401)]
    assert build(stand_in, out) == 2
    assert "it requires a key, and none is set" in error_of(capfd)
    assert build(stand_in, out) == 0
    assert all("Authorization" not in headers for headers in stand_in.headers)


@pytest.mark.parametrize(
    "endpoint",
    [
        "localhost:8000",
        "ftp://host",
        "http://",
        "http://host:port",
        f"https://me:{KEY}@host",
        f"https://host/?key={KEY}",
    ],
)
def test_an_invalid_endpoint(endpoint: str) -> None:
    with pytest.raises(UserError, match="must be an address such as") as caught:
        ChatServer(endpoint, KEY)
    assert KEY not in str(caught.value)


def test_options_that_are_wrong(stand_in: StandIn, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    start = ["build", "--dataset", "mvtec", "--model", "m"]
    for arguments, message in (
        (start, "needs --endpoint"),
        ([*start, "--endpoint", stand_in.url], "needs --out"),
        ([*start, "--endpoint", stand_in.url, "--out", "base.json"], "base.json: the name of a base must end in .yaml"),
        ([*start, "--endpoint", stand_in.url, "--out", str(out), "--timeout", "0"], "timeout must be positive"),
        ([*start, "--sentences", "0"], "--sentences must be at least 1"),
        ([*start, "--categories", "[nut]"], "no category 'nut'"),
        ([*start, "--dry-rum"], "MVTecAD: "),
        (["build", "--dataset", "mvtech", "--model", "m"], "no dataset 'mvtech'"),
        ([*start, "--vision_model", "v", "--root", str(out)], "does not exist"),
        (["show", "mvtech"], "no knowledge base 'mvtech'"),
        (["show", "mvtec", "--all"], "show takes no --all"),
    ):
        assert main(arguments) == 2
        assert message in error_of(capfd)
    assert not stand_in.asked


def test_a_base_is_not_overwritten(stand_in: StandIn, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out.parent.mkdir()
    out.write_text("mine")
    assert build(stand_in, out) == 2
    assert "already exists" in error_of(capfd)
    assert out.read_text() == "mine"
    assert not stand_in.asked


def test_interrupted(
    stand_in: StandIn, out: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(builder, "sleep", interrupt)
    stand_in.replies = [says(sentences()), sends("", 500)]
    assert build(stand_in, out, categories="[bottle,cable]") == 130
    assert "the same command goes on from there" in capfd.readouterr().err
    assert build(stand_in, out, categories="[bottle,cable]") == 0
    assert len(stand_in.asked) == 3


def test_a_dry_run_asks_nothing_and_writes_nothing(
    stand_in: StandIn, tmp_path: Path, pictures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    where = ["--dataset", "MVTecLayout", "--root", str(pictures), "--model", "writer", "--vision_model", "viewer"]
    assert main(["build", *where, "--out", str(tmp_path / "base.yaml"), "--dry_run"]) == 0
    output = capfd.readouterr().out
    assert "--- nut (writer)\nDescribe what an abnormal image of nut looks like?" in output
    assert "--- nut/test/bent/1.png (viewer)\nIdentify anomalies" in output
    assert not stand_in.asked
    assert not list(tmp_path.glob("base*"))


def test_show(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["afclip_lightning", "knowledge", "show", "visa"])
    assert command_line() == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("generator: written by hand")
    assert sum(" tokens  " in line for line in lines) == 60
    assert "macaroni2" in lines


@pytest.mark.parametrize(
    "answer",
    [
        "1. A crack.\n2. A stain.",
        "Here you are:\n\n1) A crack.\n2) A stain.\n\nAsk me for more.",
        "**1.** A crack.\n\n**2.** “A stain.”",
        "1. **A crack.**\n2. A\n   stain.",
        "  1: A crack.\r\n  2: A stain.\r\n",
    ],
)
def test_lists_as_models_write_them(answer: str) -> None:
    assert parse_list(answer, 2) == ["A crack.", "A stain."]


def test_numbers_inside_a_sentence_do_not_begin_one() -> None:
    assert parse_list("1. A crack of\n2.5 mm, or\n30 pixels.", 1) == ["A crack of 2.5 mm, or 30 pixels."]


def test_lists_that_are_wrong() -> None:
    with pytest.raises(ValueError, match="item 2 of the list is numbered 3"):
        parse_list("1. A crack.\n3. A stain.", 2)
    with pytest.raises(ValueError, match="the answer is empty"):
        parse_sentence("**1.**")
