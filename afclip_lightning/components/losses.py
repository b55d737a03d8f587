"""Training losses as functions of a batch. They are computed in float32, whatever the precision of the run.

Where several processes share a batch, "the batch" means that of all processes, and a loss is the share of this process.
See `distributed`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.distributed import batch_mean, batch_sum, total


def binary_focal_loss(probability: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Returns the mean focal loss of probabilities, a scalar.

    The cross entropy is computed from probabilities, not logits, as in the official code. Where a probability saturates
    at 0 or 1 in float32, the logarithm is clamped to -100 and the gradient is 0. A log-sigmoid form would have another
    gradient there.

    Args:
        probability: Probability of the anomalous class, in [0, 1], any shape.
        target: Same shape, in [0, 1].
        gamma: Focusing exponent.

    Reference: AF-CLIP, Eq. (11).
    """
    with torch.autocast(probability.device.type, enabled=False):
        # torch's cross entropy aborts on NaN, on a GPU with the whole process: pass no NaN to it, but return NaN
        broken = probability.isnan().any()
        probability, target = probability.float().nan_to_num(nan=0.5), target.float()
        correct = probability * target + (1 - probability) * (1 - target)
        entropy = F.binary_cross_entropy(probability, target, reduction="none")
        return torch.where(broken, torch.nan, batch_mean(entropy * (1 - correct) ** gamma))


