"""Runs that train on two datasets together: kinds of methods, kept features, the card, a stop in an epoch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.components.prompt_images import PromptImages
from afclip_lightning.datasets.cross_dataset import CrossDataset
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.methods.mrad import MEMORY, MRAD
from afclip_runtime.launch.signals import STOPPED
from tests.support.clips import small_config
from tests.support.layouts.mvtec import write_mvtec
from tests.support.methods import trainer_of
from tests.support.small_run import run, write_small_run
from tests.support.stops import stop_after

pytestmark = pytest.mark.slow
SECOND = {"class_path": "MVTecLayout", "init_args": {"root": "second", "num_workers": 0}}
FIRST = {"class_path": "MVTecLayout", "init_args": {"root": "trained", "num_workers": 0}}
SEVERAL = [f"--data.train={json.dumps([FIRST, SECOND])}", "--data.train_sampling=evenly"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_small_run(tmp_path)
    write_mvtec(tmp_path / "second", ["nut", "pin"])
    return tmp_path


def layout(root: Path, **arguments: Any) -> MVTecLayout:
    return MVTecLayout(root, batch_size=3, num_workers=0, **arguments)


def head(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def test_the_card_names_each_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", *SEVERAL, "--out=run") == 0
    card = head(folder / "run/head.ckpt")["card"]
    assert card["title"] == "AFCLIP trained on trained + second"
    found = [(part["dataset"], part["categories"], part["images"]) for part in card["trained_on"]]
    assert [(name, list(categories), images) for name, categories, images in found] == [
        ("trained", ["bottle"], 4),
        ("second", ["nut", "pin"], 8),
    ]


def test_kept_features_change_nothing(folder: Path) -> None:
    assert run("fit", *SEVERAL, "--out=plain", "--test_after_fit=false") == 0
    kept = ["--features.cache=kept", "--features.dtype=float32", "--test_after_fit=false"]
    assert run("fit", *SEVERAL, "--out=kept_run", *kept) == 0
    plain, again = (head(folder / place / "head.ckpt")["state_dict"] for place in ("plain", "kept_run"))
    for name, values in plain.items():
        torch.testing.assert_close(again[name], values, rtol=1e-3, atol=1e-5)


def test_a_run_that_was_stopped_in_an_epoch_goes_on_as_it_would_have(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = [*SEVERAL, "--trainer.max_epochs=3", "--test_after_fit=false", "--model.adapter_heads=4"]
    longer[0] = longer[0].replace('"num_workers": 0', '"num_workers": 0, "batch_size": 3')  # 4 steps an epoch
    assert run("fit", *longer, "--out=whole") == 0
    stop_after(5, monkeypatch)
    assert run("fit", *longer, "--out=stopped") == STOPPED
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    done = head(folder / "stopped/checkpoints/last.ckpt")["global_step"]
    assert done % 4  # within an epoch
    assert run("fit", *longer, "--checkpoint=stopped", "--out=again") == 0
    whole, again = (head(folder / place / "head.ckpt") for place in ("whole", "again"))
    assert whole["global_step"] == again["global_step"] == 12
    for name, values in whole["state_dict"].items():
        assert torch.equal(again["state_dict"][name], values), name


def test_a_memory_of_the_training_set_holds_all_of_them(tmp_path: Path) -> None:
    write_mvtec(tmp_path / "set", ["cap", "nut", "pin"])
    write_mvtec(tmp_path / "tested", ["bolt"])
    backbone = ClipBackbone(small_config(tmp_path), "random", image_size=None)
    memories = []
    for train in (
        layout(tmp_path / "set"),
        [layout(tmp_path / "set", categories=["cap"]), layout(tmp_path / "set", categories=["nut", "pin"])],
    ):
        torch.manual_seed(0)
        model = MRAD(backbone, layer=3, variant="TF")
        data = CrossDataset(train, layout(tmp_path / "tested")).connect(model.preprocess)
        trainer_of(tmp_path, enable_checkpointing=False).fit(model, data)
        memories.append({name: getattr(model, name) for name in MEMORY})
    for name in MEMORY:  # of other batches
        torch.testing.assert_close(memories[0][name], memories[1][name], rtol=1e-3, atol=1e-4)
    assert len(memories[0]["normal_images"]) == 3


def test_images_to_compare_with_are_of_the_image_s_own_set(tmp_path: Path) -> None:
    sets = [layout(write_mvtec(tmp_path / name, ["nut"])) for name in ("one", "two")]
    images = PromptImages.of(sets, Preprocess(14), seed=0)
    for part in sets:
        for sample in part.samples("test"):
            drawn = images.draw(sample, 0)
            assert (drawn.dataset, drawn.split) == (part.name, "train")
