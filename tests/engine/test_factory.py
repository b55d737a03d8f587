"""Heads from files: a checkpoint is self-contained, and misfits are reported."""

from pathlib import Path

import pytest
import torch
from lightning import seed_everything

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.engine.app import main
from afclip_lightning.engine.factory import backbone_key, build, load_head, method_class, methods
from afclip_lightning.methods.afclip import AFCLIP
from afclip_lightning.types import Batch, Sample
from afclip_runtime.errors import CheckpointError, UserError
from tests.support.commands import arguments

BACKBONE = {"model": "tiny-8-112", "weights": "embedded", "image_size": 112}


def batch(size: int) -> Batch:
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    samples = [Sample("own", "own", "test", Path("a.png"), 0, class_name="object")] * 2
    return Batch(image, torch.zeros(2, size, size), torch.zeros(2), torch.ones(2, dtype=torch.bool), samples)


@pytest.fixture
def run(folder: Path) -> Path:
    assert main(["fit", *arguments("afclip_visa", test_after_fit="false", model__temperature="0.5")]) == 0
    return folder / "run"


@pytest.mark.slow
def test_a_head_stands_alone(run: Path) -> None:
    seed_everything(3)  # its construction must not matter
    head = load_head(run / "head.ckpt")
    assert isinstance(head, AFCLIP)
    assert head.temperature == 0.5
    assert not head.training
    stored = torch.load(run / "head.ckpt", weights_only=True)["state_dict"]
    assert stored
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, stored[name])
    given = batch(28)
    with torch.no_grad():
        one = head.score(head.extract(given), given)
        other = load_head(run).score(head.extract(given), given)
    assert torch.equal(one.anomaly_map, other.anomaly_map)


@pytest.mark.slow
def test_arguments_in_place_of_the_stored_ones(run: Path) -> None:
    assert load_head(run, {"map_sigma": 1.0}).map_sigma == 1.0
    with pytest.raises(UserError, match=r"AFCLIP: .*map_sigmas"):
        load_head(run, {"map_sigmas": 1.0})
    with pytest.raises(CheckpointError, match=r"temperature: 0\.5 in the checkpoint, 0\.1 here"):
        load_head(run, {"temperature": 0.1})
    with pytest.raises(CheckpointError, match="image_size: 28 in the checkpoint, 56 here"):
        load_head(run, {"backbone.image_size": 56})


def test_a_backbone_is_built_once() -> None:
    backbones: dict[str, ClipBackbone] = {}
    model = {"class_path": "CLIP", "init_args": {"backbone": BACKBONE}}
    one = build(model, backbones=backbones)
    other = build({"class_path": "WinCLIP", "init_args": {"backbone": {**BACKBONE, "seed": 0}}}, backbones=backbones)
    assert one.backbone is other.backbone
    assert list(backbones) == [backbone_key(BACKBONE)]
    build(model, {"backbone.pos_embed": "bicubic"}, backbones)
    assert len(backbones) == 2


def test_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "clip.yaml"
    config.write_text(
        "model:\n  class_path: CLIP\n  init_args:\n    backbone: {model: tiny-8-112, weights: '${oc.env:W}',"
        " image_size: 112}\n"
    )
    with pytest.raises(UserError, match=r"clip\.yaml: cannot be read as a config .*'W'"):
        load_head(config)
    monkeypatch.setenv("W", "embedded")
    assert type(load_head(config)).__name__ == "CLIP"
    config.write_text(
        config.read_text().replace("CLIP\n", "AFCLIP\n").replace("112}", "112}\n    layers: [2, 4, 6, 8]")
    )
    with pytest.raises(UserError, match="AFCLIP has to be trained: run fit"):
        load_head(config)
    config.write_text("data: {}\n")
    with pytest.raises(UserError, match="no `model` section"):
        load_head(config)


@pytest.mark.slow
def test_heads_that_cannot_be_loaded_are_reported(tmp_path: Path, run: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_head(tmp_path / "none.ckpt")
    checkpoint = torch.load(run / "head.ckpt", weights_only=True)
    checkpoint["model"] = None
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(CheckpointError, match="does not say how its method is built"):
        load_head(tmp_path / "old.ckpt")
    wrong = {"layers": 3}, {"backbone.image_size": "large"}
    for given, said in zip(
        wrong, ("layers: expected a list, got 3", "image_size: expected a whole number"), strict=True
    ):
        with pytest.raises(UserError, match=said) as caught:
            load_head(run / "head.ckpt", given)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError, match="there is no method 'Foo'; ours are AACLIP, AFCLIP, "):
        method_class("Foo")
    with pytest.raises(UserError, match=r"there is no method 'os\.path'"):
        method_class("os.path")
    assert {"AFCLIP", "CLIP", "MuSc", "KAnoCLIP"} <= set(methods())
    assert "PromptMethod" not in methods()
