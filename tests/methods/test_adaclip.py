"""AdaCLIP: the fusion, prompts beside a tower's tokens, names in prompts, errors."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.clustering import ROUNDS, k_means
from afclip_lightning.engine.app import main
from afclip_lightning.methods.adaclip import AdaCLIP, Fusion
from afclip_lightning.prompts.hybrid import HybridTokens, PromptedBlocks
from afclip_runtime.errors import CheckpointError
from tests.reference import adaclip_naive as naive
from tests.support.architectures import build_tiny
from tests.support.clips import small_config
from tests.support.methods import batch_of, saved, score
from tests.support.rounding import float64

LAYERS = (2, 4, 6, 8)


@pytest.fixture
def small(tmp_path: Path) -> ClipBackbone:
    return ClipBackbone(small_config(tmp_path), "random", image_size=None)


@pytest.mark.slow
def test_trainable_parameters_at_vit_l_14(tmp_path: Path) -> None:
    """As many as in the official code without its unused text prompts. They depend on the widths only."""
    vision = {"image_size": 336, "layers": 4, "width": 1024, "patch_size": 14}
    text = {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 4}
    config = small_config(tmp_path, "widths-of-l14", embed_dim=768, vision_cfg=vision, text_cfg=text)
    model = AdaCLIP(ClipBackbone(config, "random", image_size=None), layers=(1, 2, 3, 4))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 10_665_472 - 5 * 768


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["highest_cluster", "top_patches"])
def test_the_fusion_is_that_of_plain_loops(tiny: ClipBackbone, fusion: Fusion) -> None:
    model = AdaCLIP(tiny, layers=LAYERS, fusion=fusion, clusters=4)
    with float64():
        patches = [torch.nn.functional.normalize(torch.randn(3, 40, 6), dim=-1) for _ in range(2)]
        probability = torch.rand(3, 40)
        found = model.fused(patches, probability)
    loops = {"highest_cluster": naive.highest_cluster, "top_patches": naive.top_patches}[fusion]
    for row in range(3):
        expected = loops([layer[row].numpy() for layer in patches], probability[row].numpy(), 4, ROUNDS)
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=0, atol=1e-9)


def test_k_means_finds_groups_that_lie_apart_in_any_company() -> None:
    centres = 10 * torch.eye(4)
    points = (centres[torch.arange(24) % 4] + 0.1 * torch.randn(24, 4)).expand(2, -1, -1).clone()
    points[1] = points[1].flip(0)
    labels = k_means(points, 4)
    assert all(len(set(labels[0, k::4].tolist())) == 1 for k in range(4))
    assert len(set(labels[0, :4].tolist())) == 4
    assert torch.equal(labels[1:], k_means(points[1:], 4))


def test_k_means_of_equal_points_is_finite() -> None:
    assert k_means(torch.ones(1, 5, 3), 3).tolist() == [[0] * 5]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["OpenAI", "EVA-02", "PE-Core", "RoPE of each block"])
def test_prompts_are_further_tokens_of_the_own_blocks(tmp_path: Path, name: str) -> None:
    """Against the block's own pass. In a tower with a rotary embedding, prompts are declared as prefix tokens."""
    backbone = build_tiny(name, tmp_path, **({"text": "random"} if name.startswith("RoPE") else {}))
    prompts = [torch.randn(2, 3, backbone.vision.width) for _ in range(2)]
    image = torch.randn(2, 3, *backbone.preprocess.shape)
    spec = backbone.spec([1, 3])
    found = backbone.encode_adapted(image, spec, PromptedBlocks(backbone, tuple(prompts)))
    tokens, rotations = backbone.vision.embed(image)
    first = backbone.vision.n_prefix
    for number, (block, rotation) in enumerate(zip(backbone.vision.blocks, rotations, strict=True), 1):
        if number <= 2:
            rest = tokens if number == 1 else torch.cat([tokens[:, :first], tokens[:, first + 3 :]], dim=1)
            tokens = torch.cat([rest[:, :first], prompts[number - 1], rest[:, first:]], dim=1)
        if rotation is None:
            tokens = block(tokens)
        else:
            with mock.patch.object(block.attn, "num_prefix_tokens", first + 3):
                tokens = block(tokens, rope=rotation)
        if number in spec.layers:
            got = found.tokens[spec.layers.index(number)][:, 1:]
            torch.testing.assert_close(got, tokens[:, first + 3 :], rtol=1e-4, atol=1e-4)


def test_a_token_is_the_sum_of_what_all_share_and_what_is_of_the_image() -> None:
    tokens = HybridTokens(2, 3, 4, condition=5)
    assert tokens.static is not None
    condition = torch.randn(2, 5)
    first, second = tokens(condition, copies=3)
    dynamic = tokens.made_of(condition)
    assert first.shape == (6, 3, 4)
    torch.testing.assert_close(first[4], tokens.static[0] + dynamic[1])
    torch.testing.assert_close(second[2], tokens.static[1] + dynamic[0])
    with pytest.raises(ValueError, match="got 2 blocks, 3 tokens, static False, dynamic False"):
        HybridTokens(2, 3, 4, condition=5, static=False, dynamic=False)


@pytest.mark.slow
def test_dashes_of_a_name_are_spaces_and_underscores_stay(tiny: ClipBackbone) -> None:
    model, batch = AdaCLIP(tiny, layers=LAYERS), batch_of(1)
    scores = {}
    for name in ("metal-nut", "metal nut", "metal_nut"):
        named = replace(batch, samples=[replace(batch.samples[0], category=name)])
        scores[name] = score(model, named)[1]
    assert torch.equal(scores["metal-nut"], scores["metal nut"])
    assert not torch.equal(scores["metal_nut"], scores["metal nut"])


@pytest.mark.parametrize(
    "arguments",
    [
        {"layers": (9,)},
        {"layers": ()},
        {"temperature": 0.0},
        {"names": "folder"},
        {"fusion": "all"},
        {"clusters": 10_000},
        {"clusters": 0},
        {"fusion_weight": 1.5},
        {"prompt_depth": 0},
        {"prompt_depth": 5},
        {"prompt_tokens": 0},
        {"static_prompts": False, "dynamic_prompts": False},
    ],
)
def test_bad_arguments_are_refused(tiny: ClipBackbone, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        AdaCLIP(tiny, **{"layers": LAYERS, **arguments})


def test_prompts_that_would_overwrite_a_sentence_are_refused(tiny: ClipBackbone) -> None:
    model = AdaCLIP(tiny, layers=LAYERS, prompt_tokens=60)
    with pytest.raises(ValueError, match=r"60 prompt tokens must leave the end of '.*', which has"):
        score(model, batch_of(1))


def test_checkpoint_refuses_another_fusion(tmp_path: Path, small: ClipBackbone) -> None:
    arguments: dict[str, Any] = {"layers": (1, 3), "prompt_depth": 2, "clusters": 2}
    checkpoint = saved(AdaCLIP(small, **arguments), tmp_path)
    with pytest.raises(CheckpointError, match="fusion: 'highest_cluster' in the checkpoint, 'top_patches' here"):
        AdaCLIP(small, **arguments, fusion="top_patches").on_load_checkpoint(checkpoint)


def test_the_store_refuses_it_and_says_why(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = "configs/adaclip_demo.yaml"
    assert main(["fit", f"--config={config}", f"--features.cache={tmp_path}", f"--out={tmp_path / 'run'}"]) == 2
    assert "AdaCLIP trains layers between the backbone's blocks, so their features change" in capsys.readouterr().err
