"""GlocalCLIP: the use of its prompts, and the content of a checkpoint."""

from typing import Any

import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.methods.glocalclip import GlocalCLIP
from tests.support.cases import ANOMALYCLIP
from tests.support.methods import batch_of, score


def glocalclip(backbone: ClipBackbone, **arguments: Any) -> GlocalCLIP:
    torch.manual_seed(0)
    return GlocalCLIP(backbone, **{**ANOMALYCLIP, **arguments})


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"layers": ()}, "layers must name at least one block"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"map_sigma": -1.0}, "map_sigma must not be negative"),
        ({"contrastive_margin": -0.1}, "contrastive_margin must not be negative"),
        ({"n_abnormal_tokens": 0}, "numbers of tokens and prompts must be at least 1"),
        ({"prompt_depth": 5}, "depth within 2 to 4"),
    ],
)
def test_bad_arguments_are_refused(tiny: ClipBackbone, arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        glocalclip(tiny, **arguments)


def test_the_image_prompts_give_the_score_and_the_patch_prompts_the_map(tiny: ClipBackbone) -> None:
    model, batch = glocalclip(tiny), batch_of()
    scores, maps = score(model, batch)
    with torch.no_grad():
        model.patch_prompts.abnormal_tokens.neg_()
    same, others = score(model, batch)
    assert torch.equal(same, scores)
    assert not torch.allclose(others, maps)
    with torch.no_grad():
        model.image_prompts.abnormal_tokens.neg_()
    others, same = score(model, batch)[0], score(model, batch)[1]
    assert not torch.allclose(others, scores)
    assert torch.equal(same, score(model, batch)[1])


def test_both_pairs_share_their_deep_tokens_and_a_checkpoint_holds_them_once(tiny: ClipBackbone) -> None:
    model = glocalclip(tiny)
    assert model.image_prompts.deep is model.patch_prompts.deep
    assert [name for name in model.state_dict() if "deep" in name] == ["image_prompts.deep.tokens"]
    again = glocalclip(tiny)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    again.load_state_dict(model.state_dict(), strict=False)
    batch = batch_of()
    for ours, theirs in zip(score(model, batch), score(again, batch), strict=True):
        assert torch.equal(ours, theirs)


def test_abnormal_prompts_begin_with_the_tokens_of_the_normal_one(tiny: ClipBackbone) -> None:
    model = glocalclip(tiny)
    before = model.embed_text()
    with torch.no_grad():
        model.image_prompts.normal_tokens.add_(0.5)
    after = model.embed_text()
    assert not torch.allclose(before[0, 0], after[0, 0])
    assert not torch.allclose(before[0, 1], after[0, 1])
    assert torch.equal(before[1], after[1])


def test_the_maps_of_several_layers_add_up(tiny: ClipBackbone) -> None:
    batch = batch_of()
    both, third, last = (score(glocalclip(tiny, layers=layers), batch)[1] for layers in ((3, 8), (3,), (8,)))
    torch.testing.assert_close(both, third + last, rtol=0, atol=1e-5)
