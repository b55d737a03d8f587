"""`head fuse`: from checkpoints to one head file, which does not need them; rejected heads."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from afclip_lightning import load
from afclip_lightning.cli import adapt as adapt_verb
from afclip_lightning.cli import head as verb
from afclip_lightning.cli.calibrate import main as calibrate
from afclip_lightning.cli.inspect import main as inspect
from afclip_lightning.heads.file import read_head_file
from afclip_lightning.inspection.export import export
from tests.support import small_models
from tests.support.small_head import BACKBONE, picture, write_head, write_pictures

MEMORY = {"layer": 8, "variant": "TF"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trained heads, one of them a memory of keys, and normal images of two products."""
    folder = tmp_path_factory.mktemp("fuse")
    write_head(folder / "a" / "head.ckpt", {})
    write_head(folder / "b.ckpt", {}, "MRAD", MEMORY)
    for seed, product in ((0, "bolts"), (50, "nuts")):
        write_pictures(folder / "normal" / product, 3, seed=seed)
    return folder


def fuse(folder: Path, out: Path, *heads: str, options: Any = ()) -> int:
    normal = [str(folder / "normal" / product) for product in ("bolts", "nuts")]
    return verb.main(["fuse", *heads, "--normal", *normal, "--out", str(out), "--device", "cpu", *options])


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    heads = tmp_path_factory.mktemp("heads")
    shutil.copytree(folder / "a", heads / "a")
    shutil.copy(folder / "b.ckpt", heads)
    out = tmp_path_factory.mktemp("made") / "fusion.safetensors"
    assert fuse(folder, out, str(heads / "a"), str(heads / "b.ckpt")) == 0
    shutil.rmtree(heads)  # the fusion needs them no longer
    return out


def test_it_is_the_standardised_mean_of_its_heads(folder: Path, made: Path) -> None:
    model, heads = load(made, device="cpu"), [load(folder / name, device="cpu") for name in ("a", "b.ckpt")]
    wanted, wanted_map = 0.0, np.zeros((60, 80))
    for head in heads:
        scores, maps = [], []
        for product in ("bolts", "nuts"):
            found = head.predict_many(sorted((folder / "normal" / product).iterdir()))
            scores.append([one.score for one in found])
        every, groups = np.concatenate(scores), [np.array(group) for group in scores]
        scale = (sum(((group - group.mean()) ** 2).sum() for group in groups) / (6 - 2)) ** 0.5
        one = head.predict(picture(60, 80, 9))
        wanted += (one.score - every.mean()) / scale / 2
        wanted_map = wanted_map + one.anomaly_map
        maps.append(one.anomaly_map)
    got = model.predict(picture(60, 80, 9))
    assert got.score == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    assert got.anomaly_map.shape == (60, 80)
    assert got.anomaly_map.std() > 0


def test_the_file_holds_its_heads_tensors(folder: Path, made: Path) -> None:
    head = read_head_file(made)
    for index, name in enumerate(("a/head.ckpt", "b.ckpt")):
        for key, tensor in torch.load(folder / name, weights_only=True)["state_dict"].items():
            assert torch.equal(head.tensors[f"heads.{index}.{key}"], tensor)
    assert head.card.title == "A fusion of a, b.ckpt"
    assert [part.dataset for part in head.card.trained_on][-1] == "scales: normal images in nuts"


def test_inspect_and_calibrate_take_it(folder: Path, made: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "normal", 10, seed=100)
    common = ["--checkpoint", str(made), "--num_workers", "0", "--device", "cpu"]
    assert calibrate(["--normal", str(tmp_path / "normal"), *common]) == 0
    assert inspect([str(folder / "normal" / "nuts"), "--out", str(tmp_path / "out"), *common]) == 0
    assert (tmp_path / "out" / "inspections.csv").exists()
    made.with_name("fusion.calibration.json").unlink()


def test_it_is_one_graph(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    heads = [str(small_models.write_head(tmp_path, name)) for name in ("AFCLIP", "PatchLogit", "CLIP")]
    assert fuse(folder, tmp_path / "fusion.safetensors", *heads) == 0
    facts = export(load(tmp_path / "fusion.safetensors", device="cpu"), tmp_path / "fusion.onnx", "onnx")
    assert 0 < facts["largest_difference"] < 1e-4


def test_adapt_puts_it_beside_a_memory(folder: Path, made: Path, tmp_path: Path) -> None:
    options = ["--normal", str(folder / "normal" / "bolts"), "--num_workers", "0"]
    assert adapt_verb.main([*options, "--checkpoint", str(made), "--out", str(tmp_path / "model")]) == 0
    model = load(tmp_path / "model", device="cpu")
    assert np.isfinite(model.predict(picture(60, 80, 9)).score)


def test_methods_that_train_nothing_are_named(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "fusion.safetensors"
    assert fuse(folder, out, str(folder / "a"), "CLIP") == 0
    assert load(out, device="cpu", arguments={"weights": [1.0, 3.0]}).method.hparams["weights"] == [1.0, 3.0]
    assert fuse(folder, out, str(folder / "a"), "PatchRarity") == 0  # whose layers are those of 24 blocks, not of 8
    assert read_head_file(out).model["init_args"]["heads"][1]["arguments"]["layers"] == [2, 4, 6, 8]


def test_another_backbone_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"layers": [2, 4], "adapter_heads": 2, "backbone": {**BACKBONE, "image_size": 56}}
    write_head(tmp_path / "c.ckpt", {}, "AFCLIP", other)
    assert fuse(folder, tmp_path / "out.safetensors", str(folder / "a"), str(tmp_path / "c.ckpt")) == 2
    said = capsys.readouterr().err
    assert "uses another backbone than" in said
    assert "image_size: 56 of" in said
    assert not (tmp_path / "out.safetensors").exists()


def test_a_head_that_needs_more_than_an_image_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"class_path": "NearestNeighbours", "init_args": {"backbone": BACKBONE, "layers": [2, 4]}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"model": model}))
    assert fuse(folder, tmp_path / "out", str(folder / "a"), str(tmp_path / "c.yaml")) == 2
    assert "cannot score an image alone" in capsys.readouterr().err
