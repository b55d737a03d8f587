"""Nearest neighbours: the plain few-shot baseline that a new head must be compared with."""

from collections.abc import Sequence
from typing import ClassVar

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.arguments import require_layers, require_not_negative
from afclip_lightning.components.memory import MemoryBank
from afclip_lightning.components.scoring import upsample_and_smooth
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures


class NearestNeighbours(AnomalyMethod):
    """Distance of each patch to the nearest patch of a few normal images. Nothing is trained.

    The memory holds all patches of `k_shot` normal images per category, block by block. The score of a patch is half
    its cosine distance to the nearest of them, in [0, 1], averaged over the blocks. The image score is the maximum over
    its patches. No text is used, so that any vision tower works: CLIP's, or DINOv2's with an untrained text tower.

    Many methods share the idea (the few-shot parts of WinCLIP and AF-CLIP; PatchCore, with a subset of the patches).
    The rule above is ours: no projection, no aggregation of neighbouring patches, no subset, equal weights of the
    blocks.

    Args:
        backbone: The frozen CLIP.
        layers: Tapped blocks, counted from 1.
        k_shot: Few-shot images per category in the memory bank.
        shot_seed: Seed of their random selection.
        map_sigma: Standard deviation of the Gaussian filter of the map, in pixels. 0 does not filter.

    Raises:
        ValueError: An argument is out of its range.
    """

    title = "Nearest neighbours"
    parity = "a rule of this project: a plain baseline"
    takes_few_shot: ClassVar[bool] = True
    memory: MemoryBank

    def __init__(
        self,
        backbone: ClipBackbone,
        layers: Sequence[int] = (6, 12, 18, 24),
        k_shot: int = 4,
        shot_seed: int = 0,
        map_sigma: float = 0.0,
    ) -> None:
        require_layers(layers)
        require_not_negative(map_sigma=map_sigma)
        if k_shot < 1:
            raise ValueError(f"k_shot must be at least 1, got {k_shot}")
        super().__init__(backbone, backbone.spec(layers), optimizer=None)
        self.save_hyperparameters(ignore=["backbone"], logger=False)
        self.k_shot = k_shot
        self.shot_seed = shot_seed
        self.map_sigma = map_sigma
        self.memory = MemoryBank()

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the largest patch distance of each image, and the upsampled map of distances, both in [0, 1].

        Raises:
            DatasetError: A category has neither a memory bank nor few-shot images.
        """
        self.memory.fit_missing(batch.keys, self.preprocess, self.fit_memory)
        distances = self.memory.mean_distance(batch.keys, features.tokens)  # [B, N]
        anomaly_map = upsample_and_smooth(distances.unflatten(1, features.grid), self.spec.image_size, self.map_sigma)
        return AnomalyPrediction(distances.amax(dim=1), anomaly_map)
