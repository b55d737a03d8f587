"""Losses against implementations with loops, and edge cases."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from afclip_lightning.components.losses import (
    binary_focal_loss,
    dice_loss,
    glocal_contrastive_loss,
    map_losses,
    orthogonality_loss,
    patch_alignment_loss,
    patch_targets,
    prior_loss,
    two_class_focal_loss,
)
from tests.reference import afclip_naive as naive
from tests.reference import faprompt_naive


def test_focal_equals_the_loop_and_survives_saturation() -> None:
    probability = torch.tensor([0.0, 1e-30, 0.2, 0.5, 0.999, 1.0, 1.0])
    target = torch.tensor([0.0, 1.0, 1.0, 0.5, 0.0, 0.0, 1.0])
    expected = naive.focal(probability.double().tolist(), target.tolist(), 4.0)
    torch.testing.assert_close(binary_focal_loss(probability, target, 4.0).item(), expected, rtol=1e-5, atol=0)
    logits = torch.tensor([-200.0, 200.0], requires_grad=True)
    binary_focal_loss(torch.stack([torch.zeros(2), logits]).softmax(0)[1], torch.tensor([1.0, 0.0]), 4.0).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(2))  # saturated: no gradient, and no NaN


def test_focal_is_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = binary_focal_loss(torch.rand(8).bfloat16(), torch.ones(8), 4.0)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("factor", [2, 14])
def test_targets_are_the_mean_of_the_central_pixels(factor: int) -> None:
    rng = np.random.default_rng(factor)
    mask = (rng.random((3, 4 * factor, 5 * factor)) < 0.5).astype(np.uint8)
    expected = np.stack([naive.targets(m, (4, 5)) for m in mask])
    torch.testing.assert_close(patch_targets(torch.from_numpy(mask), (4, 5)), torch.from_numpy(expected).float())
    assert {0.0, 0.5, 1.0} == set(np.unique(expected))


def test_a_defect_that_misses_the_centre_vanishes_from_the_targets() -> None:
    mask = torch.zeros(1, 28, 28, dtype=torch.uint8)
    mask[0, 0:6, :] = 1
    assert not patch_targets(mask, (2, 2)).any()


@pytest.mark.parametrize("seed", range(4))
def test_alignment_equals_the_sum_over_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = F.normalize(torch.from_numpy(rng.normal(size=(3, 7, 5))), dim=-1)
    target = torch.from_numpy(rng.choice([0.0, 0.5, 1.0], size=(3, 7)))
    # make the kinds overlap, so that the loss is not cut at 0
    tokens = F.normalize(tokens + 3 * tokens.mean(1, keepdim=True), dim=-1)
    tokens[:, 0] = F.normalize(tokens[:, 1] + tokens[:, 2], dim=-1)
    expected = naive.alignment(tokens.numpy(), target.numpy())
    actual = patch_alignment_loss(tokens, target)
    torch.testing.assert_close(actual.item(), expected, rtol=1e-4, atol=1e-6)


def test_alignment_by_hand() -> None:
    """Normal patches e, -e, e and the anomalous e: 1/3 over the mixed pairs, (1 + 1) / (9 + 1) over the others."""
    e = torch.tensor([1.0, 0.0])
    loss = patch_alignment_loss(torch.stack([e, -e, e, e])[None], torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
    assert loss.item() == pytest.approx(1 / 3 - 0.2)
    apart = patch_alignment_loss(torch.stack([e, e, e, -e])[None], torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
    assert apart == 0


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
def test_alignment_without_both_kinds_is_zero_with_zero_gradient(value: float) -> None:
    tokens = F.normalize(torch.randn(2, 4, 3), dim=-1).requires_grad_()
    loss = patch_alignment_loss(tokens, torch.full((2, 4), value))
    loss.backward()
    assert loss == 0
    assert not tokens.grad.any()
    assert patch_alignment_loss(tokens[:0], torch.zeros(0, 4)) == 0


def test_map_losses_equal_the_loops() -> None:
    rng = np.random.default_rng(0)
    maps, masks = rng.random((3, 4, 5)), (rng.random((3, 4, 5)) < 0.3).astype(np.uint8)
    masks[1] = 0
    maps[0, 0, :2], masks[0, 0, :2] = [0.0, 1.0], [1, 0]  # saturated and wrong
    losses = map_losses(torch.from_numpy(maps), torch.from_numpy(masks))
    focal = faprompt_naive.focal(maps.flatten().tolist(), masks.flatten().tolist())
    torch.testing.assert_close(losses["focal"].item(), focal, rtol=1e-4, atol=0)
    torch.testing.assert_close(losses["dice_abnormal"].item(), faprompt_naive.dice(maps, masks), rtol=1e-5, atol=0)
    normal = faprompt_naive.dice(1 - maps, 1 - masks)
    torch.testing.assert_close(losses["dice_normal"].item(), normal, rtol=1e-5, atol=0)


def test_map_losses_of_a_perfect_map_are_nearly_zero() -> None:
    mask = torch.zeros(2, 6, 6)
    mask[0, 1:4, 2:5] = 1
    for name, loss in map_losses(mask.clone(), mask).items():
        torch.testing.assert_close(loss.item(), 0.0, rtol=0, atol=1e-6, msg=name)
    assert dice_loss(1 - mask, mask) > 0.9


def test_orthogonality_and_prior_equal_the_loops() -> None:
    rng = np.random.default_rng(1)
    embeddings, priors, labels = rng.normal(size=(5, 7)), rng.normal(size=(4, 6)), [0, 1, 0, 1]
    orthogonal = orthogonality_loss(torch.from_numpy(embeddings))
    torch.testing.assert_close(orthogonal.item(), faprompt_naive.orthogonality(embeddings), rtol=1e-5, atol=0)
    assert orthogonality_loss(torch.from_numpy(embeddings[:1])) == 0
    assert orthogonality_loss(torch.eye(4)) == 0
    summed = prior_loss(torch.from_numpy(priors), torch.tensor(labels))
    torch.testing.assert_close(summed.item(), faprompt_naive.prior(priors, labels), rtol=1e-5, atol=0)
    assert prior_loss(torch.from_numpy(priors), torch.ones(4)) == 0


def test_the_glocal_loss_by_hand() -> None:
    of_image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    of_patches = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    alike = (0.4**2 + 0.8**2) + 0  # normal, abnormal
    torch.testing.assert_close(glocal_contrastive_loss(of_image, of_patches).item(), alike, rtol=1e-4, atol=0)
    # to the other state: sqrt(2) from the image's normal one, sqrt(0.6 ** 2 + 0.2 ** 2) from its abnormal one
    apart = (1.5 - 2**0.5) ** 2 + (1.5 - 0.4**0.5) ** 2
    loss = glocal_contrastive_loss(of_image, of_patches, margin=1.5)
    torch.testing.assert_close(loss.item(), alike + apart, rtol=1e-4, atol=0)


def test_the_glocal_loss_of_equal_prompts_has_a_gradient_without_nan() -> None:
    prompts = torch.eye(2, requires_grad=True)
    glocal_contrastive_loss(prompts, prompts.detach(), margin=1.0).backward()
    assert prompts.grad is not None
    assert prompts.grad.abs().max() < 1e-4


def test_losses_of_half_precision_are_float32() -> None:
    probability, mask = torch.rand(2, 3, 3).bfloat16(), torch.ones(2, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [*map_losses(probability, mask).values(), orthogonality_loss(torch.rand(3, 4).bfloat16())]
        losses += [prior_loss(torch.rand(2, 4).bfloat16(), torch.zeros(2)), two_class_focal_loss(probability, mask)]
    assert {loss.dtype for loss in losses} == {torch.float32}
