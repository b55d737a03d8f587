"""Training losses as pure functions, computed in float32 whatever the precision of the run."""

import torch
import torch.nn.functional as F
from torch import Tensor


def binary_focal_loss(probability: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Returns the mean focal loss of probabilities, a scalar.

    The cross entropy is taken of probabilities and not of logits: where a probability saturates at 0 or 1 in
    float32 the logarithm is cut at -100 and the gradient vanishes, as in the official code; a log-sigmoid form
    would give another gradient there.

    Args:
        probability: Probability of the anomalous class, in [0, 1], any shape.
        target: Same shape, in [0, 1].
        gamma: Focusing exponent.

    Reference: AF-CLIP, Eq. (11).
    """
    with torch.autocast(probability.device.type, enabled=False):
        # torch's cross entropy aborts on NaN, on a GPU with the whole process: keep NaN from it, and in the result
        broken = probability.isnan().any()
        probability, target = probability.float().nan_to_num(nan=0.5), target.float()
        correct = probability * target + (1 - probability) * (1 - target)
        loss = (F.binary_cross_entropy(probability, target, reduction="none") * (1 - correct) ** gamma).mean()
        return torch.where(broken, torch.nan, loss)


def patch_targets(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns patch-level targets `[B, h, w]`: 0, 1, or exactly 0.5 where a mask's edge splits a cell's centre.

    Args:
        mask: `[B, H, W]`, in {0, 1}.
        grid: Patch grid `(h, w)`.
    """
    coverage = F.interpolate(mask[:, None].float(), size=grid, mode="bilinear", align_corners=False)[:, 0]
    return torch.where(coverage == 0.5, coverage, (coverage > 0.5).float())


def patch_alignment_loss(tokens: Tensor, target: Tensor) -> Tensor:
    """Returns how much more alike normal and anomalous patches are than patches of one kind, cut at 0, a scalar.

    The mean similarity over normal-anomalous pairs, less the mean over normal-normal and anomalous-anomalous pairs
    together, pairs within an image only, both means over the whole batch. A mean over pairs of dot products is a
    product of sums, so that the `N x N` similarities are never formed.

    Args:
        tokens: Patch tokens `[B, N, D]`, L2-normalised.
        target: `[B, N]`: 0 normal, 1 anomalous; patches with another value drop out.

    Returns:
        In [0, 2]; 0 if the batch has no normal or no anomalous patch.

    Reference: AF-CLIP, Eq. (14). The paper's text leaves the normalisation open; this is the official code's.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        tokens = tokens.float()
        normal, anomalous = (target == 0).float(), (target == 1).float()  # [B, N]
        normal_sum = torch.einsum("bn,bnd->bd", normal, tokens)
        anomalous_sum = torch.einsum("bn,bnd->bd", anomalous, tokens)
        n, a = normal.sum(1), anomalous.sum(1)  # [B]
        cross = (normal_sum * anomalous_sum).sum() / (n * a).sum().clamp(min=1)
        alike = ((normal_sum**2).sum() + (anomalous_sum**2).sum()) / (n**2 + a**2).sum().clamp(min=1)
        defined = (n.sum() > 0) & ((n * a).sum() > 0)
        return torch.where(defined, cross - alike, 0.0).clamp(min=0)
