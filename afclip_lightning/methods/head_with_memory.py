"""A memory of a few normal images, alone or with a zero-shot head, both standardised by these images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.spec import union
from afclip_lightning.components.arguments import require_layers, require_not_negative
from afclip_lightning.components.memory import Key, MemoryBank
from afclip_lightning.components.scoring import upsample, upsample_and_smooth
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.methods.beside import zero_shot
from afclip_lightning.types import UNKNOWN, AnomalyPrediction, Batch, ClipFeatures, Sample

SMALLEST = 1e-3  # smallest standard deviation, since copies of an image have distance 0
_NOWHERE = Path("few-shot image")


class HeadWithMemory(AnomalyMethod):
    """Distance of each patch to a few normal images, standardised by these images, plus the map of a zero-shot head.

    The memory holds all patches of `k_shot` normal images, block by block. Distances between the patches of these
    images give the usual mean and standard deviation. The distance of a patch to its nearest patch is standardised with
    them, per block. The map is the mean over the blocks, plus `head_weight` times the map of the head, standardised by
    the head's values on the normal images. A head that finds defects in normal images counts less. A light Gaussian
    filter over the patches follows. The image score is the maximum of the result.

    The rule is ours. `NearestNeighbours` has the same memory without standardisation, filter and head. Measurements are
    in experiments/adapt.

    Args:
        backbone: The frozen CLIP.
        layers: Tapped blocks of the memory, counted from 1. By default four at equal distances, including the last.
        head: Name of the zero-shot method. Empty for the memory alone.
        head_arguments: Constructor arguments of the head.
        head_weight: Weight of the head's map.
        smoothing: Standard deviation of the filter, in patches. 0 does not filter.
        bank_size: Maximum number of patches per block. With more, this number is sampled with a fixed seed.
        k_shot: Few-shot images per category in the memory bank.
        shot_seed: Seed of their random selection.

    Raises:
        ValueError: An argument is out of its range, or the head needs more than an image.
        UserError: There is no such head, or it rejects its arguments.
    """

    title = "Head with memory"
    parity = "a rule of this project: what `afclip adapt` makes"
    takes_few_shot: ClassVar[bool] = True
    holds_head: ClassVar[bool] = True
    memory: MemoryBank
    fixed_by_training = ("head", "head_arguments")

    def __init__(
        self,
        backbone: ClipBackbone,
        layers: Sequence[int] | None = None,
        head: str = "",
        head_arguments: dict[str, Any] | None = None,
        head_weight: float = 0.5,
        smoothing: float = 0.5,
        bank_size: int = 8192,
        k_shot: int = 4,
        shot_seed: int = 0,
    ) -> None:
        if layers is None:
            layers = sorted({max(1, backbone.vision.depth * quarter // 4) for quarter in (1, 2, 3, 4)})
        require_layers(layers)
        require_not_negative(head_weight=head_weight, smoothing=smoothing)
        if k_shot < 1 or bank_size < 2:
            raise ValueError(f"k_shot must be at least 1 and bank_size 2, got {k_shot} and {bank_size}")
        beside = zero_shot(head, backbone, head_arguments or {}, "a memory") if head else None
        tapped = backbone.spec(layers)
        super().__init__(backbone, tapped if beside is None else union([tapped, beside.spec]), optimizer=None)
        self.save_hyperparameters(ignore=["backbone"], logger=False)
        self.tapped = tapped
        self.head = beside
        self.head_weight = head_weight
        self.smoothing = smoothing
        self.k_shot = k_shot
        self.shot_seed = shot_seed
        self.memory = MemoryBank(bank_size)
        if beside is not None:
            self.needs_class_name, self.needs_pixels, self.changes_blocks = (  # type: ignore[misc]  # those of the head
                beside.needs_class_name,
                beside.needs_pixels,
                beside.changes_blocks,
            )

    def on_evaluation_start(self) -> None:
        """Also prepares the head."""
        super().on_evaluation_start()
        if self.head is not None:
            self.head.on_evaluation_start()

    def on_evaluation_end(self) -> None:
        """Also releases what the head prepared."""
        super().on_evaluation_end()
        if self.head is not None:
            self.head.on_evaluation_end()

    def fit_memory(self, key: Key, image: Tensor) -> None:
        """Fits the memory bank of a `(dataset, category)` on normal images `[S, 3, H, W]`.

        The head's values of these images are stored with it.
        """
        features = self.backbone.encode_image(image.to(self.device), self.spec)
        chosen = self.memory.few_shot.get(key)
        name = chosen[0].class_name if chosen else key[1]
        sample = Sample(*key, "train", chosen[0].image_path if chosen else _NOWHERE, UNKNOWN, class_name=name)
        none = image.new_empty(0)
        batch = Batch(image.to(self.device), none, none, none, [sample] * len(image))
        self.memory.fit(key, self.tapped.select(features, self.spec).tokens, self._of_head(features, batch))

    def _of_head(self, features: ClipFeatures, batch: Batch) -> list[Tensor]:
        """Returns the head's map over the patches, `[B, N]`; nothing without a head."""
        if self.head is None:
            return []
        pixels = self.head.predict_from(features, self.spec, batch).anomaly_map
        (height, width), (h, w) = pixels.shape[1:], features.grid
        return [F.avg_pool2d(pixels[:, None], (height // h, width // w)).flatten(1)]

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the highest patch score of each image, and the upsampled map, both in standard deviations.

        Raises:
            DatasetError: A category has neither a memory bank nor few-shot images.
        """
        keys = batch.keys
        self.memory.fit_missing(keys, self.preprocess, self.fit_memory)
        tokens = self.tapped.select(features, self.spec).tokens
        values = [self.memory.distance(keys, index, one) for index, one in enumerate(tokens)]
        weights = [1 / len(values)] * len(values)
        if self.head is not None:
            values += self._of_head(features, batch)
            weights += [self.head_weight]
        usual = torch.stack([self.memory.spread(key) for key in keys]).to(values[0].device)  # [B, sets, 2]
        mean, deviation = usual[:, :, None, 0], usual[:, :, None, 1].clamp(min=SMALLEST)
        standard = (torch.stack(values, dim=1) - mean) / deviation  # [B, sets, N]
        patches = (standard * standard.new_tensor(weights)[:, None]).sum(dim=1).unflatten(1, features.grid)
        smooth = upsample_and_smooth(patches, features.grid, self.smoothing)
        return AnomalyPrediction(smooth.amax(dim=(1, 2)), upsample(smooth, self.spec.image_size))
