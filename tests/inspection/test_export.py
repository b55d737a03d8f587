"""Exported graphs give the numbers of the Python model, or the export fails with the reason."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from afclip_lightning import load
from afclip_lightning.cli.export import main
from afclip_lightning.inspection import export as graph
from afclip_lightning.inspection.predictor import Predictor
from afclip_runtime.errors import UserError
from afclip_runtime.views.roi import Roi
from tests.support.small_models import SIZE, write_head

pytestmark = pytest.mark.slow


def pictures(count: int, seed: int = 5) -> list[np.ndarray]:
    """Images that are not square and not of the backbone's size."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(count)]


def as_input(images: list[np.ndarray]) -> np.ndarray:
    """The preprocessing that the description asks of a user, with Pillow alone."""
    resized = [Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for image in images]
    return np.stack([np.asarray(image) for image in resized])


def assert_equal(model: Predictor, outputs: tuple[np.ndarray, np.ndarray], count: int) -> None:
    """Compares outputs for `pictures(count)` with those of the model."""
    scores, maps = outputs
    wanted = model.predict_many(list(as_input(pictures(count))))
    assert scores.dtype == maps.dtype == np.float32
    np.testing.assert_allclose(scores, [one.score for one in wanted], atol=1e-4, rtol=0)
    np.testing.assert_allclose(maps, np.stack([one.anomaly_map for one in wanted]), atol=1e-4, rtol=0)
    assert maps.std() > 1e-4  # equal to something that says something


