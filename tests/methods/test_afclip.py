"""AF-CLIP: its variants, few-shot memory, arguments, and checkpoints in detail."""

import copy
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.unit_tokens import JoinedEnding, JoinedTokens
from afclip_lightning.data.dataloader import AnomalyLoader
from afclip_lightning.methods.afclip import AFCLIP
from afclip_lightning.types import Batch, ClipFeatures
from afclip_runtime.errors import CheckpointError, DatasetError, TrainingError
from tests.support.clips import SMALL, small_config
from tests.support.methods import TextCalls, batch_of, data_of, saved, score, train_step, trainer_of
from tests.support.rounding import float64

LAYERS = (2, 4, 6, 8)
VARIANTS: dict[str, dict[str, Any]] = {  # Table 4 of the paper: base, then one part more each
    "base": {"learnable_prompt": False, "adapter": False, "layers": (8,), "scales": (1,)},
    "V1": {"adapter": False, "layers": (8,), "scales": (1,)},
    "V2": {"layers": (8,), "scales": (1,)},
    "V3": {"layers": LAYERS, "scales": (1,)},
    "V4": {"layers": LAYERS},
}


@pytest.mark.slow
def test_trainable_parameters_at_vit_l_14(tmp_path: Path) -> None:
    """The paper's 2,109,440; they depend on the widths only, so one block of each tower is enough."""
    vision = {"image_size": 336, "layers": 1, "width": 1024, "patch_size": 14}
    text = {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 1}
    config = small_config(tmp_path, "widths-of-l14", embed_dim=768, vision_cfg=vision, text_cfg=text)
    model = AFCLIP(ClipBackbone(config, "random", image_size=None), layers=(1,))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2_109_440


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_ablation_variants(tiny: ClipBackbone, name: str) -> None:
    torch.manual_seed(0)
    model, batch = AFCLIP(tiny, **VARIANTS[name]), batch_of()
    parts = {n.split(".")[0] for n in model.trainable_names()}
    assert parts == {"base": set(), "V1": {"prompts"}}.get(name, {"prompts", "adapter"})
    assert len(list(model.aggregated(model.extract(batch)))) == {"V3": 4, "V4": 12}.get(name, 1)
    optimizer = model.configure_optimizers()
    assert (optimizer is None) == (name == "base")
    if optimizer is not None:
        first = train_step(model, optimizer, batch)["total"].item()
        for _ in range(3):
            last = train_step(model, optimizer, batch)["total"].item()
        assert last < first


