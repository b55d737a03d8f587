"""FAPrompt: the prior, the aggregations, arguments, sizes; AnomalyCLIP's variants."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.methods.anomalyclip import AnomalyCLIP
from afclip_lightning.methods.faprompt import FAPrompt
from afclip_runtime.errors import CheckpointError
from tests.reference import faprompt_naive as naive
from tests.support.clips import small_config
from tests.support.methods import batch_of, saved, score, take
from tests.support.rounding import doubled, float64

TINY: dict[str, Any] = {"layer": 8, "vv_from": 3, "prompt_depth": 4}


def faprompt(backbone: ClipBackbone, **arguments: Any) -> FAPrompt:
    torch.manual_seed(0)
    return FAPrompt(backbone, **{**TINY, "prompt_init_std": 0.5, **arguments})


@pytest.mark.slow
def test_trainable_parameters_at_vit_l_14(tmp_path: Path) -> None:
    """4,100,064 and 43,008 values that the official codes use; they depend on widths, and on the depth of the text."""
    vision = {"image_size": 336, "layers": 1, "width": 1024, "patch_size": 14}
    text = {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 9}
    config = small_config(tmp_path, "widths-of-l14", embed_dim=768, vision_cfg=vision, text_cfg=text)
    backbone = ClipBackbone(config, "random", image_size=None)
    counts = [
        sum(p.numel() for p in model.parameters() if p.requires_grad)
        for model in (FAPrompt(backbone, layer=1, vv_from=1), AnomalyCLIP(backbone, layers=(1,), vv_from=1))
    ]
    assert counts == [4_100_064, 43_008]


def test_probabilities_equal_the_loops(tiny: ClipBackbone) -> None:
    """Eq. (3), (8), (9) and (11), with the prior's embeddings taken from the model."""
    model, batch = faprompt(tiny), batch_of(2)
    features = model.extract(batch)
    with torch.no_grad():
        scores = model.evaluate(features, model.embed_text())
        prediction = model.score(features, batch)
        text = model.embed_text().double().numpy()
        adapted = model.prompts.adapted(tiny, scores.prior).double().numpy()
        tokens = model.tokens(features).double().numpy()
    for i in range(2):
        free = [naive.probability(t, text[0], text[1:].mean(0), 0.07) for t in tokens[i, 1:]]
        enabled = [naive.probability(t, text[0], adapted[i].mean(0), 0.07) for t in tokens[i, 1:]]
        image = naive.probability(tokens[i, 0], text[0], adapted[i].mean(0), 0.07)
        assert scores.free_map[i].flatten().tolist() == pytest.approx(free, rel=1e-3, abs=1e-5)
        assert scores.prior_map[i].flatten().tolist() == pytest.approx(enabled, rel=1e-3, abs=1e-5)
        expected = (image + (max(free) + max(enabled)) / 2) / 2
        assert prediction.pred_score[i].item() == pytest.approx(expected, rel=1e-3)
    assert prediction.anomaly_map.shape == (2, 112, 112)


def test_the_prior_is_of_the_most_anomalous_patches_of_each_image(tiny: ClipBackbone) -> None:
    model = faprompt(tiny, n_prior_patches=5)
    features = model.extract(batch_of())
    tokens, text = model.tokens(features), model.embed_text().detach()
    free = model.evaluate(features, text).free_map.flatten(1)
    chosen = model.select(tokens, text)
    for i in range(4):
        order = sorted(range(free.shape[1]), key=lambda j, row=free[i]: -row[j].item())[:5]
        torch.testing.assert_close(chosen[i], tokens[i, 1:][order])
    model.prior_patches = "first_k"
    torch.testing.assert_close(model.select(tokens, text), tokens[:, 1:6])
    model.prior_patches = "image_token"
    torch.testing.assert_close(model.select(tokens, text), tokens[:, :1])


def test_best_match_takes_the_nearest_prompt_of_each_token(tiny: ClipBackbone) -> None:
    model = faprompt(tiny, aggregation="best_match", dap=False)
    features = model.extract(batch_of(2))
    tokens, text = model.tokens(features), model.embed_text().detach()
    cosines = tokens @ F.normalize(text, dim=-1).T
    best = torch.stack([cosines[..., 0], cosines[..., 1:].max(-1).values], -1) / 0.07
    torch.testing.assert_close(model.evaluate(features, text).free_map.flatten(1), best.softmax(-1)[:, 1:, 1])
    single = faprompt(tiny, n_abnormal_prompts=1, aggregation="best_match")
    mean = faprompt(tiny, n_abnormal_prompts=1)
    for a, b in zip(score(single, batch_of(2)), score(mean, batch_of(2)), strict=True):
        torch.testing.assert_close(a, b)


