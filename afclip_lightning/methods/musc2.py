"""MuSc-2: MuSc with few references per test image."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.mutual_scoring import MutualScoring, nearest_distances, normalise_planes, similarities
from afclip_lightning.data.references import Pairing
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures


class MuSc2(AnomalyMethod):
    """MuSc-2: MuSc where each test image is scored by few other images of its category, one by default.

    The reference may be anomalous itself. The image score is the maximum of the map, without the constraint by the
    scores of other images.

    Differs: the paper gives the name and the numbers only. The choice of pairs is ours, and so is the rule that the
    interval average has at least one reference.

    Args:
        backbone: The frozen CLIP.
        layers: Tapped blocks, counted from 1.
        scales: Odd window sides of the aggregation, in patches. 1 is the patch itself.
        interval: Share of the references with the lowest distances. The score of a patch is the mean over them.
        n_references: Number of references per image.
        seed: Seed of their selection.

    Reference: Dual-Image Enhanced CLIP, Table 1; MuSc (Li et al., ICLR 2024).
    """

    title = "MuSc-2"
    paper = "zhang2024dualimage"
    parity = "the paper gives the name and the numbers only; MuSc is equal to its official code"
    needs_references: ClassVar[bool] = True

    def __init__(
        self,
        backbone: ClipBackbone,
        layers: Sequence[int] = (3, 6, 9, 12),
        scales: Sequence[int] = (1, 3, 5),
        interval: float = 0.3,
        n_references: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, backbone.spec(layers, image_embedding=False), optimizer=None)
        self.mutual = MutualScoring(backbone.grid, backbone.image_size, scales, interval)
        if n_references < 1:
            raise ValueError(f"n_references must be at least 1, got {n_references}")
        self.pairing = Pairing(n_references, seed)

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the scores and maps of images from the distances to their references.

        Raises:
            RuntimeError: The batch has no references.
        """
        if batch.reference is None or batch.reference_rows is None:
            raise RuntimeError("MuSc2 needs references: call datamodule.pair(model.pairing) before loaders are made")
        layers = features.tokens
        if len(batch.reference):
            beside = self.backbone.encode_image(batch.reference, self.spec)
            beside = self.store.rounded(beside) if self.store else beside
            layers = tuple(torch.cat(pair) for pair in zip(layers, beside.tokens, strict=True))
        total = torch.zeros(len(batch.samples), math.prod(features.grid), device=layers[0].device)
        with torch.autocast(total.device.type, enabled=False):
            for tokens in layers:
                planes = normalise_planes(tokens)
                for scale in self.mutual.scales:
                    every = self.mutual.at_scale(planes, scale)
                    for row, others in enumerate(batch.reference_rows):
                        a, b = every[row, None], every[others]
                        distances = nearest_distances(similarities(a, b), a, b)
                        total[row] += self.mutual.lowest_mean(distances[0])
        maps = (total / (len(features.tokens) * len(self.mutual.scales))).unflatten(1, features.grid)
        anomaly_map = self.mutual.upsampled(maps)
        return AnomalyPrediction(anomaly_map.amax((1, 2)), anomaly_map)
