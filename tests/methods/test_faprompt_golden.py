"""FAPrompt against numbers recorded from the official code (see `golden/README.md`)."""

import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.scoring import prototypes, upsample_and_smooth
from afclip_lightning.methods.faprompt import FAPrompt
from tests.support.golden_case import RELEASED, GoldenCase
from tests.support.rounding import DERIVE

pytestmark = pytest.mark.slow

CASES = {  # prefix of the network, variant of the code, arguments that the variant changes
    "released": ("", "", {}),
    "two heads": ("wide_", "", {}),
    "top patches": ("", "topk_", {"prior_patches": "topk"}),
    "no rounding": ("", "nohalf_", {"half_deep_tokens": False}),
}

Case = GoldenCase[FAPrompt]


def official(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Returns the official tensors, by name, that one of ours holds."""
    if name == "prompts.deep.tokens":
        return [(f"faprompt.compound_prompts_text.{i}", row) for i, row in enumerate(tensor)]
    names = {
        "prompts.normal_tokens": "ctx_pos",
        "prompts.abnormal_tokens": "ctx_neg",
        "prior_network.0.weight": "patch_meta_net.linear1.weight",
        "prior_network.0.bias": "patch_meta_net.linear1.bias",
        "prior_network.2.weight": "patch_meta_net.linear2.weight",
        "prior_network.2.bias": "patch_meta_net.linear2.bias",
    }
    return [(f"faprompt.{names[name]}", tensor)]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, golden_backbones: dict[int, ClipBackbone]) -> Case:
    prefix, variant, changes = CASES[request.param]
    backbone = golden_backbones[128 if prefix else 64]
    return GoldenCase(
        lambda backbone: FAPrompt(backbone, **RELEASED | changes), backbone, "faprompt.npz", prefix, variant, official
    )


def test_features_and_text(case: Case) -> None:
    case.compare(features_and_text)


def features_and_text(case: Case) -> None:
    model, features, kept = case.model, case.features(), case.golden("sample_tokens")
    # the V-V path's own class token is used nowhere: the first row of ours is the original path's
    patches = kept[kept > 0]
    case.check(features.vv_tokens[0][:, patches], "vv_path_tokens_24", np.s_[:, 1:])
    case.check(features.class_token, "original_path_tokens_24", np.s_[:, 0])
    case.check(features.vv_tokens[0][:, 0], "original_path_tokens_24", np.s_[:, 0])
    tokens = model.tokens(features)
    case.check(tokens[:, 0], "image_feature")
    case.check(tokens[:, patches], "patch_features", np.s_[:, 1:])
    text = model.embed_text()
    case.check(text[:1], "text_normal_raw")
    case.check(text[1:], "text_abnormal_raw")
    case.check(prototypes(text), "text_prototypes")


def test_prompts_are_the_tokens_of_the_official_ones(case: Case) -> None:
    """Learnable tokens have placeholders in the recorded ids; start, words and end must be in the same places."""
    prompts, backbone = case.model.prompts, case.model.backbone
    for key, words, end in (
        ("token_ids_pos", prompts.normal_words, prompts.end[0]),
        ("token_ids_neg", prompts.abnormal_words, prompts.end[1]),
    ):
        ids = case.golden(key)[0]
        assert int(ids.argmax()) == end
        embedded = backbone.text.token_embedding(ids[: end + 1])
        torch.testing.assert_close(words[0], embedded[0])
        torch.testing.assert_close(words[1:], embedded[-len(words) + 1 :])


def test_prior(case: Case) -> None:
    case.compare(prior)


def prior(case: Case) -> None:
    model = case.model
    tokens, text = model.tokens(case.features()), model.embed_text()
    indices = case.golden("used_indices")
    expected = torch.stack([row[index] for row, index in zip(tokens[:, 1:], indices, strict=True)])
    torch.testing.assert_close(model.select(tokens, text), expected, rtol=0, atol=0)
    prior = model.prior_network(expected.flatten(1))
    case.check(prior, "prior_bias")
    adapted = model.prompts.adapted(model.backbone, prior)
    case.check(adapted, "text_abnormal_prior_raw")
    pair = prototypes(torch.cat([text[:1].expand(3, -1, -1), adapted], dim=1))
    case.check(pair, "text_prototypes_prior")


def test_the_most_anomalous_patches_are_the_recorded_ones(case: Case) -> None:
    model = case.model
    model.prior_patches = "topk"
    tokens, text = model.tokens(case.features()), model.embed_text()
    indices = case.golden("topk_indices")
    expected = torch.stack([row[index] for row, index in zip(tokens[:, 1:], indices, strict=True)])
    torch.testing.assert_close(model.select(tokens, text), expected, rtol=0, atol=0)


def test_scores_and_maps(case: Case) -> None:
    case.compare(scores_and_maps)


def scores_and_maps(case: Case) -> None:
    model, features = case.model, case.features()
    with torch.inference_mode():
        scores = model.evaluate(features, model.embed_text())
        prediction = model.score(features, case.batch)
    case.check(scores.free_map, "p1")
    case.check(scores.prior_map, "p2")
    case.check(scores.image_logits, "image_logits")
    case.check(scores.free_map.flatten(1).amax(1), "max_p1")
    case.check(scores.prior_map.flatten(1).amax(1), "max_p2")
    case.check(upsample_and_smooth(scores.map, 70, 0), "map_up")
    case.check(prediction.pred_score, "image_score")
    case.check(prediction.anomaly_map, "map_final")


def test_two_training_steps(case: Case) -> None:
    terms = {
        "free_focal": "focal_map1",
        "free_dice_abnormal": "dice_abnormal_map1",
        "free_dice_normal": "dice_normal_map1",
        "prior_focal": "focal_map2",
        "prior_dice_abnormal": "dice_abnormal_map2",
        "prior_dice_normal": "dice_normal_map2",
        "image_ce": "image_ce",
        "image_focal": "image_focal",
        "orthogonal": "orthogonal",
        "prior": "prior",
        "total": "total",
    }
    case.compare_two_steps(terms, lr=1e-3)


@pytest.mark.skipif(DERIVE in os.environ, reason="a wrong method has no part in limits")
@pytest.mark.parametrize("case", ["released"], indirect=True)
@pytest.mark.parametrize(
    "fault", [{"orthogonal_loss_weight": 0.1001}, {"prior_map_loss_weight": 0.50005}, {"temperature": 0.070001}]
)
def test_a_slight_fault_is_beyond_the_limits(case: Case, fault: dict[str, Any]) -> None:
    case.make = lambda backbone: FAPrompt(backbone, **RELEASED | fault)
    with pytest.raises(AssertionError, match="in float32, limit"):
        case.compare_two_steps({"total": "total", "free_focal": "focal_map1"}, lr=1e-3)
