"""A head trained further on anomalies drawn onto normal images: the drawings, the effect, the excluded images."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.inspection import fit_head
from afclip_lightning.inspection.fit_head import Drawn, check, draw, fit
from afclip_lightning.methods.patch_logit import PatchLogit
from afclip_lightning.methods.winclip import WinCLIP
from afclip_runtime.errors import UserError
from tests.support.small_head import picture


def images(count: int) -> list[tuple[Path, list[Any]]]:
    return [(Path(f"normal/{seed}.png"), [picture(112, 112, seed)]) for seed in range(count)]


@pytest.fixture
def head(tiny: ClipBackbone, monkeypatch: pytest.MonkeyPatch) -> PatchLogit:
    monkeypatch.setattr(fit_head, "STEPS", 20)
    torch.manual_seed(0)
    return PatchLogit(tiny, layers=(4, 8), optimizer=lambda parameters: torch.optim.Adam(parameters, 1e-2)).eval()


def drawn_onto(head: PatchLogit, count: int = 2, seed: int = 0) -> Drawn:
    return draw(head, images(count), "object", seed, lambda items, total: items)


def total(head: PatchLogit, drawn: Drawn, owner: int) -> float:
    batch = drawn.batch(torch.nonzero(drawn.owner == owner)[:, 0], head.device)
    return float(head.loss(head.extract(batch), batch)["total"].detach())


def test_each_image_comes_as_it_is_and_with_anomalies(head: PatchLogit) -> None:
    drawn, again, other = drawn_onto(head), drawn_onto(head), drawn_onto(head, seed=1)
    assert drawn.owner.tolist() == [0] * 9 + [1] * 9
    assert drawn.marked.tolist() == ([False] + [True] * 8) * 2
    assert torch.equal(drawn.mask, again.mask)
    assert not torch.equal(drawn.mask, other.mask)
    with torch.no_grad():
        clean = head.preprocess.to_tensors([picture(112, 112, 0)])
        expected = head.backbone.encode_image(clean, head.spec).tokens[1][0]
    torch.testing.assert_close(drawn.rows[0]["layer-08"].float(), expected, rtol=1e-2, atol=1e-2)


def test_of_many_images_some_are_drawn_onto(head: PatchLogit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_head, "MOST", 6)
    drawn = drawn_onto(head, 5)
    assert drawn.owner.tolist() == [0, 0, 2, 2, 4, 4]
    assert drawn.marked.tolist() == [False, True] * 3


def test_fitting_lowers_the_loss_and_leaves_what_it_was_not_given(head: PatchLogit) -> None:
    drawn, one, other = drawn_onto(head), copy.deepcopy(head), copy.deepcopy(head)
    before = total(head, drawn, 0)
    fit(one, drawn, [0], seed=0)
    assert total(one, drawn, 0) < 0.8 * before
    for row, owner in zip(drawn.rows, drawn.owner.tolist(), strict=True):
        if owner == 1:  # what it was not given may be anything
            for tensor in row.values():
                tensor.fill_(torch.nan)
    fit(other, drawn, [0], seed=0)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert not one.training


def test_a_head_that_cannot_be_fitted_is_refused(head: PatchLogit, tiny: ClipBackbone) -> None:
    assert check(head) is head
    for none in (None, WinCLIP(tiny, window_sizes=(12,))):
        with pytest.raises(UserError, match="this model has none that trains"):
            check(none)