def run_onnx(path: Path, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, maps = onnxruntime.InferenceSession(path).run(["score", "map"], {"image": image})
    return scores, maps


@pytest.mark.parametrize(
    ("name", "shots"), [("AFCLIP", 2), ("FAPrompt", 0), ("MRAD", 0), ("AnomalyDINO", 2), ("AdaptCLIP", 2)]
)
def test_onnx_gives_the_numbers_of_the_model(tmp_path: Path, name: str, shots: int) -> None:
    model = load(write_head(tmp_path, name), device="cpu", few_shot=pictures(shots, seed=1))
    path = tmp_path / "out" / "model.onnx"
    facts = graph.export(model, path, "onnx")
    assert 0 < facts["largest_difference"] < 1e-4
    for count in (1, 5):  # 5 is none of the sizes that `export` compares
        assert_equal(model, run_onnx(path, as_input(pictures(count))), count)


@pytest.mark.parametrize(
    ("name", "shots", "arguments"),
    [
        ("AACLIP", 0, {}),
        ("AFCLIP", 0, {}),
        ("AdaCLIP", 0, {}),
        ("AdaptCLIP", 0, {}),
        ("AnomalyCLIP", 0, {}),
        ("GlocalCLIP", 0, {}),
        ("AnoVL", 0, {"steps": 0, "augment": False}),
        ("APRILGAN", 0, {}),
        ("CLIP", 0, {}),
        ("CoCoOp", 0, {}),
        ("CoOp", 0, {}),
        ("FAPrompt", 0, {}),
        ("KAnoCLIP", 0, {}),
        ("AnomalyDINO", 2, {"masked": ["*"], "mask_threshold": 4.0, "neighbours": 3}),
        ("SubspaceAD", 2, {}),
        ("MRAD", 0, {"variant": "TF", "neighbours": 5}),
        ("WinCLIP", 2, {}),
        ("PatchRarity", 0, {}),
        ("Fusion", 0, {}),
        ("NearestNeighbours", 2, {}),
        ("HeadWithMemory", 2, {}),
        ("PatchLogit", 2, {}),
        ("UniADet", 2, {}),
    ],
)
def test_a_torch_program_gives_the_numbers_of_the_model(
    tmp_path: Path, name: str, shots: int, arguments: dict[str, Any]
) -> None:
    model = load(
        write_head(tmp_path, name, **arguments), device="cpu", category="metal nut", few_shot=pictures(shots, seed=1)
    )
    path = tmp_path / "model.pt2"
    facts = graph.export(model, path, "torch_export")
    extra = {graph.FACTS: ""}
    with path.open("rb") as file:
        program = torch.export.load(file, extra_files=extra)
    assert json.loads(extra[graph.FACTS]) == {key: facts[key] for key in facts if key != "largest_difference"}
    scores, maps = program.module()(torch.from_numpy(as_input(pictures(5))))
    assert_equal(model, (scores.detach().numpy(), maps.detach().numpy()), 5)
    text_tower = [name for name in program.state_dict if ".backbone.text_tower." in name]
    assert bool(text_tower) == (
        name in {"FAPrompt", "AdaCLIP", "CoCoOp"}
    )  # whose prompts depend on the image; else it stays out


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    model = load(write_head(tmp_path, "CLIP"), device="cpu", category="metal nut")
    path = tmp_path / "model.onnx"
    facts = graph.export(model, path, "onnx")
    assert json.loads((tmp_path / "model.onnx.json").read_text()) == facts
    said = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert said["category"] == facts["category"] == "metal nut"
    assert json.loads(said["image"]) == facts["image"]
    assert facts["image"]["shape"] == ["batch", SIZE, SIZE, 3]
    assert "two-blocks" in said["backbone"]
    other = tmp_path / "other.onnx"
    graph.export(load(tmp_path / "CLIP.yaml", device="cpu", category="zipper"), other, "onnx")
    image = as_input(pictures(1))
    assert run_onnx(path, image)[0] != run_onnx(other, image)[0]  # the class name is baked in


@pytest.mark.parametrize(
    ("name", "reason"),
    [("DualImageCLIP", "compares an image with others"), ("AnoVL", "trains on each image that it tests")],
)
def test_methods_that_cannot_be_a_graph_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    model = load(write_head(tmp_path, name), device="cpu")
    with pytest.raises(UserError, match=f"{name} cannot be exported: it {reason}"):
        graph.export(model, tmp_path / "model.pt2", "torch_export")
    assert not list(tmp_path.glob("*.pt2*"))


def test_a_wrong_graph_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(write_head(tmp_path, "CLIP"), device="cpu")
    path = tmp_path / "model.onnx"
    path.write_text("what was there before")
    with monkeypatch.context() as patch:
        patch.setattr(graph, "_read_onnx", lambda path: lambda image: (np.zeros(len(image)), np.full(1, np.nan)))
        with pytest.raises(UserError, match=r"model\.onnx was not written: its scores or maps differ .* nan"):
            graph.export(model, path, "onnx")
    monkeypatch.setattr(graph, "ONNX_LIMIT", 1000)
    with pytest.raises(UserError, match=r"an ONNX file holds 2 GB. Use --to torch_export"):
        graph.export(model, path, "onnx")
    assert path.read_text() == "what was there before"
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "CLIP.yaml", "two-blocks.json"}


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    head = write_head(tmp_path, "AFCLIP")
    good = tmp_path / "good"
    good.mkdir()
    for index, image in enumerate(pictures(2)):
        Image.fromarray(image).save(good / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    assert main(["--checkpoint", str(head), "--to", "torch_export", "--few_shot_dir", str(good)]) == 0
    assert "Largest difference" in capsys.readouterr().out
    assert json.loads(Path("AFCLIP.pt2.json").read_text())["shots"]
    (tmp_path / "none").mkdir()
    assert main(["--checkpoint", str(head), "--to", "torch_export", "--few_shot_dir", "none"]) == 2
    assert "none, the folder of few-shot images, has no image." in capsys.readouterr().err
    assert main(["--checkpoint", "absent.ckpt", "--to", "onnx"]) == 2
    assert "absent.ckpt does not exist" in capsys.readouterr().err


def test_help_does_without_torch() -> None:
    code = (
        "import sys; from afclip_lightning.cli.export import _parser; _parser().format_help();"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("to", ["onnx", "torch_export"])
def test_a_graph_heeds_the_region_of_interest(tmp_path: Path, to: graph.Target) -> None:
    roi = Roi((50, 40), (((5.0, 5.0), (40.0, 8.0), (30.0, 38.0)),), (((20.0, 10.0), (25.0, 10.0), (25.0, 20.0)),))
    model = load(write_head(tmp_path, "AFCLIP"), device="cpu", roi=roi)
    facts = graph.export(model, tmp_path / "model", to)
    images = pictures(3)
    run = graph._read_onnx if to == "onnx" else graph._read_torch
    scores, maps = run(tmp_path / "model")(as_input(images))
    wanted = model.predict_many(images)
    np.testing.assert_allclose(scores, [one.score for one in wanted], atol=1e-4, rtol=0)
    inside = model.method.preprocess.inside(roi).astype(bool)
    views = [model.views(image)[0] for image in images]
    own = model.engine.score(np.stack(views))[1]
    np.testing.assert_allclose(maps[:, inside], own[:, inside], atol=1e-4, rtol=0)
    np.testing.assert_allclose(maps[:, ~inside].T, np.tile(own[:, inside].min(1), ((~inside).sum(), 1)), atol=1e-4)
    other = [255 - image for image in images]
    for image, changed in zip(images, other, strict=True):
        changed[roi.inside(40, 50)] = image[roi.inside(40, 50)]
    np.testing.assert_array_equal(run(tmp_path / "model")(as_input(other))[0], scores)
    assert facts["roi"]["fingerprint"] == roi.fingerprint
    whole = load(write_head(tmp_path, "AFCLIP"), device="cpu").predict_many(images)
    assert all(abs(one.score - other.score) > 1e-4 for one, other in zip(whole, wanted, strict=True))
