"""AF-CLIP against numbers recorded from the official code (see `golden/README.md`)."""

import pytest
import torch
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.adapters import gaussian_window
from afclip_lightning.components.losses import patch_alignment_loss, patch_targets
from afclip_lightning.methods.afclip import AFCLIP
from tests.support.golden_case import KEY, GoldenCase
from tests.support.recipe import REFERENCE_NOISE, REFERENCE_PATTERN, images

pytestmark = pytest.mark.slow

Case = GoldenCase[AFCLIP]


def official(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Returns the official name of one of our parameters, with it."""
    if name == "prompts.tokens":
        return [("afclip.state_prompt_embedding", tensor)]
    for ours, theirs in (("norm", "norm"), ("to_out", "attn.to_out.0"), ("to_", "attn.to_")):
        if name.startswith(f"adapter.{ours}"):
            return [("afclip.adaptor.attention." + theirs + name.removeprefix(f"adapter.{ours}"), tensor)]
    raise KeyError(name)


@pytest.fixture(params=["", "wide_"])
def case(request: pytest.FixtureRequest, golden_backbones: dict[int, ClipBackbone]) -> Case:
    return GoldenCase(AFCLIP, golden_backbones[128 if request.param else 64], "afclip.npz", request.param, "", official)


def test_tokens_and_text(case: Case) -> None:
    case.compare(tokens_and_text)
    ids = case.model.backbone.tokenize(["without defect.", "with defect."])
    torch.testing.assert_close(ids, case.golden("token_ids").to(ids.dtype), rtol=0, atol=0)


def tokens_and_text(case: Case) -> None:
    kept, small = case.golden("sample_tokens"), case.golden("sample_tokens_small")
    features = case.features()
    case.check(torch.stack(features.tokens)[:, :, kept], "taps")
    case.check(torch.stack(list(case.model.aggregated(features)))[:, :, small], "aggregated")
    mixtures = case.model.mixtures(features.grid)
    adapted = [one for tokens in features.tokens for one in case.model.adapter(tokens, mixtures)]
    case.check(torch.stack(adapted)[:, :, small], "adaptor_out")
    case.check(torch.stack(list(case.model.adapted(features)))[:, :, small], "features")
    case.check(case.model.prompts(case.model.backbone), "text_features_raw")
    case.check(case.model.text_embeddings(), "text_features")


def test_aggregation_windows(case: Case) -> None:
    for window in (3, 5):
        expected = torch.from_numpy(case.stored[f"gauss_kernel_{window}"])
        torch.testing.assert_close(gaussian_window(window, 4.0), expected, rtol=1e-6, atol=0)


def test_scores_and_maps(case: Case) -> None:
    case.compare(scores_and_maps)


def scores_and_maps(case: Case) -> None:
    with torch.inference_mode():
        prediction = case.model.score(case.features(), case.batch)
    case.check(prediction.pred_score, "image_score")
    case.check(prediction.anomaly_map[:, None], "map_final")


def test_few_shot(case: Case) -> None:
    case.compare(few_shot)


def few_shot(case: Case) -> None:
    case.model.k_shot = 2
    with torch.inference_mode():
        case.model.fit_memory(KEY, images("input.reference", REFERENCE_NOISE, REFERENCE_PATTERN))
        shape = case.golden("fewshot.memory_shape").tolist()
        banks = case.model.memory.banks[KEY]
        assert [len(banks), *banks[0].shape] == shape
        case.check(torch.stack(banks)[:, ::7], "fewshot.memory")
        features = case.features()
        distances = [
            case.model.memory.distance([KEY] * 3, index, tokens)
            for index, tokens in enumerate(case.model.aggregated(features))
        ]
        case.check(torch.stack(distances).unflatten(2, (1, *features.grid)), "fewshot.memory_map_per_set")
        prediction = case.model.score(features, case.batch)
    case.check(prediction.pred_score, "fewshot.image_score")
    case.check(prediction.anomaly_map[:, None], "fewshot.map_final")


# the variant without the in-place change was recorded at width 64 only
@pytest.mark.parametrize(("case", "alias_targets"), [("", True), ("", False), ("wide_", True)], indirect=["case"])
def test_two_training_steps(case: Case, alias_targets: bool) -> None:
    """Losses, gradients and two Adam steps; the released code changes its own targets before the backward pass."""
    case.variant = "" if alias_targets else "nomut_"
    case.make = lambda backbone: AFCLIP(backbone, alias_targets=alias_targets)
    terms = {
        "image_focal": "focal_image",
        "map_focal": "focal_map",
        "map_l1": "l1_map",
        "alignment": "align",
        "total": "total",
    }
    case.compare_two_steps(terms, lr=1e-4)


def test_alias_changes_gradients_and_no_loss(case: Case) -> None:
    gradients, losses = [], []
    for alias_targets in (True, False):
        case.model.alias_targets = alias_targets
        case.model.zero_grad()
        losses.append(case.model.loss(case.features(), case.batch))
        losses[-1]["total"].backward()
        gradients.append(case.model.adapter.to_out.weight.grad.clone())
    torch.testing.assert_close(losses[0], losses[1])
    assert (gradients[0] - gradients[1]).norm() > 0.05 * gradients[1].norm()


def test_targets_and_alignment(case: Case) -> None:
    features = case.features()
    targets = patch_targets(case.batch.mask, features.grid)
    torch.testing.assert_close(targets[:, None], case.golden("step1.target_map"), rtol=0, atol=0)
    assert (targets == 0.5).any()
    case.compare(lambda case: alignment(case, targets))


def alignment(case: Case, targets: Tensor) -> None:
    adapted = case.model.adapted(case.features())
    per_set = [patch_alignment_loss(tokens[:, 1:], targets.flatten(1)) for tokens in adapted]
    case.check(torch.stack(per_set), "step1.loss.align_per_set")
