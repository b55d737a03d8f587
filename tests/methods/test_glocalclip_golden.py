"""GlocalCLIP against numbers recorded from the official code (see `golden/README.md`)."""

import numpy as np
import pytest
import torch
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.losses import glocal_contrastive_loss
from afclip_lightning.components.scoring import prototypes
from afclip_lightning.methods.glocalclip import GlocalCLIP
from tests.support.golden_case import GoldenCase

Case = GoldenCase[GlocalCLIP]
TAPS = 4  # one tensor in the official code, whose map is their sum
NAMES = {
    "image_prompts.normal_tokens": "ctx_global_pos",
    "image_prompts.abnormal_tokens": "ctx_global_neg",
    "patch_prompts.normal_tokens": "ctx_local_pos",
    "patch_prompts.abnormal_tokens": "ctx_local_neg",
}


def official(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Returns the official tensors, by name, that one of ours holds."""
    if name == "image_prompts.deep.tokens":
        return [(f"glocal.compound_prompts_text.{i}", row) for i, row in enumerate(tensor)]
    return [(f"glocal.{NAMES[name]}", tensor[None])]


@pytest.fixture
def case(golden_backbones: dict[int, ClipBackbone]) -> Case:
    def make(backbone: ClipBackbone) -> GlocalCLIP:
        return GlocalCLIP(backbone, n_normal_tokens=5, n_abnormal_tokens=7, half_deep_tokens=True)

    return GoldenCase(make, golden_backbones[64], "glocalclip.npz", "", "", official)


def test_the_sentences_are_those_of_the_official_code(case: Case) -> None:
    recorded = case.golden("token_ids_global_then_local")
    for prompts, (normal, abnormal) in zip(
        (case.model.image_prompts, case.model.patch_prompts), recorded.unflatten(0, (2, 2)), strict=True
    ):
        backbone = case.model.backbone
        for words, ids, placeholders in ((prompts.normal_words, normal, 5), (prompts.abnormal_words, abnormal, 12)):
            kept = torch.cat([ids[:1], ids[1 + placeholders :]])[: len(words)].long()
            assert torch.equal(backbone.text.token_embedding(kept), words)
        assert prompts.end.tolist() == [int(ids.argmax()) for ids in (normal, abnormal)]


@pytest.mark.slow
def test_features_and_text(case: Case) -> None:
    case.compare(features_and_text)


def features_and_text(case: Case) -> None:
    features, backbone = case.features(), case.model.backbone
    assert features.class_token is not None
    case.check(backbone.project(features.class_token, final_norm=False), "image_feature_raw")
    patches = backbone.project(features.vv_tokens[0][:, 2::2])
    case.check(patches, "patch_tokens_projected_24", np.s_[:, 1:])
    text = case.model.embed_text()
    case.check(text.flatten(0, 1), "text_features_raw")
    of_image, of_patches = prototypes(text)
    for row in (0, 1):  # both rows of one state: twice its term
        state = of_image[row].expand(2, -1), of_patches[row].expand(2, -1)
        case.check(glocal_contrastive_loss(*state) / 2, "step1.loss.contrastive_normal_abnormal", row)


@pytest.mark.slow
def test_scores_and_maps(case: Case) -> None:
    case.compare(lambda case: scores_and_maps(case, ""))


def scores_and_maps(case: Case, prefix: str) -> None:
    features, model = case.features(), case.model
    with torch.no_grad():
        _, maps = model.probabilities(features, model.embed_text())
        prediction = model.score(features, case.batch)
    if not prefix:
        case.check(maps[0].flatten(1), "patch_prob_abn_24")
    case.check(TAPS * prediction.anomaly_map[:, ::3, ::3], f"{prefix}map_final_sigma8")
    case.check(TAPS * prediction.anomaly_map.mean((1, 2)), f"{prefix}map_final_mean")
    case.check(prediction.pred_score, f"{prefix}image_score")


@pytest.mark.slow
def test_loss_terms(case: Case) -> None:
    case.compare(loss_terms)


def loss_terms(case: Case) -> None:
    losses = case.model.loss(case.features(), case.batch)
    for tap in range(TAPS):
        case.check(losses["focal"], "step1.loss.focal_per_tap", tap)
        for offset, name in enumerate(("dice_abnormal", "dice_normal")):
            case.check(losses[name], "step1.loss.dice_abn_nor_per_tap", 2 * tap + offset)


def test_two_training_steps(case: Case) -> None:
    case.compare_two_steps({"image_ce": "image_ce", "total": "total"}, lr=1e-3)


@pytest.mark.slow
def test_scores_after_two_training_steps(case: Case) -> None:
    case.compare(after_two_steps)


def after_two_steps(case: Case) -> None:
    optimizer, features = case.model.configure_optimizers(), case.features()
    assert optimizer is not None
    for _ in range(2):
        optimizer.zero_grad()
        case.model.loss(features, case.batch)["total"].backward()
        optimizer.step()
    scores_and_maps(case, "after2.")


def test_a_margin_drives_the_states_apart(case: Case) -> None:
    """The official loss with a margin of 1, which its scripts never use."""
    with torch.no_grad():
        whole = glocal_contrastive_loss(*prototypes(case.model.embed_text()), margin=1.0)
    torch.testing.assert_close(whole, case.golden("contrastive_margin_1").sum(), rtol=1e-5, atol=0)


def test_the_number_of_parameters_is_that_of_the_official_code_without_what_nothing_uses(case: Case) -> None:
    width, embedded = 64, 896
    unused = 8 * (width * embedded + embedded)  # projections of the deep tokens
    assert sum(p.numel() for p in case.model.parameters() if p.requires_grad) == case.golden("param_count") - unused
