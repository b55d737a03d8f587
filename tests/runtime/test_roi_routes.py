"""A region of interest gives the same numbers on every route: commands, torch, bundles per engine, the page."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from afclip_lightning import load
from afclip_lightning.cli import calibrate, inspect
from afclip_lightning.inspection.bundle import export_bundle
from afclip_runtime.cli import inspect as runtime_inspect
from afclip_runtime.engines import GRAPH_ENGINES
from afclip_runtime.inspection.bundle import open_bundle
from afclip_runtime.inspection.calibration import Calibration
from afclip_runtime.inspection.verdict import Inspection
from afclip_runtime.serving.server import create_app
from afclip_runtime.serving.service import Limits
from afclip_runtime.types import Tiling
from tests.support.small_head import picture, write_pictures
from tests.support.small_models import write_head

pytestmark = pytest.mark.slow

BOUND = 1e-4
ROI = {
    "size": [80, 60],
    "include": [[[10, 5], [75, 10], [60, 55], [12, 50]]],
    "ignore": [[[30, 20], [40, 20], [40, 30]]],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A head, normal images, a region of interest, and images of its aspect ratio in three sizes."""
    monkeypatch.chdir(tmp_path)
    write_head(tmp_path, "AFCLIP")
    write_pictures(tmp_path / "good", 9, seed=20)
    for number, (height, width) in enumerate([(60, 80), (120, 160), (45, 60)]):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(picture(height, width, number)).save(tmp_path / f"photos/{number}.png")
    (tmp_path / "roi.json").write_text(json.dumps(ROI))
    (tmp_path / "other.json").write_text(json.dumps({**ROI, "ignore": []}))
    return tmp_path


def lines(out: str) -> list[dict[str, float | str | None]]:
    return [json.loads(line) for line in Path(out, "inspections.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("tiles", [1, 2])
def test_all_routes_say_the_same(folder: Path, capsys: pytest.CaptureFixture[str], tiles: int) -> None:
    head = "AFCLIP.ckpt"
    seen = ["--checkpoint", head, "--tiles", str(tiles), "--num_workers", "0"]
    assert calibrate.main(["--normal", "good", "--roi", "roi.json", "--out", "bolts.calibration.json", *seen]) == 0
    kept = Calibration.read(Path("bolts.calibration.json"))
    assert kept.roi is not None
    assert kept.roi.source == "roi.json"

    by = ["--calibration", "bolts.calibration.json"]
    assert inspect.main(["photos", "--out", "torch", "--save", "npy,mask,overlay", *by, *seen]) == 0
    model = load(head, device="cpu", tiling=Tiling(tiles=tiles), calibration="bolts.calibration.json")
    wanted = model.predict_many([f"photos/{i}.png" for i in range(3)])
    for row, one in zip(lines("torch"), wanted, strict=True):
        assert row["score"] == pytest.approx(one.score, abs=BOUND)
        assert row["verdict"] == ("anomalous" if one.anomalous else "normal")
        assert row["area"] == pytest.approx(one.area, abs=BOUND)
        np.testing.assert_allclose(np.load(f"torch/npy/{row['name']}.npy"), one.anomaly_map, atol=BOUND)
        assert one.inside is not None
        assert not np.array(Image.open(f"torch/masks/{row['name']}.png"))[~one.inside].any()

    export_bundle(model, folder / "bundle")
    for engine, found in GRAPH_ENGINES.items():
        pytest.importorskip(found.package)
        bundle = open_bundle(folder / "bundle", engine=engine)
        assert bundle.roi == kept.roi
        same(bundle.predict_many([f"photos/{i}.png" for i in range(3)]), wanted)
        command = ["photos", "--bundle", "bundle", "--out", engine, "--engine", engine, "--num_workers", "0"]
        assert runtime_inspect.main(command) == 0
        for row, one in zip(lines(engine), wanted, strict=True):
            assert row["score"] == pytest.approx(one.score, abs=BOUND)
            assert row["area"] == pytest.approx(one.area, abs=BOUND)
        capsys.readouterr()
        assert runtime_inspect.main([*command, "--roi", "other.json"]) == 2
        assert "the region of interest" in capsys.readouterr().err

    client = TestClient(create_app(model, Limits(), ["localhost"]), base_url="http://localhost")
    with client:
        assert client.get("/api/model").json()["roi"] == pytest.approx(kept.roi.share)
        for number, one in enumerate(wanted):
            answer = client.post("/api/inspect?map=true", content=Path(f"photos/{number}.png").read_bytes()).json()
            assert answer["score"] == pytest.approx(one.score, abs=BOUND)
            assert answer["area"] == pytest.approx(one.area, abs=BOUND)
            bits = np.unpackbits(np.frombuffer(base64.b64decode(answer["map"]["inside"]), np.uint8))
            assert one.inside is not None
            np.testing.assert_array_equal(bits[: one.inside.size].reshape(one.inside.shape), one.inside)

    capsys.readouterr()
    assert inspect.main(["photos", "--out", "x", "--roi", "other.json", *by, *seen]) == 2
    assert "the region of interest" in capsys.readouterr().err
    assert inspect.main(["photos", "--out", "torch", "--roi", "other.json", "--no_calibration", *seen]) == 2
    assert "holds inspections with another model" in capsys.readouterr().err  # one table has one region


def same(found: list[Inspection], wanted: list[Inspection]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert abs(a.score - b.score) <= BOUND
        np.testing.assert_allclose(a.anomaly_map, b.anomaly_map, atol=BOUND, rtol=0)
        assert a.anomalous == b.anomalous
        assert a.inside is not None
        np.testing.assert_array_equal(a.inside, b.inside)
