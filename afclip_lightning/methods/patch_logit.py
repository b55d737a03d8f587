"""Patch logit: a linear rule on each patch and on its difference from the rest of the image. No text."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.arguments import require_layers, require_not_negative, require_positive
from afclip_lightning.components.losses import patch_targets
from afclip_lightning.components.memory import MemoryBank
from afclip_lightning.components.scoring import mean_of_highest, upsample_and_smooth
from afclip_lightning.distributed import batch_mean, batch_sum, total
from afclip_lightning.methods.base import AnomalyMethod, OptimizerFactory, adam
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures


class PatchLogit(AnomalyMethod):
    """One logit per patch, linear in the tapped tokens. The mean of the highest logits gives the image score. No text.

    The rule is ours, made to work on photos after training on drawn pictures. It is a logistic regression over two
    inputs per tapped block: the normalised token, and the token minus the mean token of its image. UniADet is the
    nearest published method. It compares the token alone, by cosine and per block, and takes the image score from the
    class token. With `k_shot`, the distance to a memory of normal patches is added to the map, and its maximum to the
    image score.

    Args:
        backbone: The frozen tower.
        optimizer: Function that builds the optimiser of the weights.
        layers: Tapped blocks, counted from 1.
        top_patches: Number of the most anomalous patches that give the image score.
        image_weight: Weight of the image's loss relative to that of the patches.
        focal_gamma: Exponent of the focal loss of patches.
        map_sigma: Standard deviation of the Gaussian filter of the final map, in pixels. 0 does not filter.
        k_shot: Few-shot images per category in the memory bank. 0 is zero-shot.
        shot_seed: Seed of their random selection.
        memory_weight: Weight of the memory's distance relative to the zero-shot probability.

    Raises:
        ValueError: An argument is out of its range.
    """

    title = "Patch logit"
    parity = "a rule of this project: the head of the ready model `real`"
    takes_few_shot: ClassVar[bool] = True
    memory: MemoryBank
    fixed_by_training = ("top_patches",)

    def __init__(
        self,
        backbone: ClipBackbone,
        optimizer: OptimizerFactory = adam,
        layers: Sequence[int] = (6, 12, 18, 24),
        top_patches: int = 3,
        image_weight: float = 0.3,
        focal_gamma: float = 2.0,
        map_sigma: float = 4.0,
        k_shot: int = 0,
        shot_seed: int = 0,
        memory_weight: float = 1.0,
    ) -> None:
        require_layers(layers)
        require_positive(top_patches=top_patches)
        require_not_negative(image_weight=image_weight, focal_gamma=focal_gamma, map_sigma=map_sigma)
        require_not_negative(k_shot=k_shot, memory_weight=memory_weight)
        super().__init__(backbone, backbone.spec(layers), optimizer)
        self.save_hyperparameters(ignore=["backbone", "optimizer"], logger=False)
        self.top_patches = top_patches
        self.image_weight = image_weight
        self.focal_gamma = focal_gamma
        self.map_sigma = map_sigma
        self.k_shot = k_shot
        self.shot_seed = shot_seed
        self.memory_weight = memory_weight
        width = backbone.vision.width
        self.own = nn.Parameter(torch.randn(len(layers), width) / width)
        self.deviation = nn.Parameter(torch.randn(len(layers), width) / width)
        self.bias = nn.Parameter(torch.zeros(()))
        self.memory = MemoryBank()

    def logits(self, features: ClipFeatures) -> Tensor:
        """Returns the logit of each patch, `[B, N]`, float32; positive is more likely anomalous than not."""
        logit = self.bias.float()
        for index, tokens in enumerate(features.tokens):
            with torch.autocast(tokens.device.type, enabled=False):
                patches = F.layer_norm(tokens[:, 1:].float(), tokens.shape[-1:])
                logit = logit + patches @ self.own[index].float()
                logit = logit + (patches - patches.mean(dim=1, keepdim=True)) @ self.deviation[index].float()
        return logit

    def image_logit(self, patches: Tensor) -> Tensor:
        """Returns the mean of the highest patch logits, `[B, N]` to `[B]`."""
        return mean_of_highest(patches, self.top_patches)

    def loss(self, features: ClipFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns the focal loss of patches, the cross entropy of images, and `total`, their weighted sum.

        Images whose mask is not known take part in the image term only. A patch with target
        0.5 (see `patch_targets`) counts as neither.
        """
        known, labelled = batch.known, batch.labelled
        logits = self.logits(features)
        target = patch_targets(batch.mask[known], features.grid).flatten(1)
        entropy = F.binary_cross_entropy_with_logits(
            self.image_logit(logits)[labelled], batch.label[labelled].float(), reduction="none"
        )
        terms = {"patch_focal": patch_loss(logits[known], target, self.focal_gamma), "image": batch_mean(entropy)}
        return {"total": terms["patch_focal"] + self.image_weight * terms["image"], **terms}

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the image score `[B]` and the map `[B, H, W]`. Zero-shot, both are probabilities.

        Raises:
            DatasetError: With `k_shot`, a category has neither a memory bank nor few-shot images.
        """
        logits = self.logits(features)
        score, patches = self.image_logit(logits).sigmoid(), logits.sigmoid()
        if self.k_shot:
            self.memory.fit_missing(batch.keys, self.preprocess, self.fit_memory)
            distance = self.memory_weight * self.memory.mean_distance(batch.keys, features.tokens)
            score, patches = score + distance.amax(dim=1), patches + distance
        anomaly_map = upsample_and_smooth(patches.unflatten(1, features.grid), self.spec.image_size, self.map_sigma)
        return AnomalyPrediction(score, anomaly_map)


def patch_loss(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Returns the focal loss of patches, a scalar: three times the mean over normal ones plus that over anomalous ones.

    The means are separate because nearly all patches are normal. Patches with another target are left out.

    Args:
        logits: `[B, N]`.
        target: `[B, N]`: 0 normal, 1 anomalous, any other value for neither.
        gamma: Focusing exponent.
    """
    correct = torch.where(target == 1, logits, -logits)
    focal = -F.logsigmoid(correct) * (1 - correct.sigmoid()) ** gamma
    normal, anomalous = (
        batch_sum(focal * chosen) / total(chosen.sum()).clamp(min=1) for chosen in (target == 0, target == 1)
    )
    return 1.5 * normal + 0.5 * anomalous
