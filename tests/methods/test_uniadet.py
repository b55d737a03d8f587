"""UniADet: equal to loops, its parameters, the effect of each option, arguments."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.scoring import upsample
from afclip_lightning.methods.uniadet import UniADet
from tests.reference import uniadet_naive as naive
from tests.support.clips import small_config
from tests.support.methods import batch_of, score, train_step, with_masks

LAYERS = (2, 5, 8)


def small(folder: Path, **arguments: Any) -> UniADet:
    torch.manual_seed(0)
    backbone = ClipBackbone(small_config(folder), "random", image_size=None)
    return UniADet(backbone, **{"layers": (1, 3), "map_sigma": 0.0, **arguments})


@pytest.mark.parametrize("image_score", ["class_token", "patches"])
def test_scores_and_maps_equal_loops(tmp_path: Path, image_score: str) -> None:
    model = small(tmp_path, image_score=image_score, top_patches=3)
    batch = batch_of(3, model.backbone.image_size)
    features = model.extract(batch)
    scores, maps = score(model, batch)
    pixels = model.pixel_vectors.detach().double().numpy()
    images = None if model.image_vectors is None else model.image_vectors.detach().double().numpy()
    for i in range(3):
        tokens = [layer[i].double().numpy() for layer in features.tokens]
        expected_score, patches = naive.score(tokens, pixels, images, 0.07, top=3)
        assert scores[i].item() == pytest.approx(expected_score, abs=1e-5)
        expected = torch.from_numpy(np.array(patches)).unflatten(0, features.grid)[None]
        torch.testing.assert_close(maps[i].double(), upsample(expected, maps.shape[1:])[0].double(), rtol=0, atol=1e-5)


def test_the_loss_of_a_batch_equals_loops(tmp_path: Path) -> None:
    model = small(tmp_path)
    batch = batch_of(2, model.backbone.image_size)
    features = model.extract(batch)
    losses = model.loss(features, batch)
    patches, images = model.logits(features)
    assert images is not None
    entropy = sum(
        -math.log(1 / (1 + math.exp(-logit if label else logit)))
        for layer in images.tolist()
        for logit, label in zip(layer, batch.label.tolist(), strict=True)
    )
    assert losses["image_ce"].item() == pytest.approx(entropy / 2, rel=1e-5)
    dice = 0.0
    for layer in patches.detach().double().unflatten(2, features.grid):
        pixels = upsample(layer, batch.mask.shape[1:]).double().sigmoid()
        for one, mask in zip(pixels, batch.mask.double(), strict=True):
            dice += 1 - (2 * (one * mask).sum().item() + 1) / (one.sum().item() + mask.sum().item() + 1)
    assert losses["dice"].item() == pytest.approx(dice / 2, rel=1e-4)
    assert losses["total"].item() == pytest.approx(sum(losses[k].item() for k in ("image_ce", "focal", "dice")))


def test_parameters_are_those_of_the_paper(tmp_path: Path) -> None:
    """15,360 for CLIP's ViT-L at its joint width, 4 C per layer: here with the tower's own width."""
    model = small(tmp_path)
    width = model.backbone.vision.width
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * 2 * width * 2
    assert model.trainable_names() == {"pixel_vectors", "image_vectors"}
    assert small(tmp_path, image_score="patches").trainable_names() == {"pixel_vectors"}


def test_the_tasks_are_apart(tiny: ClipBackbone) -> None:
    """Without a mask, only the vectors of the image train, not those of the map."""
    model = UniADet(tiny, layers=LAYERS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = train_step(model, model.configure_optimizers(), with_masks(batch_of(2), [False, False]))  # type: ignore[arg-type]
    assert losses["focal"] == losses["dice"] == 0
    assert torch.equal(model.pixel_vectors, before["pixel_vectors"])
    assert not torch.equal(model.image_vectors, before["image_vectors"])  # type: ignore[arg-type]


@pytest.mark.parametrize("image_score", ["class_token", "patches"])
def test_training_finds_a_square(tiny: ClipBackbone, image_score: str) -> None:
    torch.manual_seed(0)
    model = UniADet(tiny, layers=LAYERS, image_score=image_score, optimizer=lambda p: torch.optim.Adam(p, 0.05))  # type: ignore[arg-type]
    batch = batch_of(4)
    batch.image[1::2, :, 20:60, 30:90] = 2.0
    optimizer = model.configure_optimizers()
    assert optimizer is not None
    for _ in range(60):
        train_step(model, optimizer, batch)
    scores, maps = score(model, batch)
    assert scores[1::2].min() > scores[0::2].max()
    inside = maps[1, 24:56, 34:86].mean()
    assert inside > maps[1, 70:].mean() + 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_score": "map"}, "image_score must be one of class_token, patches"),
    ],
)
def test_wrong_arguments_are_refused(tiny: ClipBackbone, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UniADet(tiny, **{"layers": LAYERS, **arguments})
