"""Patch logit: equal to loops, training, the effect of each part, arguments."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.scoring import upsample
from afclip_lightning.methods.patch_logit import PatchLogit, patch_loss
from tests.reference import patch_logit_naive as naive
from tests.support.clips import small_config
from tests.support.methods import batch_of, score, train_step, with_masks

LAYERS = (2, 5, 8)


def test_scores_and_maps_equal_loops(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = ClipBackbone(small_config(tmp_path), "random", image_size=None)
    model = PatchLogit(backbone, layers=(1, 3), map_sigma=0.0)
    with torch.no_grad():
        model.bias.fill_(-0.5)
    batch = batch_of(2, backbone.image_size)
    features = model.extract(batch)
    scores, maps = score(model, batch)
    weights = [p.detach().double().numpy() for p in (model.own, model.deviation)]
    for i in range(2):
        tokens = [layer[i].double().numpy() for layer in features.tokens]
        logits = naive.logits(tokens, *weights, bias=-0.5)
        top = sum(sorted(logits)[-3:]) / 3
        assert scores[i].item() == pytest.approx(1 / (1 + math.exp(-top)), abs=1e-5)
        expected = torch.from_numpy(1 / (1 + np.exp(-np.array(logits)))).unflatten(0, features.grid)[None]
        torch.testing.assert_close(maps[i].double(), upsample(expected, maps.shape[1:])[0].double(), rtol=0, atol=1e-5)


def test_the_loss_of_patches_is_of_two_means() -> None:
    logits, target = torch.tensor([[2.0, -1.0, 0.3, 0.7]]), torch.tensor([[0.0, 1.0, 0.0, 0.5]])

    def focal(logit: float) -> float:
        probability = 1 / (1 + math.exp(-logit))
        return -math.log(probability) * (1 - probability) ** 2

    expected = 1.5 * (focal(-2.0) + focal(-0.3)) / 2 + 0.5 * focal(-1.0)
    assert patch_loss(logits, target, 2.0).item() == pytest.approx(expected, rel=1e-5)
    assert patch_loss(logits, torch.full((1, 4), 0.5), 2.0) == 0


def test_training_finds_a_square(tiny: ClipBackbone) -> None:
    torch.manual_seed(0)
    model = PatchLogit(tiny, layers=LAYERS, optimizer=lambda p: torch.optim.Adam(p, 0.01))
    batch = batch_of(4)
    batch.image[1::2, :, 20:60, 30:90] = 2.0
    optimizer = model.configure_optimizers()
    assert optimizer is not None
    for _ in range(60):
        train_step(model, optimizer, batch)
    scores, maps = score(model, batch)
    assert scores[1::2].min() > scores[0::2].max()
    assert maps[1, 24:56, 34:86].mean() > maps[1, 70:].mean() + 0.3


def test_without_a_mask_only_the_image_is_learnt(tiny: ClipBackbone) -> None:
    model = PatchLogit(tiny, layers=LAYERS)
    batch = with_masks(batch_of(2), [False, False])
    losses = model.loss(model.extract(batch), batch)
    assert losses["patch_focal"] == 0
    assert losses["total"].item() == pytest.approx(0.3 * losses["image"].item())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_weight": -1.0}, "image_weight"),
        ({"focal_gamma": -1.0}, "focal_gamma"),
    ],
)
def test_wrong_arguments_are_refused(tiny: ClipBackbone, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchLogit(tiny, **{"layers": LAYERS, **arguments})
