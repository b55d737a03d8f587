"""What every trained method must hold, on AF-CLIP: what trains, what is saved, what a score depends on."""

import copy
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.data.mvtec_layout import MVTecLayout
from afclip_lightning.errors import CheckpointError, DatasetError, TrainingError
from afclip_lightning.methods.afclip import AFCLIP
from afclip_lightning.types import Batch, Sample
from tests.layouts.mvtec import write_mvtec
from tests.test_backbone import SMALL, small_config

LAYERS = (2, 4, 6, 8)
VARIANTS: dict[str, dict[str, Any]] = {  # Table 4 of the paper: base, then one part more each
    "base": {"learnable_prompt": False, "adapter": False, "layers": (8,), "scales": (1,)},
    "V1": {"adapter": False, "layers": (8,), "scales": (1,)},
    "V2": {"layers": (8,), "scales": (1,)},
    "V3": {"layers": LAYERS, "scales": (1,)},
    "V4": {"layers": LAYERS},
}


def batch_of(count: int = 4, size: int = 112, seed: int = 0) -> Batch:
    """Returns images of which every second is anomalous, of two categories."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(count, size, size, dtype=torch.uint8)
    mask[1::2, 20:60, 30:90] = 1
    samples = [Sample("d", "ab"[i % 2], "test", Path(f"image_{i}.png"), i % 2) for i in range(count)]
    return Batch(
        image=torch.randn(count, 3, size, size, generator=generator),
        mask=mask,
        label=torch.tensor([s.label for s in samples]),
        mask_known=torch.ones(count, dtype=torch.bool),
        samples=samples,
    )


def take(batch: Batch, rows: list[int]) -> Batch:
    return Batch(
        batch.image[rows],
        batch.mask[rows],
        batch.label[rows],
        batch.mask_known[rows],
        [batch.samples[i] for i in rows],
    )


def score(model: AFCLIP, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        prediction = model.eval().score(model.extract(batch), batch)
    return prediction.pred_score, prediction.anomaly_map


def train_step(model: AFCLIP, optimizer: torch.optim.Optimizer, batch: Batch) -> dict[str, torch.Tensor]:
    losses = model.train().loss(model.extract(batch), batch)
    optimizer.zero_grad()
    losses["total"].backward()
    optimizer.step()
    return losses


def test_trainable_parameters_at_vit_l_14(tmp_path: Path) -> None:
    """The paper's 2,109,440; they depend on the widths only, so one block of each tower is enough."""
    vision = {"image_size": 336, "layers": 1, "width": 1024, "patch_size": 14}
    text = {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 1}
    config = small_config(tmp_path, "widths-of-l14", embed_dim=768, vision_cfg=vision, text_cfg=text)
    model = AFCLIP(ClipBackbone(config, "random", image_size=None), layers=(1,))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2_109_440