def test_equal_weights_are_the_mean(tiny: ClipBackbone) -> None:
    weighted, mean = faprompt(tiny, aggregation="weighted"), faprompt(tiny)
    mean.load_state_dict(weighted.state_dict(), strict=False)
    assert (score(weighted, batch_of())[1] - score(mean, batch_of())[1]).abs().max() > 1e-4
    with torch.no_grad():
        weighted.weight_network[2].weight.zero_()
        weighted.weight_network[2].bias.fill_(3.0)
    for a, b in zip(score(weighted, batch_of()), score(mean, batch_of()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_prior_of_zero_changes_nothing(tiny: ClipBackbone) -> None:
    model, without = faprompt(tiny), faprompt(tiny, dap=False)
    without.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        model.prior_network[2].weight.zero_()
        model.prior_network[2].bias.zero_()
    for a, b in zip(score(model, batch_of()), score(without, batch_of()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_switches_leave_their_terms_out(tiny: ClipBackbone) -> None:
    batch = batch_of()

    def terms(**arguments: Any) -> set[str]:
        model = faprompt(tiny, **arguments)
        return set(model.loss(model.extract(batch), batch))

    full = terms()
    assert {"orthogonal", "prior", "image_focal", "free_focal", "prior_focal"} < full
    assert full - terms(cap_orthogonal=False) == full - terms(n_abnormal_prompts=1) == {"orthogonal"}
    assert full - terms(prior_loss=False) == {"prior"}
    assert full - terms(dap=False) == {"prior", "prior_focal", "prior_dice_abnormal", "prior_dice_normal"}
    assert terms(image_ce_weight=1.0) - full == {"image_ce"}


@pytest.mark.slow
@pytest.mark.parametrize(("term", "rows"), [("orthogonal", [0, 1]), ("prior", [0, 2])])
def test_a_term_alone_can_be_trained_away(tiny: ClipBackbone, term: str, rows: list[int]) -> None:
    model, batch = faprompt(tiny, prompt_init_std=0.02), take(batch_of(), rows)
    optimizer = model.configure_optimizers()
    values = []
    for _ in range(8):
        loss = model.loss(model.extract(batch), batch)[term]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_prior_patches": 197}, "within 1 to 196.*got 197"),
        ({"n_prior_patches": 0}, "got 0"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"free_maximum_weight": 1.5}, r"in \[0, 1\]"),
        ({"layer": 9}, "vv_layers must rise within 3 to 8"),
        ({"layer": 2}, "vv_layers must rise within 3 to 8"),
        ({"prompt_depth": 9}, "within 2 to 4.*got 9"),
        ({"n_abnormal_prompts": 0}, "at least 1"),
    ],
)
def test_bad_arguments_are_refused(tiny: ClipBackbone, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FAPrompt(tiny, **{**TINY, **arguments})


def test_checkpoint_refuses_another_prior(tmp_path: Path) -> None:
    backbone = ClipBackbone(small_config(tmp_path), "random", image_size=None)
    arguments: dict[str, Any] = {"layer": 3, "vv_from": 2, "prompt_depth": 2, "n_prior_patches": 2}
    checkpoint = saved(FAPrompt(backbone, **arguments), tmp_path)
    with pytest.raises(CheckpointError, match="prior_patches: 'topk' in the checkpoint, 'first_k' here"):
        FAPrompt(backbone, **arguments, prior_patches="first_k").on_load_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match="vv_from: 2 in the checkpoint, 3 here"):
        FAPrompt(backbone, **{**arguments, "vv_from": 3}).on_load_checkpoint(checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("rounded", [False, True])
def test_members_of_an_ensemble_train_as_if_alone(tiny: ClipBackbone, rounded: bool) -> None:
    """In float64, where the order of sums has almost no effect: the limits are tight on any processor."""
    arguments: dict[str, Any] = {"layers": (8,), "vv_from": 3, "prompt_depth": 4, "half_deep_tokens": rounded}
    tiny, batch = doubled(tiny), batch_of()
    with float64():
        torch.manual_seed(0)
        pair = AnomalyCLIP(tiny, **arguments, ensemble=2)
        alone = []
        for i in range(2):
            model = AnomalyCLIP(tiny, **arguments)
            model.members[0].load_state_dict(pair.members[i].state_dict())
            alone.append(model)
        scores = [score(model, batch) for model in alone]
        together = score(pair, batch)
        for model in (pair, *alone):
            model.loss(model.extract(batch), batch)["total"].backward()
    for a, b, mean in zip(*scores, together, strict=True):
        torch.testing.assert_close((a + b) / 2, mean, rtol=0, atol=1e-12)
    for i, model in enumerate(alone):
        ours = dict(pair.members[i].named_parameters())
        for name, parameter in model.members[0].named_parameters():
            largest = parameter.grad.abs().max()
            torch.testing.assert_close(ours[name].grad / largest, parameter.grad / largest, rtol=0, atol=1e-9)
