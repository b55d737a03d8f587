"""UniADet: linear classifiers of frozen tokens, separate for image and pixels and per tapped block. No text."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.arguments import (
    require_layers,
    require_not_negative,
    require_one_of,
    require_positive,
)
from afclip_lightning.components.losses import dice_loss, two_class_focal_loss
from afclip_lightning.components.memory import MemoryBank
from afclip_lightning.components.scoring import mean_of_highest, similarity_logits, upsample, upsample_and_smooth
from afclip_lightning.distributed import batch_mean
from afclip_lightning.methods.base import AnomalyMethod, OptimizerFactory, adam
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures

ImageScore = Literal["class_token", "patches"]


class UniADet(AnomalyMethod):
    """UniADet: two learned vectors, normal and anomalous, per task and per tapped block, compared with the tokens.

    The class token of each tapped block gives the image score, and its patches give the map. Both are probabilities,
    averaged over the blocks. Nothing else trains: 4 C numbers per block (20,480 for five blocks of a ViT-L, as the
    paper says). No text is used, so that any vision tower works. With `k_shot`, the distance to a memory of normal
    patches is added to the map, and its maximum to the image score.

    The paper's code is not published, and only its abstract and tables were at hand. These choices are ours: the tapped
    blocks; the temperature; probabilities are averaged over the blocks; losses are summed over the blocks; maps are
    upsampled as logits; the filter of the final map; the weight of the memory. `image_score: patches` is ours and not
    part of the paper. The class-aware augmentation of the paper is not built.

    Args:
        backbone: The frozen tower.
        optimizer: Function that builds the optimiser of the vectors.
        layers: Tapped blocks, counted from 1.
        temperature: Divisor of the cosine similarities.
        image_score: Source of the image score: `class_token`, or `patches`, the mean logit of the `top_patches` most
            anomalous patches, which trains no vectors for images.
        top_patches: Number of patches for `image_score: patches`.
        map_sigma: Standard deviation of the Gaussian filter of the final map, in pixels. 0 does not filter.
        k_shot: Few-shot images per category in the memory bank. 0 is zero-shot.
        shot_seed: Seed of their random selection.
        memory_weight: Weight of the memory's distance relative to the zero-shot probability.

    Raises:
        ValueError: An argument is out of its range.

    Reference: UniADet (arXiv 2601.05552).
    """

    title = "UniADet"
    paper = "gao2026uniadet"
    parity = "no public code to compare with; choices that the paper leaves open are arguments"
    takes_few_shot: ClassVar[bool] = True
    memory: MemoryBank
    fixed_by_training = ("temperature", "image_score", "top_patches")

    def __init__(
        self,
        backbone: ClipBackbone,
        optimizer: OptimizerFactory = adam,
        layers: Sequence[int] = (6, 12, 18, 21, 24),
        temperature: float = 0.07,
        image_score: ImageScore = "class_token",
        top_patches: int = 3,
        map_sigma: float = 4.0,
        k_shot: int = 0,
        shot_seed: int = 0,
        memory_weight: float = 1.0,
    ) -> None:
        require_layers(layers)
        require_one_of(ImageScore, image_score=image_score)
        require_positive(temperature=temperature, top_patches=top_patches)
        require_not_negative(k_shot=k_shot, memory_weight=memory_weight, map_sigma=map_sigma)
        super().__init__(backbone, backbone.spec(layers), optimizer)
        self.save_hyperparameters(ignore=["backbone", "optimizer"], logger=False)
        self.temperature = temperature
        self.image_score: ImageScore = image_score
        self.top_patches = top_patches
        self.map_sigma = map_sigma
        self.k_shot = k_shot
        self.shot_seed = shot_seed
        self.memory_weight = memory_weight
        shape = (len(layers), 2, backbone.vision.width)  # layer; normal, anomalous
        self.pixel_vectors = nn.Parameter(torch.randn(shape) / math.sqrt(shape[-1]))
        self.image_vectors = (
            nn.Parameter(torch.randn(shape) / math.sqrt(shape[-1])) if image_score == "class_token" else None
        )
        self.memory = MemoryBank()

    def logits(self, features: ClipFeatures) -> tuple[Tensor, Tensor | None]:
        """Returns the anomalous minus the normal logit of patches, `[L, B, N]`, and of class tokens, `[L, B]`.

        The second is `None` if the patches give the image score.
        """
        patches, images = [], []
        for index, tokens in enumerate(features.tokens):
            unit = F.normalize(tokens.float(), dim=-1)
            vectors = F.normalize(self.pixel_vectors[index], dim=-1)
            patches.append(similarity_logits(unit[:, 1:], vectors, self.temperature).diff(dim=-1)[..., 0])
            if self.image_vectors is not None:
                vectors = F.normalize(self.image_vectors[index], dim=-1)
                images.append(similarity_logits(unit[:, :1], vectors, self.temperature).diff(dim=-1)[:, 0, 0])
        return torch.stack(patches), torch.stack(images) if images else None

    def top_logit(self, patches: Tensor) -> Tensor:
        """Returns the mean logit of the most anomalous patches, `[..., N]` to `[...]`."""
        return mean_of_highest(patches, self.top_patches)

    def loss(self, features: ClipFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns cross entropy of images, focal and Dice loss of pixels, each summed over the layers, and `total`.

        Images whose mask is not known take part in the image term only.
        """
        known, labelled = batch.known, batch.labelled
        patches, images = self.logits(features)
        mask = batch.mask[known]
        maps = [upsample(one[known].unflatten(1, features.grid), self.spec.image_size).sigmoid() for one in patches]
        if images is None:
            images = self.top_logit(patches.mean(dim=0))[None]
        label = batch.label[labelled].float()
        entropies = [F.binary_cross_entropy_with_logits(one[labelled], label, reduction="none") for one in images]
        terms = {
            "image_ce": torch.stack([batch_mean(entropy) for entropy in entropies]).sum(),
            "focal": torch.stack([two_class_focal_loss(pixels, mask) for pixels in maps]).sum(),
            "dice": torch.stack([dice_loss(pixels, mask) for pixels in maps]).sum(),
        }
        return {"total": sum(terms.values(), torch.zeros((), device=patches.device)), **terms}

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the image score `[B]` and the map `[B, H, W]`. Zero-shot, both are probabilities.

        Raises:
            DatasetError: With `k_shot`, a category has neither a memory bank nor few-shot images.
        """
        patches, images = self.logits(features)
        probability = patches.sigmoid().mean(dim=0)  # [B, N]
        score = self.top_logit(patches.mean(dim=0)).sigmoid() if images is None else images.sigmoid().mean(dim=0)
        if self.k_shot:
            self.memory.fit_missing(batch.keys, self.preprocess, self.fit_memory)
            distance = self.memory_weight * self.memory.mean_distance(batch.keys, features.tokens)
            probability, score = probability + distance, score + distance.amax(dim=1)
        anomaly_map = upsample_and_smooth(probability.unflatten(1, features.grid), self.spec.image_size, self.map_sigma)
        return AnomalyPrediction(score, anomaly_map)