@pytest.mark.slow
def test_tokens_that_are_not_formed_change_neither_losses_nor_gradients(
    tiny: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of()
    features = AFCLIP(tiny, layers=LAYERS).extract(batch).map(Tensor.double)
    model = AFCLIP(copy.deepcopy(tiny), layers=LAYERS, adapter_heads=2).double()
    with float64():
        assert type(next(model.unit_tokens(features, model.embed_text()))) is JoinedTokens
        joined = gradients_of(model, features, batch)
        monkeypatch.setattr(JoinedEnding, "pays", lambda *_: False)
        formed = gradients_of(model, features, batch)
    assert max(gradient.abs().max() for gradient in formed.values()) > 1e-3
    for name, gradient in formed.items():
        torch.testing.assert_close(joined[name], gradient, rtol=0, atol=1e-9 * float(gradient.abs().max()))


def gradients_of(model: AFCLIP, features: ClipFeatures, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    losses = model.loss(features, batch)
    losses["total"].backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return gradients | {name: value.detach() for name, value in losses.items()}


@pytest.mark.slow
def test_without_alignment_the_term_is_gone_and_the_total_follows(tiny: ClipBackbone) -> None:
    torch.manual_seed(0)
    full = AFCLIP(tiny, layers=LAYERS)
    without = AFCLIP(tiny, layers=LAYERS, alignment_loss_weight=0)
    without.load_state_dict(full.state_dict(), strict=False)
    batch = batch_of()
    a, b = full.loss(full.extract(batch), batch), without.loss(without.extract(batch), batch)
    assert "alignment" not in b
    torch.testing.assert_close(a["total"] - a["alignment"], b["total"])


@pytest.mark.slow
def test_scores_and_maps_are_float32_in_mixed_precision(tiny: ClipBackbone) -> None:
    model, batch = AFCLIP(tiny, layers=LAYERS), batch_of()
    exact = score(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, maps = score(model, batch)
        losses = model.loss(model.extract(batch), batch)
    assert scores.dtype == maps.dtype == losses["total"].dtype == torch.float32
    for mixed, plain in ((scores, exact[0]), (maps, exact[1])):
        torch.testing.assert_close(mixed, plain, rtol=0, atol=0.1)  # a logit is 12 / 0.07 times a cosine


@pytest.mark.slow
def test_few_shot_memory_of_an_image_gives_it_no_distance(tiny: ClipBackbone) -> None:
    batch = batch_of()
    model = AFCLIP(tiny, layers=LAYERS, k_shot=1)
    zero_shot = AFCLIP(tiny, layers=LAYERS)
    zero_shot.load_state_dict(model.state_dict(), strict=False)
    for key, row in ((("d", "a"), 0), (("d", "b"), 1)):
        model.fit_memory(key, batch.image[row : row + 1])
    scores, maps = score(model, batch)
    plain_scores, plain_maps = score(zero_shot, batch)
    torch.testing.assert_close(scores[:2], 0.1 * plain_scores[:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(maps[:2], 0.1 * plain_maps[:2], rtol=0, atol=1e-5)
    assert (maps[2:] > 0.1 * plain_maps[2:] + 1e-3).all()
    with pytest.raises(DatasetError, match="no normal images for d/c"):
        score(model, replace(batch, samples=[replace(s, category="c") for s in batch.samples]))


@pytest.mark.parametrize(
    "arguments",
    [
        {"scales": [2]},
        {"scales": []},
        {"k_shot": -1},
        {"layers": [9]},
        {"temperature": 0.0},
        {"prompt_tokens": 80},
        {"prompt_tokens": -1},
    ],
)
def test_bad_arguments_are_refused(tiny: ClipBackbone, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        AFCLIP(tiny, **{"layers": LAYERS, **arguments})


def test_states_of_different_length_are_embedded_as_each_alone(tiny: ClipBackbone) -> None:
    states = ("fine.", "not at all fine.")
    prompts = AFCLIP(tiny, layers=LAYERS, states=states).prompts
    assert prompts is not None
    for row, state in zip(prompts(tiny), states, strict=True):
        alone = AFCLIP(tiny, layers=LAYERS, states=(state, state)).prompts
        assert alone is not None
        alone.load_state_dict(prompts.state_dict())
        torch.testing.assert_close(row, alone(tiny)[0])


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_and_names_the_images(
    tiny: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AFCLIP, "log", lambda *_, **__: None)
    model, batch = AFCLIP(tiny, layers=LAYERS), batch_of()
    model.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    with torch.no_grad():
        model.prompts.tokens.fill_(float("nan"))
    model.training_step(batch, 7)
    with pytest.raises(TrainingError, match=r"step 7(.|\n)*image_3\.png"):
        model.training_step(batch_of(seed=1), 8)
    model.training_step(batch, 9)
    with pytest.raises(TrainingError, match="step 9"):
        model.on_save_checkpoint({})  # weights that the step has spoilt are never saved


@pytest.fixture
def small(tmp_path: Path) -> ClipBackbone:
    return ClipBackbone(small_config(tmp_path), "random", image_size=None)


@pytest.mark.slow
def test_text_is_encoded_once_a_test_pass_and_once_a_training_step(tmp_path: Path, small: ClipBackbone) -> None:
    model = AFCLIP(small, layers=(1, 2, 3), k_shot=2)
    data, trainer = data_of(tmp_path, model), trainer_of(tmp_path, enable_checkpointing=False)
    calls = TextCalls(small)
    trainer.test(model, data, verbose=False)
    assert calls.count == 1
    trainer.fit(model, data.train_dataloader())
    assert calls.count == 1 + trainer.global_step
    assert trainer.global_step == 3
    trainer.test(model, data, verbose=False)
    assert calls.count == 1 + trainer.global_step + 1
    fixed = AFCLIP(small, layers=(1, 2, 3), learnable_prompt=False)
    made = calls.count
    trainer_of(tmp_path, enable_checkpointing=False).fit(fixed, data.train_dataloader())
    assert calls.count == made  # encoded when it was built
    calls.handle.remove()


def test_checkpoint_holds_the_trainable_tensors_and_plain_values(tmp_path: Path, small: ClipBackbone) -> None:
    model = AFCLIP(small, layers=(1, 3), scales=(1, 3))
    checkpoint = saved(model, tmp_path)
    assert set(checkpoint["state_dict"]) == model.trainable_names()
    assert checkpoint["method_hyperparameters"]["scales"] == (1, 3)
    assert checkpoint["feature_spec"]["layers"] == [1, 3]
    size = sum(t.numel() * t.element_size() for t in checkpoint["state_dict"].values())
    buffer = io.BytesIO()
    torch.save({k: v for k, v in checkpoint.items() if k != "optimizer_states"}, buffer)
    assert len(buffer.getvalue()) < size + 20_000
    again = AFCLIP.load_from_checkpoint(tmp_path / "model.ckpt", backbone=small, layers=(1, 3), scales=(1, 3))
    batch = batch_of(size=28)
    for a, b in zip(score(model, batch), score(again, batch), strict=True):
        assert torch.equal(a, b)


def test_checkpoint_refuses_other_features_methods_and_shapes(tmp_path: Path, small: ClipBackbone) -> None:
    checkpoint = saved(AFCLIP(small, layers=(1, 3)), tmp_path)
    with pytest.raises(CheckpointError, match=r"layers: \[1, 3\] in the checkpoint, \[1, 2\] here"):
        AFCLIP(small, layers=(1, 2)).on_load_checkpoint(checkpoint)
    other = ClipBackbone(small.model, "random", image_size=56, seed=1)
    with pytest.raises(CheckpointError, match=r"image_size: 28 in the checkpoint, 56 here\n.*weights_hash"):
        AFCLIP(other, layers=(1, 3)).on_load_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match=r"prompts\.tokens: \(1, 12, 16\) in the checkpoint, \(1, 9, 16\) here"):
        AFCLIP(small, layers=(1, 3), prompt_tokens=9).on_load_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match="the model is"):
        AFCLIP(small, layers=(1, 3)).on_load_checkpoint({**checkpoint, "method": "other.Method"})
    with pytest.raises(CheckpointError, match=r"temperature: 0\.07 in the checkpoint, 1\.0 here"):
        AFCLIP(small, layers=(1, 3), temperature=1.0).on_load_checkpoint(checkpoint)
    AFCLIP(small, layers=[1, 3], k_shot=2, map_sigma=1.0).on_load_checkpoint(checkpoint)  # free to choose at test


@pytest.mark.slow
def test_a_stopped_run_continues_to_the_same_end(tmp_path: Path, small: ClipBackbone) -> None:
    """Two epochs in one go, and one epoch, a checkpoint and another epoch, give the same weights."""
    torch.manual_seed(0)
    first = AFCLIP(small, layers=(1, 3))
    whole = copy.deepcopy(first)
    data = data_of(tmp_path, first)
    ordered = AnomalyLoader(
        data.train_dataloader().dataset, batch_size=3, collate_fn=data.train_dataloader().collate_fn
    )
    trainer = trainer_of(tmp_path / "a")
    trainer.fit_loop.max_epochs = 2
    trainer.fit(whole, ordered)
    trainer = trainer_of(tmp_path / "b")
    trainer.fit(first, ordered)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    second = AFCLIP(small, layers=(1, 3))
    trainer = trainer_of(tmp_path / "c")
    trainer.fit_loop.max_epochs = 2
    trainer.fit(second, ordered, ckpt_path=tmp_path / "half.ckpt")
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, rtol=0, atol=0)


assert SMALL["embed_dim"] == 16  # the widths that the tests above write down
