"""AA-CLIP: two stages of one fit, which resumes from any point; adapters, names, scaled scores."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.utils.data import DataLoader

from afclip_lightning.backbones.attention import value_block
from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.adapters import ResidualAdapter
from afclip_lightning.components.scoring import blur
from afclip_lightning.methods.aaclip import AACLIP
from afclip_lightning.prompts.templates import AACLIP_ABNORMAL, AACLIP_TEMPLATES
from afclip_lightning.types import Batch
from afclip_runtime.errors import DatasetError
from tests.support.clips import small_config
from tests.support.methods import batch_of, data_of, score, take, trainer_of
from tests.support.rounding import float64

SMALL: dict[str, Any] = {"layers": (1, 3), "text_adapters": 1, "image_adapters": 2, "vv_from": 2}
TINY: dict[str, Any] = {"layers": (2, 4, 6, 8), "image_adapters": 3, "vv_from": 3}


@pytest.fixture
def small(tmp_path: Path) -> ClipBackbone:
    return ClipBackbone(small_config(tmp_path), "random", image_size=None)


def made(backbone: ClipBackbone, **arguments: Any) -> AACLIP:
    torch.manual_seed(0)
    return AACLIP(backbone, **{**SMALL, "text_epochs": 2, **arguments})


def batches() -> list[Batch]:
    batch = batch_of(6, size=28)
    return [take(batch, [0, 1]), take(batch, [2, 3]), take(batch, [4, 5])]


def fitted(model: AACLIP, folder: Path, epochs: int, checkpoint: Path | None = None) -> Path:
    """Trains up to an epoch and returns the checkpoint."""
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, DataLoader(batches(), batch_size=None), ckpt_path=checkpoint)
    path = folder / f"{epochs}-{checkpoint is None}.ckpt"
    trainer.save_checkpoint(path)
    return path


def moved(model: AACLIP, before: dict[str, Tensor]) -> set[str]:
    """Returns the parts whose tensors have all changed, and checks that all other tensors are unchanged."""
    parts: dict[str, set[bool]] = {}
    for name, tensor in model.state_dict().items():
        parts.setdefault(name.split(".")[0], set()).add(not torch.equal(tensor, before[name]))
    assert all(len(found) == 1 for found in parts.values())
    return {part for part, found in parts.items() if True in found}


def state_of(model: AACLIP) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.slow
def test_trainable_parameters_at_vit_l_14(tmp_path: Path) -> None:
    vision = {"image_size": 336, "layers": 6, "width": 1024, "patch_size": 14}
    text = {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 3}
    config = small_config(tmp_path, "widths-of-l14", embed_dim=768, vision_cfg=vision, text_cfg=text)
    model = AACLIP(ClipBackbone(config, "random", image_size=None), layers=(1, 2, 3, 4))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 12_582_912


@pytest.mark.slow
def test_the_stages_follow_each_other_in_one_fit(tmp_path: Path, small: ClipBackbone) -> None:
    model = made(small)
    start = state_of(model)
    fitted(model, tmp_path, 2)
    assert moved(model, start) == {"text_anchors"}
    model = made(small)
    fitted(model, tmp_path, 4)
    visual = {"image_adapters", "patch_projections", "image_projection"}
    assert moved(model, start) == visual | {"text_anchors"}
    again = made(small)
    before = fitted(again, tmp_path, 2)
    anchors = torch.load(before, weights_only=True)["state_dict"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, anchors[name]) == name.startswith("text_"), name  # they stay in stage 2


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [1, 2, 3])
def test_a_fit_goes_on_wherever_it_was_stopped(tmp_path: Path, small: ClipBackbone, stopped: int) -> None:
    """Within the text stage, between the stages, within the visual stage; the learning rate falls within that one."""
    arguments: dict[str, Any] = {"milestones": (2, 5)}
    whole = made(small, **arguments)
    fitted(whole, tmp_path, 4)
    checkpoint = fitted(made(small, **arguments), tmp_path, stopped)
    resumed = made(small, **arguments)
    end = torch.load(fitted(resumed, tmp_path, 4, checkpoint), weights_only=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    (optimizer,) = end["optimizer_states"]
    image, text = optimizer["param_groups"]
    assert (image["stage"], image["steps"], text["stage"], text["steps"]) == ("image", 6, "text", 6)
    assert image["lr"] == pytest.approx(5e-4 / 4)
    assert text["lr"] == pytest.approx(1e-5)


def test_an_end_before_the_visual_stage_is_said(tmp_path: Path, small: ClipBackbone) -> None:
    with pytest.warns(UserWarning, match="max_epochs is 1, and the text stage takes 2: the visual stage is not"):
        fitted(made(small), tmp_path, 1)


@pytest.mark.slow
def test_without_a_text_stage_the_text_is_the_towers_own(tiny: ClipBackbone) -> None:
    model, batch = AACLIP(tiny, **TINY, text_epochs=0), batch_of(2)
    assert not model.in_text_stage
    assert not any(name.startswith("text_") for name in model.trainable_names())
    (_, abnormal), _ = model.text(batch.samples)
    sentences = [t.format(s.format("")) for s in AACLIP_ABNORMAL for t in AACLIP_TEMPLATES]
    embedded = torch.nn.functional.normalize(tiny.encode_text(sentences), dim=-1).mean(0)
    torch.testing.assert_close(abnormal, torch.nn.functional.normalize(embedded, dim=-1), rtol=1e-5, atol=1e-6)


def test_an_adapter_keeps_the_length_of_a_token() -> None:
    with float64():
        adapter, tokens = ResidualAdapter(5, weight=0.3), torch.randn(2, 3, 5)
        found = adapter(tokens)
        weight = adapter.linear.weight.detach().numpy()
    for got, token in zip(found.detach().reshape(-1, 5).numpy(), tokens.reshape(-1, 5).numpy(), strict=True):
        adapted = np.array([sum(w * x for w, x in zip(row, token, strict=True)) for row in weight])
        adapted = np.where(adapted > 0, adapted, 0.01 * adapted)
        adapted *= np.sqrt((token**2).sum() / (adapted**2).sum())
        np.testing.assert_allclose(got, 0.3 * adapted + 0.7 * token, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_values_attend_within_an_image_or_over_the_batch(tiny: ClipBackbone) -> None:
    block, tokens = tiny.vision.blocks[0], torch.randn(3, 7, tiny.vision.width)
    within = value_block(block, tokens)
    torch.testing.assert_close(within[1:2], value_block(block, tokens[1:2]), rtol=1e-5, atol=1e-5)
    over = value_block(block, tokens, over_batch=True)
    swapped = value_block(block, tokens.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(over, swapped, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(within, over, atol=1e-3)
    attention: Any = block.attn
    weight, bias = attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2]
    values = torch.nn.functional.linear(block.ln_1(tokens), weight, bias).unflatten(-1, (attention.num_heads, -1))
    logits = torch.einsum("bthd,bshd->bhts", values, values) / values.shape[-1] ** 0.5
    attended = torch.einsum("bhts,bshd->bthd", logits.softmax(-1), values).flatten(2)
    expected = tokens + attention.out_proj(attended)
    expected = expected + block.mlp(block.ln_2(expected))
    torch.testing.assert_close(within, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(9, 6), (3, 2), (1, 5)])
def test_the_blur_is_scipys_with_mirrored_borders(shape: tuple[int, int]) -> None:
    maps = torch.rand(2, *shape)
    expected = maps.numpy().astype(np.float64)
    for axis in (1, 2):
        expected = gaussian_filter1d(expected, 1.3, axis=axis, mode="mirror", radius=3)
    np.testing.assert_allclose(blur(maps, 7, 1.3).numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_one_map_of_the_sum_of_the_layers(tiny: ClipBackbone) -> None:
    """Eq. (7), as a loop over the layers."""
    model, batch = AACLIP(tiny, **TINY), batch_of(2)
    with torch.no_grad():
        every = AACLIP(tiny, **TINY, map_fusion="maps")
        every.load_state_dict(model.state_dict(), strict=False)
        (one,), of_image = model.adapted_tokens(batch.image)
        layers, same = every.adapted_tokens(batch.image)
        assert len(layers) == 4
        assert torch.equal(of_image, same)
        text = model.text(batch.samples)
        maps, _ = model.measured(batch)
        patch_map = 100 * (one @ (text[:, 1] - text[:, 0])[..., None])[..., 0]
        blurred = blur(patch_map.unflatten(1, tiny.grid), 7, 1.0)
        expected = torch.nn.functional.interpolate(blurred[:, None], (112, 112), mode="bilinear", align_corners=True)
    torch.testing.assert_close(maps, (expected[:, 0] + 1) / 2, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_names_of_a_category_in_prompts(tiny: ClipBackbone) -> None:
    sample = replace(batch_of(1).samples[0], category="metal_nut", class_name="metal nut")
    names = {
        (dataset, rule): AACLIP(tiny, **TINY, names=rule).name_of(replace(sample, dataset=dataset))
        for dataset in ("mvtec", "mvtec_seen", "other")
        for rule in ("description", "class_name", "category")
    }
    described = "metal nut which has four notched edges"
    assert names["mvtec", "description"] == names["mvtec_seen", "description"] == described
    assert names["other", "description"] == names["mvtec", "class_name"] == "metal nut"
    assert names["mvtec", "category"] == "metal_nut"


def test_scaled_scores_are_of_the_category(tmp_path: Path, small: ClipBackbone) -> None:
    model = made(small, image_score="scaled")
    assert model.needs_test_set
    with pytest.raises(DatasetError, match=r"image_0\.png: no map of d/a was measured"):
        score(model, batch_of(2, size=28))
    data = data_of(tmp_path, model)
    predictions = trainer_of(tmp_path, enable_checkpointing=False).predict(model, data)
    found = torch.cat([p.pred_score for p in predictions])
    maps = torch.cat([p.anomaly_map for p in predictions])
    assert not model.map_ranges
    categories = [sample.category for batch in data.test_dataloader() for sample in batch.samples]
    raw = torch.cat([((model.measured(batch)[1][:, 1] + 1) / 2).detach() for batch in data.test_dataloader()])
    for category in ("cap", "nut"):
        rows = [i for i, c in enumerate(categories) if c == category]
        of_map = (maps[rows].amax((1, 2)) - maps[rows].min()) / (maps[rows].max() - maps[rows].min())
        of_image = (raw[rows] - raw[rows].min()) / (raw[rows].max() - raw[rows].min()).clamp(min=1e-4)
        torch.testing.assert_close(found[rows], (of_map + of_image) / 2, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_image_scores(tiny: ClipBackbone) -> None:
    batch = batch_of(2)
    model = AACLIP(tiny, **TINY)
    scores, maps = score(model, batch)
    assert scores.min() >= 0
    assert scores.max() <= 1
    highest = AACLIP(tiny, **TINY, image_score="map")
    highest.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(score(highest, batch)[0], maps.amax((1, 2)))
    with torch.no_grad():
        logits = model.measured(batch)[1]
    expected = ((2 * maps.amax((1, 2)) - 1).sigmoid() + logits.softmax(-1)[:, 1]) / 2
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def bad_arguments() -> Iterator[dict[str, Any]]:
    yield from ({"layers": (9,)}, {"layers": ()}, {"temperature": 0.0}, {"text_lr": 0.0}, {"blur_window": 4})
    yield from ({"text_epochs": -1}, {"text_adapters": 5}, {"image_adapters": 9}, {"text_weight": 1.5})
    yield from ({"text_stage": "both"}, {"map_fusion": "all"}, {"image_score": "max"}, {"names": "folder"})


@pytest.mark.parametrize("arguments", bad_arguments())
def test_bad_arguments_are_refused(tiny: ClipBackbone, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        AACLIP(tiny, **{**TINY, **arguments})
