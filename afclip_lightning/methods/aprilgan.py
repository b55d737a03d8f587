"""APRIL-GAN, also called VAND: a linear layer per tapped block between patches and text. Few-shot, a memory bank."""

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

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
from afclip_lightning.components.ranges import Ranges, merged, ranges_of, scaled
from afclip_lightning.components.scoring import anomaly_probability, similarity_logits, upsample
from afclip_lightning.data.whole_test_set import WholeTestSet
from afclip_lightning.methods.base import AnomalyMethod, OptimizerFactory, UsesTestSet, adam
from afclip_lightning.prompts.ensemble import CategoryText, Names, embed_states, name_of
from afclip_lightning.prompts.templates import APRILGAN_ABNORMAL, APRILGAN_NORMAL, APRILGAN_TEMPLATES, sentences
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures, Sample


class APRILGAN(AnomalyMethod):
    """APRIL-GAN: a linear layer per tapped block projects patches into the space of the text. Nothing else trains.

    The class token gives the image score without training. The map is the sum over the blocks, in [0, 4] for four
    blocks. With `k_shot`, the cosine distances to a memory of normal patches are added, up to 2 per block. The image
    score then is the mean of itself and the maximum of the map, scaled to [0, 1] over the test images of the category.
    Test images are therefore scored twice, first for the range.

    Differs: the official code shows every fifth training image as a collage with three others of its category. Here
    images stay as they are. It resizes training masks bilinearly. Here every mask is binary at input size. Where all
    maps of a category have the same maximum, it divides by zero. Here the scaled maxima are 0.

    Args:
        backbone: The frozen CLIP.
        optimizer: Function that builds the optimiser of the linear layers.
        layers: Tapped blocks, counted from 1.
        names: Name of a category in prompts: `category`, as the dataset does (`metal_nut`; the official code), or
            `class_name` (`metal nut`).
        temperature: Divisor of the cosine similarities.
        k_shot: Few-shot images per category in the memory bank. 0 is zero-shot.
        shot_seed: Seed of their random selection.

    Attributes:
        ranges: Lowest and highest maximum of the maps per category. They are known during validate, test and predict.

    Raises:
        ValueError: An argument is out of its range.

    Reference: APRIL-GAN (Chen et al., 2023), with the numbers of its public code (ByChelsea/VAND-APRIL-GAN, f13b8a6).
    """

    title = "APRIL-GAN"
    paper = "chen2023aprilgan"
    official_code = "ByChelsea/VAND-APRIL-GAN"
    parity = "equal to the official code"
    takes_few_shot: ClassVar[bool] = True
    memory: MemoryBank
    uses_test_set: ClassVar[UsesTestSet] = "with few-shot images"  # scales the highest map values over the category
    needs_class_name: ClassVar[bool] = True
    fixed_by_training = ("names", "temperature")

    def __init__(
        self,
        backbone: ClipBackbone,
        optimizer: OptimizerFactory = adam,
        layers: Sequence[int] = (6, 12, 18, 24),
        names: Names = "category",
        temperature: float = 0.01,
        k_shot: int = 0,
        shot_seed: int = 0,
    ) -> None:
        require_layers(layers)
        super().__init__(backbone, backbone.spec(layers, image_embedding=True), optimizer)
        require_one_of(Names, names=names)
        require_positive(temperature=temperature)
        require_not_negative(k_shot=k_shot)
        self.save_hyperparameters(ignore=["backbone", "optimizer"], logger=False)
        self.names: Names = names
        self.temperature = temperature
        self.k_shot = k_shot
        self.shot_seed = shot_seed
        self.linear = nn.ModuleList(nn.Linear(backbone.vision.width, backbone.embed_dim) for _ in layers)
        self.text = CategoryText(self._embed_text)
        self.memory = MemoryBank()
        self.ranges: Ranges = {}

    def on_train_end(self) -> None:
        """Drops the texts."""
        self.text.reset()

    def observe(self, test_set: WholeTestSet) -> Ranges:
        """Returns the ranges of the maps' maxima over this process's part of the test images, by category."""
        with self.trainer.precision_plugin.forward_context():
            return self.measure(test_set)

    def take_observed(self, observed: Sequence[Ranges]) -> None:
        """Keeps the ranges over all test images."""
        self.ranges = merged(observed)

    def on_evaluation_end(self) -> None:
        """Also drops the texts and the ranges of the pass."""
        super().on_evaluation_end()
        self.text.reset()
        self.ranges = {}

    def _embed_text(self, sample: Sample) -> Tensor:
        name = name_of(sample, self.names)
        normal, abnormal = (sentences(s, APRILGAN_TEMPLATES, name) for s in (APRILGAN_NORMAL, APRILGAN_ABNORMAL))
        return embed_states(self.backbone, normal, abnormal, "norm_mean_norm")

    def maps(self, features: ClipFeatures, text: Tensor) -> Iterator[Tensor]:
        """Yields the map of each layer, the probability of the abnormal state, `[B, H, W]`.

        The logits are upsampled, and not their softmax, as in the official code. A softmax over two is a function of
        their difference, and upsampling is linear: one plane is upsampled and not two.

        Args:
            features: Features of the backbone.
            text: `[B, 2, D]`, from `text`.
        """
        for linear, tokens in zip(self.linear, features.tokens, strict=True):
            with torch.autocast(tokens.device.type, enabled=False):  # a logit is 100 times a cosine
                patches = F.normalize(linear(tokens[:, 1:].float()), dim=-1)
            difference = similarity_logits(patches, text, self.temperature).diff(dim=-1)
            patch_map = difference[..., 0].unflatten(1, features.grid)
            yield upsample(patch_map, self.spec.image_size, align_corners=True).sigmoid()

    def loss(self, features: ClipFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns the focal and the Dice loss, each the sum over the layers, and `total`, the sum of both.

        Images whose mask is not known have no part in it: there is no image term.
        """
        known = batch.known
        maps, mask = list(self.maps(features, self.text(batch.samples))), batch.mask[known]
        terms = {
            "focal": torch.stack([two_class_focal_loss(pixels[known], mask) for pixels in maps]).sum(),
            "dice": torch.stack([dice_loss(pixels[known], mask) for pixels in maps]).sum(),
        }
        return {"total": terms["focal"] + terms["dice"], **terms}

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the image score and the map. With `k_shot`, the score includes the maximum of the map.

        Raises:
            DatasetError: With `k_shot`, nothing was measured of a category.
        """
        text = self.text(batch.samples)
        assert features.image_embedding is not None  # requested by the spec
        image = F.normalize(features.image_embedding.float(), dim=-1)
        score = anomaly_probability(similarity_logits(image[:, None], text, self.temperature))[:, 0]
        anomaly_map = self.anomaly_map(features, batch, text)
        if self.k_shot:
            maximum = anomaly_map.amax(dim=(1, 2))
            score = (score + scaled(maximum, batch, self.ranges)) / 2
        return AnomalyPrediction(score, anomaly_map)

    def anomaly_map(self, features: ClipFeatures, batch: Batch, text: Tensor) -> Tensor:
        """Returns the sum of the layers' maps and, with `k_shot`, of the distances to the memory, `[B, H, W]`.

        Args:
            features: Features of the backbone.
            batch: The images.
            text: `[B, 2, D]`, from `text`.
        """
        total = torch.stack(list(self.maps(features, text))).sum(0)
        if self.k_shot:
            self.memory.fit_missing(batch.keys, self.preprocess, self.fit_memory)
            distances = [2 * self.memory.distance(batch.keys, i, tokens) for i, tokens in enumerate(features.tokens)]
            distance = torch.stack(distances).sum(0).unflatten(1, features.grid)
            total = total + upsample(distance, self.spec.image_size, align_corners=True)
        return total

    def measure(self, batches: Iterable[Batch]) -> Ranges:
        """Returns the lowest and the highest maximum of the maps, by category."""
        ranges: Ranges = {}
        for batch in batches:
            batch = batch.to(self.device)
            maxima = self.anomaly_map(self.extract(batch), batch, self.text(batch.samples)).amax(dim=(1, 2))
            ranges = merged([ranges, ranges_of(maxima, maxima, batch)])
        return ranges