def patch_targets(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns patch-level targets `[B, h, w]`: 0, 1, or exactly 0.5 where the mask covers half of the patch centre.

    Args:
        mask: `[B, H, W]`, in {0, 1}.
        grid: Patch grid `(h, w)`.
    """
    coverage = F.interpolate(mask[:, None].float(), size=grid, mode="bilinear", align_corners=False)[:, 0]
    return torch.where(coverage == 0.5, coverage, (coverage > 0.5).float())


def patch_alignment_loss(tokens: Tensor, target: Tensor) -> Tensor:
    """Returns `alignment_of_sums` of patch tokens.

    Args:
        tokens: Patch tokens `[B, N, D]`, L2-normalised.
        target: `[B, N]`: 0 normal, 1 anomalous. Patches with another value are left out.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        kinds = patch_kinds(target)
        return alignment_of_sums(kinds @ tokens.float(), kinds.sum(-1))


def patch_kinds(target: Tensor) -> Tensor:
    """Returns the indicators of normal and of anomalous patches, 0 or 1, `[B, 2, N]`. See `patch_alignment_loss`."""
    return torch.stack([target == 0, target == 1], dim=1).float()


def alignment_of_sums(sums: Tensor, counts: Tensor) -> Tensor:
    """Returns the patch alignment loss: the excess similarity of patches of different kinds over patches of one kind.

    It is the mean similarity of normal-anomalous pairs minus the mean similarity of normal-normal and
    anomalous-anomalous pairs together, clamped at 0. Pairs lie within an image, and both means run over the whole
    batch. A mean over pairs of dot products is a product of sums, so the `N x N` similarities are never formed.

    Args:
        sums: `[B, 2, D]`, float32: per image, the sum of its normal and of its anomalous patch tokens, L2-normalised.
        counts: `[B, 2]`, the number of patches in each sum.

    Returns:
        A scalar in [0, 2]. It is 0 if the batch has no normal or no anomalous patch.

    Reference: AF-CLIP, Eq. (14). The paper's text leaves the normalisation open; this is the official code's.
    """
    with torch.autocast(sums.device.type, enabled=False):
        normal_sum, anomalous_sum = sums.unbind(1)  # [B, D]
        n, a = counts.unbind(1)  # [B]
        cross_pairs, alike_pairs = total(torch.stack([(n * a).sum(), (n**2 + a**2).sum()]))
        cross = (normal_sum * anomalous_sum).sum() / cross_pairs.clamp(min=1)
        alike = ((normal_sum**2).sum() + (anomalous_sum**2).sum()) / alike_pairs.clamp(min=1)
        share = batch_sum(cross - alike)
        # cut if the sum of the whole batch is below 0, not that of this process; NaN stays
        return torch.where((cross_pairs == 0) | (total(share) < 0), 0.0, share)


def two_class_focal_loss(probability: Tensor, target: Tensor, gamma: float = 2.0, smooth: float = 1e-5) -> Tensor:
    """Returns the mean focal loss of a softmax over the two states, with smoothed targets, a scalar.

    Args:
        probability: Probability of the anomalous class, in [0, 1], any shape.
        target: Same shape, in {0, 1}.
        gamma: Focusing exponent.
        smooth: Label smoothing: targets become `smooth` and `1 - smooth`, and `smooth` is added to the probability of
            the correct class.

    Reference: AnomalyCLIP, FAPrompt, Eq. (7); the smoothing is in the official codes only.
    """
    with torch.autocast(probability.device.type, enabled=False):
        target = target.float().clamp(smooth, 1 - smooth)
        correct = target * probability.float() + (1 - target) * (1 - probability.float()) + smooth
        return batch_mean(-((1 - correct) ** gamma) * correct.log())


def image_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Returns the mean cross entropy of images, a scalar.

    Args:
        logits: `[B, 2]`, of the normal and the abnormal state.
        label: `[B]`, int64, 1 = anomalous.
    """
    return batch_mean(F.cross_entropy(logits.float(), label, reduction="none"))


def dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """Returns 1 minus the Dice coefficient, averaged over the images of the batch, a scalar in [0, 1].

    Args:
        probability: `[B, H, W]`, in [0, 1].
        target: Same shape, in {0, 1}. Numerator and denominator have 1 added, so an empty target and an empty map
            agree.

    Reference: FAPrompt, Eq. (7).
    """
    with torch.autocast(probability.device.type, enabled=False):
        probability, target = probability.float().flatten(1), target.float().flatten(1)
        overlap = (probability * target).sum(1)
        return batch_mean(1 - (2 * overlap + 1) / (probability.sum(1) + target.sum(1) + 1))


def map_losses(probability: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Returns the three loss terms of a pixel map: `focal`, `dice_abnormal` and `dice_normal`.

    Args:
        probability: Probability of the anomalous class, `[B, H, W]`, in [0, 1].
        mask: `[B, H, W]`, in {0, 1}.

    Reference: FAPrompt, Eq. (7); AnomalyCLIP.
    """
    return {
        "focal": two_class_focal_loss(probability, mask),
        "dice_abnormal": dice_loss(probability, mask),
        "dice_normal": dice_loss(1 - probability, 1 - mask.float()),
    }


def orthogonality_loss(embeddings: Tensor) -> Tensor:
    """Returns the sum of the absolute cosine over all pairs, a scalar. It is 0 for a single embedding.

    Args:
        embeddings: `[K, D]`, not necessarily normalised.

    Reference: FAPrompt, Eq. (2).
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = F.normalize(embeddings.float(), dim=-1)
        return (unit @ unit.T).abs().triu(1).sum()


def prior_loss(prior: Tensor, label: Tensor) -> Tensor:
    """Returns the mean square of the prior, summed over normal images, a scalar.

    It drives the prior of normal images to 0.

    Args:
        prior: `[B, width]`.
        label: `[B]`, 1 = anomalous.

    Reference: FAPrompt, Eq. (5); the official code's mean over channels and sum over images.
    """
    with torch.autocast(prior.device.type, enabled=False):
        return batch_sum(prior.float().square().mean(1) * (label == 0))


def knowledge_loss(knowledge: Tensor, normal: Tensor, abnormal: Tensor, margin: float = 0.0) -> Tensor:
    """Returns the triplet loss that pulls abnormal prompts towards the knowledge and pushes normal prompts away.

    It is 0 once the abnormal prompts are nearer by `margin`. Without a margin, as printed, it may be 0 from the first
    step: prompts with the word `abnormal` resemble sentences on damage before any training.

    Args:
        knowledge: `[B, D]`, mean embedding of the sentences on abnormal items, not necessarily normalised.
        normal: `[B, D]`, embeddings of the normal prompts.
        abnormal: `[B, D]`, embeddings of the abnormal prompts.
        margin: Distance by which the abnormal prompts must be nearer.

    Returns:
        The mean over the whole batch of the difference of Euclidean distances between normalised embeddings, clamped at
        0.

    Reference: KAnoCLIP, Eq. (2). The margin is ours.
    """
    with torch.autocast(knowledge.device.type, enabled=False):
        k, n, a = (F.normalize(embedding.float(), dim=-1) for embedding in (knowledge, normal, abnormal))
        return batch_mean(((k - a).norm(dim=-1) - (k - n).norm(dim=-1) + margin).clamp(min=0))


def glocal_contrastive_loss(of_image: Tensor, of_patches: Tensor, margin: float = 0.0) -> Tensor:
    """Returns the contrastive loss between the global prompts and the local prompts, a scalar.

    Per state, it is the squared distance of the two prompts of that state, plus the squared amount by which the
    distance to the local prompt of the other state falls short of the margin. A margin of 0 separates nothing.

    Args:
        of_image: `[2, D]`, L2-normalised: the global prompts, compared with the image.
        of_patches: `[2, D]`, L2-normalised: the local prompts, compared with patches.
        margin: Distance up to which the two states are pushed apart, from 0 to 2.

    Reference: GlocalCLIP, the official code.
    """
    with torch.autocast(of_image.device.type, enabled=False):
        alike = F.pairwise_distance(of_image.float(), of_patches.float())
        apart = F.pairwise_distance(of_image.float(), of_patches.float().flip(0))
        return (alike.square() + (margin - apart).clamp(min=0).square()).sum()
