"""Patch rarity: equal to loops, high at unusual parts of an image, independent of other images, arguments."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.methods.patch_rarity import PatchRarity, patch_rarity
from tests.reference import neighbours_naive as naive
from tests.support.clips import small_config
from tests.support.methods import batch_of, score, take

LAYERS = (2, 5, 8)


@settings(deadline=None, max_examples=30)
@given(count=st.integers(2, 12), channels=st.integers(1, 5), share=st.floats(0.01, 1.0), seed=st.integers(0, 2**32 - 1))
def test_rarity_equals_loops(count: int, channels: int, share: float, seed: int) -> None:
    tokens = np.random.default_rng(seed).normal(size=(1, 1 + count, channels)).astype(np.float32)
    expected = naive.rarity([tokens[0, 1:]], share)
    actual = patch_rarity(torch.from_numpy(tokens), share)
    torch.testing.assert_close(actual[0].double(), torch.tensor(expected).double(), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_scores_and_maps_are_of_the_mean_over_the_layers(tiny: ClipBackbone) -> None:
    model, batch = PatchRarity(tiny, layers=LAYERS, share=0.05), take(batch_of(), [0])
    tokens = [layer[0, 1:].double().numpy() for layer in model.extract(batch).tokens]
    expected = torch.tensor(naive.rarity(tokens, 0.05), dtype=torch.float64)
    scores, maps = score(model, batch)
    torch.testing.assert_close(scores[0].double(), expected.max(), rtol=0, atol=1e-6)
    pooled = (
        maps[0].unflatten(0, (14, 8)).unflatten(2, (14, 8))[:, 3:5, :, 3:5].mean((1, 3))
    )  # about the patches' centres
    # linear interpolation about a centre mixes its neighbours in: the same order, smaller differences
    assert torch.corrcoef(torch.stack([pooled.flatten(), expected.float()]))[0, 1] > 0.97


def test_what_an_image_shows_once_is_rare(tiny: ClipBackbone) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = take(batch_of(), [0])
    batch.image[:] = torch.randn(3, 8, 8, generator=generator).tile(1, 14, 14)  # every patch alike
    model = PatchRarity(tiny, layers=LAYERS)
    plain, _ = score(model, batch)
    batch.image[..., 40:56, 64:80] = torch.randn(3, 16, 16, generator=generator) + 2
    rare, maps = score(model, batch)
    assert rare > plain
    inside = maps[0, 40:56, 64:80]
    assert inside.min() > maps[0].median()
    assert maps[0].flatten().argmax() // 112 in range(36, 60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 0.0}, r"share must be in \(0, 1\]"),
        ({"share": 1.5}, "got 1.5"),
    ],
)
def test_bad_arguments_are_refused(tiny: ClipBackbone, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchRarity(tiny, **{"layers": LAYERS, **arguments})


def test_an_image_of_one_patch_is_refused(tmp_path: Path) -> None:
    vision = {"image_size": 14, "layers": 3, "width": 16, "head_width": 8, "patch_size": 14}
    backbone = ClipBackbone(small_config(tmp_path, vision_cfg=vision), "random", image_size=None)
    with pytest.raises(ValueError, match="one patch: there are no others"):
        PatchRarity(backbone, layers=(1,))
