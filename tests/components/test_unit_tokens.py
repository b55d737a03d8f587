"""L2-normalised tokens that are never formed, against formed ones."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.normed_projection import NormedProjection, normed_projection
from afclip_lightning.components.unit_tokens import FormedTokens, JoinedEnding, QuadraticForms
from tests.support.clips import TIMM, small_config
from tests.support.rounding import float64

WEIGHTS = torch.tensor([[[1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.5, 0.0]]], dtype=torch.float64).expand(2, -1, -1)


def parts(width: int = 5) -> tuple[nn.Linear, NormedProjection, Tensor]:
    torch.manual_seed(0)
    norm, projection = torch.randn(2, 8, dtype=torch.float64), torch.randn(7, 8, dtype=torch.float64)
    linear = nn.Linear(width, 8).double()
    shift = torch.randn(7, dtype=torch.float64)
    text = F.normalize(torch.randn(2, 7, dtype=torch.float64), dim=-1).requires_grad_()
    return linear, NormedProjection(norm[0], norm[1], 1e-5, projection, shift), text


@pytest.mark.parametrize("width", [4, 5])
def test_joined_tokens_and_their_gradients_are_those_of_formed_ones(width: int) -> None:
    linear, projection, text = parts(width)
    weight, bias, eps, matrix, shift = projection
    inner = torch.randn(2, 5, width, dtype=torch.float64, requires_grad=True)
    normed = F.layer_norm(linear(inner), (8,), weight, bias, eps)
    with float64():
        formed = FormedTokens(F.normalize(F.linear(normed, matrix, shift), dim=-1), text)
        joined = JoinedEnding(linear, projection, text)(inner)
        gradients = []
        for tokens in (formed, joined):
            total = (tokens.cosines**3).sum() + (tokens.sums(WEIGHTS) ** 2).sum()
            gradients.append(torch.autograd.grad(total, [inner, text, *linear.parameters()], retain_graph=True))
    torch.testing.assert_close(joined.cosines, formed.cosines, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(joined.sums(WEIGHTS), formed.sums(WEIGHTS), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-9)


def test_quadratic_forms_of_symmetric_matrices_have_the_gradient_of_a_loop() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    root = torch.randn(2, 5, 5, dtype=torch.float64, requires_grad=True)
    forms = root.mT @ root
    weights = torch.randn(2, 3, 2, dtype=torch.float64)
    values = QuadraticForms.apply(x, torch.cat([*forms], dim=1))
    expected = torch.einsum("bti,nij,btj->btn", x, forms, x)
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        torch.autograd.grad((values * weights).sum(), [x, root], retain_graph=True),
        torch.autograd.grad((expected * weights).sum(), [x, root]),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("kind", ["open_clip", "timm"])
def test_a_tower_says_what_its_projection_is(kind: str, tiny: ClipBackbone, tmp_path: Path) -> None:
    backbone = tiny if kind == "open_clip" else ClipBackbone(small_config(tmp_path, **TIMM), "random", image_size=48)
    projection = normed_projection(backbone.vision)
    assert projection is not None
    normed = F.layer_norm(tokens := torch.randn(2, 3, backbone.vision.width), tokens.shape[-1:], eps=projection.eps)
    torch.testing.assert_close(F.linear(normed, *projection.folded()), backbone.project(tokens), rtol=1e-5, atol=1e-5)


def test_tokens_are_formed_where_that_is_cheaper() -> None:
    projection = NormedProjection(torch.ones(768), torch.zeros(768), 1e-5, torch.zeros(512, 768), None)
    assert JoinedEnding.pays(nn.Linear(512, 768), projection)
    assert not JoinedEnding.pays(nn.Linear(1024, 768), projection)