def test_every_trainable_parameter_moves_and_nothing_else(tiny: ClipBackbone) -> None:
    model, batch = AFCLIP(tiny, layers=LAYERS), batch_of()
    score(model, batch)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = model.configure_optimizers()
    assert optimizer is not None
    first = train_step(model, optimizer, batch)
    train_step(model, optimizer, batch)
    for name, parameter in model.named_parameters():
        moved = not torch.equal(before[name], parameter)
        assert moved == (not name.startswith("backbone.")), name
        assert (parameter.grad is not None) == moved, name
    assert set(first) == {"total", "image_focal", "map_focal", "map_l1", "alignment"}
    assert all(loss.dtype == torch.float32 for loss in first.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_ablation_variants(tiny: ClipBackbone, name: str) -> None:
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


def test_without_alignment_the_term_is_gone_and_the_total_follows(tiny: ClipBackbone) -> None:
    torch.manual_seed(0)
    full = AFCLIP(tiny, layers=LAYERS)
    without = AFCLIP(tiny, layers=LAYERS, alignment_loss_weight=0)
    without.load_state_dict(full.state_dict(), strict=False)
    batch = batch_of()
    a, b = full.loss(full.extract(batch), batch), without.loss(without.extract(batch), batch)
    assert "alignment" not in b
    torch.testing.assert_close(a["total"] - a["alignment"], b["total"])


def test_scores_do_not_depend_on_the_batch(tiny: ClipBackbone) -> None:
    model, batch = AFCLIP(tiny, layers=LAYERS), batch_of()
    scores, maps = score(model, batch)
    again = score(model, batch)
    assert torch.equal(scores, again[0])
    assert torch.equal(maps, again[1])
    order = [2, 0, 3, 1]
    permuted = score(model, take(batch, order))
    torch.testing.assert_close(permuted[0], scores[order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(permuted[1], maps[order], rtol=1e-5, atol=1e-6)
    for i in range(4):
        single = score(model, take(batch, [i]))
        torch.testing.assert_close(single[0][0], scores[i], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(single[1][0], maps[i], rtol=1e-5, atol=1e-6)


def test_scores_and_maps_are_float32_in_mixed_precision(tiny: ClipBackbone) -> None:
    model, batch = AFCLIP(tiny, layers=LAYERS), batch_of()
    exact = score(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, maps = score(model, batch)
        losses = model.loss(model.extract(batch), batch)
    assert scores.dtype == maps.dtype == losses["total"].dtype == torch.float32
    torch.testing.assert_close(scores, exact[0], rtol=0, atol=0.05)
    torch.testing.assert_close(maps, exact[1], rtol=0, atol=0.1)  # a cosine counts 12 / 0.07 times in a logit


def test_unknown_masks_leave_the_pixel_terms(tiny: ClipBackbone) -> None:
    model, batch = AFCLIP(tiny, layers=LAYERS), batch_of()
    features = model.extract(batch)
    none = model.loss(features, replace(batch, mask_known=torch.zeros(4, dtype=torch.bool)))
    assert set(none) == {"total", "image_focal"}
    some = model.loss(features, replace(batch, mask_known=torch.tensor([True, True, False, False])))
    half = take(batch, [0, 1])
    expected = model.loss(model.extract(half), half)
    for name in ("map_focal", "map_l1", "alignment"):
        torch.testing.assert_close(some[name], expected[name], rtol=1e-4, atol=1e-6)


def test_few_shot_memory_of_an_image_gives_it_no_distance(tiny: ClipBackbone) -> None:
    batch = batch_of()
    model = AFCLIP(tiny, layers=LAYERS, k_shot=1)
    zero_shot = AFCLIP(tiny, layers=LAYERS)
    zero_shot.load_state_dict(model.state_dict(), strict=False)
    for key, row in ((("d", "a"), 0), (("d", "b"), 1)):
        model.remember(key, batch.image[row : row + 1])
    scores, maps = score(model, batch)
    plain_scores, plain_maps = score(zero_shot, batch)
    torch.testing.assert_close(scores[:2], 0.1 * plain_scores[:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(maps[:2], 0.1 * plain_maps[:2], rtol=0, atol=1e-5)
    assert (maps[2:] > 0.1 * plain_maps[2:] + 1e-3).all()
    with pytest.raises(DatasetError, match="no normal images for d/c"):
        score(model, replace(batch, samples=[replace(s, category="c") for s in batch.samples]))


@pytest.mark.parametrize(
    "arguments",
    [{"scales": [2]}, {"scales": []}, {"k_shot": -1}, {"layers": [9]}, {"temperature": 0.0}, {"prompt_tokens": 80}],
)
def test_bad_arguments_are_refused(tiny: ClipBackbone, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        AFCLIP(tiny, **{"layers": LAYERS, **arguments})


def test_states_of_different_length_are_refused(tiny: ClipBackbone) -> None:
    with pytest.raises(ValueError, match="same number of tokens"):
        AFCLIP(tiny, layers=LAYERS, states=("fine.", "not at all fine."))


def test_a_loss_that_is_not_finite_stops_and_names_the_images(tiny: ClipBackbone) -> None:
    model, batch = AFCLIP(tiny, layers=LAYERS), batch_of()
    model.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    with torch.no_grad():
        model.prompts.tokens.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"step 7(.|\n)*image_3\.png"):
        model.training_step(batch, 7)


class TextCalls:
    """Counts the passes through a text tower."""

    def __init__(self, backbone: ClipBackbone) -> None:
        self.count = 0
        self.handle = backbone.text.register_forward_hook(self)

    def __call__(self, *args: object) -> None:
        self.count += 1


@pytest.fixture
def small(tmp_path: Path) -> ClipBackbone:
    return ClipBackbone(small_config(tmp_path), "random", image_size=None)


def trainer_of(folder: Path, **arguments: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **arguments,
    )


def data_of(folder: Path, model: AFCLIP) -> MVTecLayout:
    data = MVTecLayout(write_mvtec(folder / "set", ["cap", "nut"]), name="set", batch_size=3, num_workers=0)
    data.preprocess = model.preprocess
    return data


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


def saved(model: AFCLIP, folder: Path) -> dict[str, Any]:
    """Returns the checkpoint that a trainer writes after a short fit."""
    trainer = trainer_of(folder)
    trainer.fit(model, data_of(folder, model).train_dataloader())
    trainer.save_checkpoint(folder / "model.ckpt")
    checkpoint: dict[str, Any] = torch.load(folder / "model.ckpt", weights_only=True)
    return checkpoint


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


def test_a_stopped_run_continues_to_the_same_end(tmp_path: Path, small: ClipBackbone) -> None:
    """Two epochs in one go, and one epoch, a checkpoint and another epoch, give the same weights."""
    torch.manual_seed(0)
    first = AFCLIP(small, layers=(1, 3))
    whole = copy.deepcopy(first)
    data = data_of(tmp_path, first)
    ordered = torch.utils.data.DataLoader(
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
