"""AdaCLIP against numbers recorded from the official code (see `golden/README.md`)."""

import hashlib
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.positional import resize_positional_embedding
from afclip_lightning.components.losses import two_class_focal_loss
from afclip_lightning.components.scoring import anomaly_probability, upsample
from afclip_lightning.methods import adaclip
from afclip_lightning.methods.adaclip import AdaCLIP, Fusion
from afclip_lightning.prompts.templates import ADACLIP_ABNORMAL, ADACLIP_NORMAL, ADACLIP_TEMPLATES, sentences
from tests.support.recipe import GOLDEN
from tests.support.recipe_baselines import NETWORKS, WIDTH, batch_of, make_backbone, value
from tests.support.rounding import Check, compare

pytestmark = pytest.mark.slow

FILE = "adaclip.npz"
STORED = np.load(GOLDEN / FILE)
SIZE = int(STORED["image_size"])


TEST = batch_of(["metal_nut"] * 3, SIZE)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> ClipBackbone:
    return make_backbone(tmp_path_factory.mktemp("adaclip"), "L14-A", "bicubic")


def official(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yields the official tensors that one of ours, or its gradient, holds, by name."""
    part, _, rest = name.partition(".")
    if rest == "static":
        first = 1 if part == "text_tokens" else 0  # the first of the text's are never used
        for index, block in enumerate(tensor, first):
            yield f"{part.removesuffix('_tokens')}_prompter.static_prompts.{index}", block
    elif rest.startswith("dynamic."):
        for index, head in enumerate(tensor.unflatten(0, (5, -1))):
            kind = rest.removeprefix("dynamic.")
            yield f"dynamic_{part.removesuffix('_tokens')}_prompt_generator.head.{index}.{kind}", head
    elif part == "patch_layers":
        yield f"patch_token_layer.head.{rest}", tensor
    else:
        yield f"cls_token_layer.head.0.{rest}", tensor


def adaclip_model(backbone: ClipBackbone, fusion: Fusion = "none", clusters: int = 1) -> AdaCLIP:
    """Returns the method with the settings of the official code and the recipe's values."""
    model = AdaCLIP(backbone, fusion=fusion, clusters=clusters, half_prompts=True, dice_of_rows=True)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for theirs, part in official(name, parameter.data):
                static = 0.1 if "static" in theirs else None
                part.copy_(value(f"adaclip.{theirs}", tuple(part.shape), static))
    return model


def test_the_head_is_as_large(backbone: ClipBackbone) -> None:
    trained = sum(p.numel() for p in adaclip_model(backbone).parameters() if p.requires_grad)
    assert trained + 5 * backbone.text.width == STORED["learnable_count"]


def test_sentences() -> None:
    for row, (name, states) in enumerate((("normal", ADACLIP_NORMAL), ("abnormal", ADACLIP_ABNORMAL))):
        lines = sentences(states, ADACLIP_TEMPLATES, "metal_nut")
        assert len(lines) == STORED["n_prompts"][row]
        assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == str(STORED[f"prompts_{name}_sha256"])


def test_positional_embedding(backbone: ClipBackbone) -> None:
    patch, native, size, _, _ = NETWORKS["L14-A"]
    grid, new_grid = ((side // patch, side // patch) for side in (native, size))
    table = value("visual.positional_embedding", (1 + grid[0] * grid[1], WIDTH))

    def resized(_: ClipBackbone, check: Check) -> None:
        check(resize_positional_embedding(table, grid, new_grid, "bicubic"), "pos_embed_resized")

    compare(resized, backbone, FILE)


def test_prompted_towers(backbone: ClipBackbone) -> None:
    compare(prompted_towers, backbone, FILE)


@torch.no_grad()
def prompted_towers(backbone: ClipBackbone, check: Check) -> None:
    model = adaclip_model(backbone)
    features = model.extract(TEST)
    condition = features.image_embedding
    assert condition is not None
    assert model.visual_tokens is not None
    assert model.text_tokens is not None
    check(model.visual_tokens.made_of(condition)[0], "dynamic_visual_img0")
    check(model.text_tokens.made_of(condition)[0], "dynamic_text_img0")
    prompted = model.prompted(TEST.image, condition)
    assert prompted.image_embedding is not None
    check(prompted.image_embedding[:1], "prompted_pooled_img0")
    taps = torch.stack([tokens[0, 1::4, ::2] for tokens in prompted.tokens])
    check(taps, "prompted_tokens_img0_sample")
    tokens = model.tokens(features, TEST)
    check(tokens.image, "cls_token_projected")
    check(torch.stack([patches[:, ::3, ::2] for patches in tokens.patches]), "patch_tokens_projected_sample")
    check(tokens.text, "text_features_per_image")


def test_maps_and_scores(backbone: ClipBackbone) -> None:
    compare(maps_and_scores, backbone, FILE)


@torch.no_grad()
def maps_and_scores(backbone: ClipBackbone, check: Check) -> None:
    model = adaclip_model(backbone)
    features = model.extract(TEST)
    tokens = model.tokens(features, TEST)
    patch_map = model.patch_logits(tokens).mean(0).unflatten(1, features.grid)
    pixels = upsample(patch_map, SIZE, align_corners=True).sigmoid()
    check(pixels[:, ::2, ::2], "map_before_smoothing")
    check(pixels.mean((1, 2)), "map_before_smoothing_mean")
    prediction = model.score(features, TEST)
    check(prediction.anomaly_map[:, ::2, ::2], "map_sigma4")
    check(prediction.pred_score, "nohsf_image_score")


def test_fusion_of_the_code(backbone: ClipBackbone) -> None:
    compare(fusion_of_the_code, backbone, FILE)


@torch.no_grad()
def fusion_of_the_code(backbone: ClipBackbone, check: Check) -> None:
    """Its groups are random, and recorded."""
    for clusters in (1, 4):
        model = adaclip_model(backbone, "top_patches", clusters)
        recorded = torch.from_numpy(STORED[f"hsf{clusters}_kmeans_labels"]).long()
        assert recorded.shape[1] == STORED[f"hsf{clusters}_kmeans_input_shape"][0]
        with mock.patch.object(adaclip, "k_means", return_value=recorded) as grouped:
            prediction = model.score(model.extract(TEST), TEST)
        points, asked = grouped.call_args.args
        assert tuple(points.shape[1:]) == tuple(STORED[f"hsf{clusters}_kmeans_input_shape"])
        assert asked == clusters
        check(prediction.pred_score, f"hsf{clusters}_image_score")


def test_a_training_step(backbone: ClipBackbone) -> None:
    compare(a_training_step, backbone, FILE)


def a_training_step(backbone: ClipBackbone, check: Check) -> None:
    model, batch = adaclip_model(backbone), batch_of(["metal_nut"], SIZE)
    features = model.extract(batch)
    losses = model.loss(features, batch)
    tokens = model.tokens(features, batch)
    logits = model.patch_logits(tokens)
    probability = anomaly_probability(model.image_logits(tokens, logits))
    maps = [upsample(layer.unflatten(1, features.grid), (SIZE, SIZE), align_corners=True).sigmoid() for layer in logits]
    focal = [two_class_focal_loss(probability, batch.label), *(two_class_focal_loss(m, batch.mask) for m in maps)]
    check(torch.stack(focal), "train_focal_image_then_layers")
    normal = 1 - batch.mask.float()
    dice = [(adaclip._dice_of_rows(m, batch.mask), adaclip._dice_of_rows(1 - m, normal)) for m in maps]
    check(torch.stack([term for pair in dice for term in pair]), "train_dice_abn_nor_alternating")
    check(losses["total"], "train_loss")
    losses["total"].backward()
    optimizer = model.configure_optimizers()
    assert optimizer is not None
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        for theirs, gradient in official(name, parameter.grad):
            check(gradient.norm(), f"grad_norm.{theirs}")
            if f"grad_first16.{theirs}" in STORED:
                check(gradient.flatten()[:16], f"grad_first16.{theirs}")
    optimizer.step()
    for name, parameter in trained.items():
        for theirs, moved in official(name, parameter.detach()):
            if f"adamw1_first16.{theirs}" in STORED:
                check(moved.flatten()[:16], f"adamw1_first16.{theirs}")
