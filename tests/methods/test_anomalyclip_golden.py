"""AnomalyCLIP against numbers recorded from the official code (see `golden/README.md`)."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.scoring import prototypes, upsample_and_smooth
from afclip_lightning.methods.anomalyclip import AnomalyCLIP
from tests.support.golden_case import GoldenCase

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {  # prefix of the network, variant of the code, arguments
    "released": ("", "", {}),
    "two heads": ("wide_", "", {}),
    "four layers": ("", "four_", {"layers": (6, 12, 18, 24)}),
    "no rounding": ("", "nohalf_", {"half_deep_tokens": False}),
}

Case = GoldenCase[AnomalyCLIP]


def official(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Returns the official tensors, by name, that one of ours holds."""
    if name == "members.0.deep.tokens":
        return [(f"anomalyclip.compound_prompts_text.{i}", row) for i, row in enumerate(tensor)]
    names = {"members.0.normal_tokens": "ctx_pos", "members.0.abnormal_tokens": "ctx_neg"}
    return [(f"anomalyclip.{names[name]}", tensor)]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, golden_backbones: dict[int, ClipBackbone]) -> Case:
    prefix, variant, changes = CASES[request.param]
    arguments = {"half_deep_tokens": True, **changes}
    backbone = golden_backbones[128 if prefix else 64]
    return GoldenCase(
        lambda backbone: AnomalyCLIP(backbone, **arguments), backbone, "anomalyclip.npz", prefix, variant, official
    )


@pytest.mark.slow
def test_features_and_text(case: Case) -> None:
    case.compare(features_and_text)


def features_and_text(case: Case) -> None:
    features, backbone, kept = case.features(), case.model.backbone, case.golden("sample_tokens")
    patches = kept[kept > 0]
    projected = torch.stack([backbone.project(tokens[:, patches]) for tokens in features.vv_tokens])
    case.check(projected, "patch_projected", np.s_[:, :, 1:])
    case.check(F.normalize(projected, dim=-1), "patch_features", np.s_[:, :, 1:])
    case.check(features.class_token, "original_path_tokens_24", np.s_[:, 0])
    case.check(backbone.project(features.class_token, final_norm=False), "image_feature_raw")
    text = case.model.embed_text()[0]
    case.check(text, "text_features_raw")
    case.check(prototypes(text), "text_features")


def test_scores_and_maps(case: Case) -> None:
    case.compare(scores_and_maps)


def scores_and_maps(case: Case) -> None:
    features, model = case.features(), case.model
    with torch.inference_mode():
        logits, maps = model.probabilities(features, model.embed_text())
        prediction = model.score(features, case.batch)
    case.check(logits[0], "image_logits")
    case.check(maps[:, 0], "maps")
    case.check(upsample_and_smooth(maps[:, 0].sum(0), 70, 0), "map_up")
    case.check(prediction.pred_score, "image_score")
    case.check(prediction.anomaly_map, "map_final")


def test_two_training_steps(case: Case) -> None:
    terms = {"image_ce": "image_ce", "total": "total"}
    if len(case.model.spec.vv_layers) == 1:
        terms |= {"focal": "focal.0", "dice_abnormal": "dice_abnormal.0", "dice_normal": "dice_normal.0"}
    case.compare_two_steps(terms, lr=1e-3)
