"""A backbone with a non-square frame, from training to the graph: maps have the size of each image."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch.nn.functional as F
from PIL import Image

from afclip_lightning import load
from afclip_lightning.cli import inspect
from afclip_lightning.components.scoring import upsample
from afclip_lightning.inspection.export import export
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures
from afclip_runtime.types import Tiling
from afclip_runtime.views.frame import Resize
from tests.support.small_models import write_head
from tests.support.small_run import run, write_small_run

FRAME = (28, 56)  # 4 by 8 patches of 7 pixels
ORIENTATION = 0x0112
WIDE = "--model.backbone.image_size=[28, 56]"


def wide_head(folder: Path, name: str, **backbone: Any) -> Path:
    """Returns a head of `write_head` in a wide frame."""
    given = {"model": str(folder / "two-blocks.json"), "weights": "random", "image_size": [*FRAME], **backbone}
    return write_head(folder, name, backbone=given)


def spot(height: int, width: int, x: float, y: float) -> np.ndarray:
    """Returns a bright spot on black, `[H, W, 3]`, uint8, with its centre at a place in pixels."""
    away = np.hypot(np.arange(height)[:, None] + 0.5 - y, np.arange(width) + 0.5 - x)
    return np.repeat((255 * np.exp(-((away / 12) ** 2))).astype(np.uint8)[..., None], 3, axis=2)


def brightness(features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
    """Scores a patch by its brightness."""
    maps = upsample(F.avg_pool2d(batch.image.mean(1), 7), FRAME)
    return AnomalyPrediction(maps.amax((1, 2)), maps)


@pytest.mark.parametrize("fit", ["squash", "pad", "tiles"])
@pytest.mark.parametrize(  # as a camera writes it that is held level, upside down, or on its sides
    ("orientation", "rule"), [(1, "squash"), (1, "crop"), (3, "trim"), (6, "squash"), (8, "squash")]
)
def test_a_spot_is_where_it_is_seen(
    tmp_path: Path, orientation: int, fit: Any, rule: Resize, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(wide_head(tmp_path, "CLIP", resize=rule), device="cpu", tiling=Tiling(fit))
    monkeypatch.setattr(model.method, "score", brightness)
    height, width = (91, 201) if orientation in (1, 3) else (201, 91)  # as it is seen
    x, y = 0.45 * width, 0.45 * height
    seen = Image.fromarray(spot(height, width, x, y))
    turn = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[
        orientation
    ]
    stored, exif = seen if turn is None else seen.transpose(turn), Image.Exif()
    exif[ORIENTATION] = orientation
    stored.save(tmp_path / "photo.jpg", quality=95, exif=exif)
    found = model.predict(tmp_path / "photo.jpg").anomaly_map
    assert found.shape == (height, width)
    found = np.maximum(found - (found.min() + found.max()) / 2, 0)
    half = 3.5 * max(height / FRAME[0], width / FRAME[1])  # half a patch, in pixels of the image
    assert abs(found.sum(0) @ (np.arange(width) + 0.5) / found.sum() - x) <= half
    assert abs(found.sum(1) @ (np.arange(height) + 0.5) / found.sum() - y) <= half


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["squash", "crop"])
def test_onnx_takes_the_frame(tmp_path: Path, rule: Resize) -> None:
    model = load(wide_head(tmp_path, "AFCLIP", resize=rule), device="cpu")
    facts = export(model, tmp_path / "model.onnx", "onnx")
    assert facts["image"]["shape"] == ["batch", 28, 56, 3]
    assert facts["map"]["shape"] == ["batch", 28, 56]
    way = {"squash": "whatever the aspect ratio", "crop": "the aspect ratio kept and the middle cut out"}[rule]
    assert facts["image"]["resize"] == f"to 28 x 56, {way}; bicubic with antialiasing as Pillow's BICUBIC"
    images = np.random.default_rng(0).integers(0, 256, (5, *FRAME, 3), dtype=np.uint8)
    scores, maps = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(["score", "map"], {"image": images})
    wanted = model.predict_many(list(images))
    np.testing.assert_allclose(scores, [one.score for one in wanted], atol=1e-4, rtol=0)
    np.testing.assert_allclose(maps, np.stack([one.anomaly_map for one in wanted]), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_run_in_a_wide_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_small_run(tmp_path)
    assert run("fit", WIDE, "--out=run", "--features.cache=kept", "--pictures.count=2", "--trainer.max_epochs=2") == 0
    spec = json.loads(next(Path("kept").glob("*/spec.json")).read_text())
    assert spec["image_size"] == [28, 56]
    assert "resize" not in spec  # features from before there was a choice are found as ever
    first = json.loads(Path("run/results.json").read_text())
    # read from what was kept, and with the size that the head says of itself
    assert run("test", WIDE, "--checkpoint=run", "--out=again", "--features.cache=kept") == 0
    assert json.loads(Path("again/results.json").read_text())["rows"] == first["rows"]
    assert run("test", WIDE, "--checkpoint=run", "--out=own", "--evaluation.resolution=image") == 0
    assert run("test", WIDE, "--checkpoint=run", "--out=cropped", "--model.backbone.resize=crop") == 2
    assert "resize: 'squash' in the checkpoint, 'crop' here" in capsys.readouterr().err
    assert run("test", "--checkpoint=run", "--out=square") == 2
    assert "image_size: [28, 56] in the checkpoint, 28 here" in capsys.readouterr().err
    assert run("fit", "--model.backbone.image_size=[30, 56]", "--out=wrong") == 2
    assert "multiple of the patch size 14, got [30, 56]; nearest: [28, 56] and [42, 56]" in capsys.readouterr().err

    Image.fromarray(spot(91, 201, 50, 40)).save("wide.png")
    given = [
        "wide.png",
        "--checkpoint",
        "run",
        "--out",
        "out",
        "--save",
        "map,npy,overlay",
        "--fit",
        "tiles",
        "--tiles",
        "2",
    ]
    assert inspect.main(given) == 0
    assert np.load("out/npy/wide.npy").shape == (91, 201)
    assert Image.open("out/overlays/wide.jpg").size == (201, 91)
