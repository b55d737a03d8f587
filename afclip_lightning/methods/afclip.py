"""AF-CLIP and, with `k_shot`, AF-CLIP+."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.normed_projection import normed_projection
from afclip_lightning.components.adapters import (
    AttentionAdapter,
    Mixture,
    aggregate_neighbours,
    aggregate_patches,
)
from afclip_lightning.components.arguments import require_layers, require_not_negative, require_positive
from afclip_lightning.components.losses import (
    alignment_of_sums,
    binary_focal_loss,
    patch_kinds,
    patch_targets,
)
from afclip_lightning.components.memory import Key, MemoryBank
from afclip_lightning.components.scoring import anomaly_probability, upsample_and_smooth
from afclip_lightning.components.unit_tokens import FormedTokens, JoinedEnding, UnitTokens
from afclip_lightning.distributed import batch_mean
from afclip_lightning.methods.base import OptimizerFactory, PromptMethod
from afclip_lightning.prompts.learner import StatePrompts
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures


def paper_optimizer(parameters: Iterable[Tensor]) -> Adam:
    """Returns the paper's optimiser. It is a named function so that run folders can record it."""
    return Adam(parameters, lr=1e-4, betas=(0.5, 0.999))


class AFCLIP(PromptMethod):
    """AF-CLIP: neighbourhood aggregation, a shared attention adapter and learnable state prompts.

    Tokens of four blocks are aggregated over three windows. Each of the 12 token sets passes one adapter and the frozen
    projection, and is compared with two text embeddings. The class token gives the image score, and the patches give
    the map. With `k_shot` it is AF-CLIP+: the distance to a memory of normal patches is added, without training.

    Differs: the official code resizes training masks without binarising them before they are reduced to patches. Here
    every mask is binary at input size. Only patches whose centre lies on the edge of a mask differ.

    Args:
        backbone: The frozen CLIP.
        optimizer: Function that builds the optimiser of the adapter and the prompt.
        layers: Tapped blocks, counted from 1.
        scales: Odd window sides of the aggregation, in patches. 1 is the token itself.
        aggregation_sigma: Standard deviation of the aggregation weights, in patches.
        adapter: Whether tokens pass the adapter.
        adapter_heads: Attention heads of the adapter, with 64 channels each.
        learnable_prompt: Whether learnable tokens precede the words of the states. Without, no part of the text trains.
        prompt_tokens: Number of learnable tokens.
        prompt_init_std: Standard deviation of the tokens' initial values.
        states: Words of the normal and of the abnormal state.
        temperature: Divisor of the cosine similarities.
        focal_gamma: Exponent of the focal losses.
        map_loss_weight: λ1, weight of the focal and L1 losses of the map.
        alignment_loss_weight: λ2, weight of the patch alignment loss. 0 leaves it out.
        alias_targets: Whether to repeat the official code's in-place change of its own targets. Its alignment loss
            turns the zeros of the map's targets into -1 before the backward pass. This changes gradients on normal
            patches, but no loss value.
        map_sigma: Standard deviation of the Gaussian filter of the final map, in pixels.
        k_shot: Few-shot images per category in the memory bank. 0 is zero-shot AF-CLIP.
        shot_seed: Seed of their random selection.
        memory_map_weight: α of the map in AF-CLIP+: weight of the zero-shot map relative to that of the memory.
        memory_image_weight: α of the image score in AF-CLIP+.

    Reference: AF-CLIP, Eq. (3) to (18).
    """

    title = "AF-CLIP, AF-CLIP+"
    paper = "fang2025afclip"
    official_code = "Faustinaqq/AF-CLIP"
    parity = "equal to the official code"
    takes_few_shot: ClassVar[bool] = True
    memory: MemoryBank
    fixed_by_training = ("scales", "aggregation_sigma", "learnable_prompt", "states", "temperature")
    fixed_text: Tensor

    def __init__(
        self,
        backbone: ClipBackbone,
        optimizer: OptimizerFactory = paper_optimizer,
        layers: Sequence[int] = (6, 12, 18, 24),
        scales: Sequence[int] = (1, 3, 5),
        aggregation_sigma: float = 4.0,
        adapter: bool = True,
        adapter_heads: int = 8,
        learnable_prompt: bool = True,
        prompt_tokens: int = 12,
        prompt_init_std: float = 0.01,
        states: tuple[str, str] = ("without defect.", "with defect."),
        temperature: float = 0.07,
        focal_gamma: float = 4.0,
        map_loss_weight: float = 1.0,
        alignment_loss_weight: float = 1.0,
        alias_targets: bool = False,
        map_sigma: float = 4.0,
        k_shot: int = 0,
        shot_seed: int = 0,
        memory_map_weight: float = 0.1,
        memory_image_weight: float = 0.1,
    ) -> None:
        require_layers(layers)
        require_not_negative(map_sigma=map_sigma, k_shot=k_shot)
        super().__init__(backbone, backbone.spec(layers), optimizer)
        if not scales or any(scale < 1 or scale % 2 == 0 for scale in scales):
            raise ValueError(f"scales must be odd and positive, got {list(scales)}")
        require_positive(temperature=temperature, aggregation_sigma=aggregation_sigma)
        self.save_hyperparameters(ignore=["backbone", "optimizer"], logger=False)
        self.scales = tuple(scales)
        self.aggregation_sigma = aggregation_sigma
        self.temperature = temperature
        self.focal_gamma = focal_gamma
        self.map_loss_weight = map_loss_weight
        self.alignment_loss_weight = alignment_loss_weight
        self.alias_targets = alias_targets
        self.map_sigma = map_sigma
        self.k_shot = k_shot
        self.shot_seed = shot_seed
        self.memory_map_weight = memory_map_weight
        self.memory_image_weight = memory_image_weight
        self.adapter = AttentionAdapter(backbone.vision.width, adapter_heads) if adapter else None
        if learnable_prompt:
            self.prompts: StatePrompts | None = StatePrompts(backbone, states, prompt_tokens, prompt_init_std)
            text = None  # it depends on trained parameters
        else:
            self.prompts = None
            text = F.normalize(backbone.encode_text(states), dim=-1)
        self.register_buffer("fixed_text", text, persistent=False)
        self.memory = MemoryBank()

    def embed_text(self) -> Tensor:
        """Returns the normal and the abnormal text embedding `[2, D]`, L2-normalised."""
        return self.fixed_text if self.prompts is None else F.normalize(self.prompts(self.backbone), dim=-1)

    def mixtures(self, grid: tuple[int, int]) -> list[Mixture]:
        """Returns the aggregation of the patches at each scale."""
        sigma = self.aggregation_sigma
        return [partial(aggregate_patches, grid=grid, window=scale, sigma=sigma) for scale in self.scales]

    def aggregated(self, features: ClipFeatures) -> Iterator[Tensor]:
        """Yields the token sets `[B, 1 + N, C]`, block by block, with the scales of a block in order."""
        for tokens in features.tokens:
            for scale in self.scales:
                yield aggregate_neighbours(tokens, features.grid, scale, self.aggregation_sigma)

    def adapted(self, features: ClipFeatures) -> Iterator[Tensor]:
        """Yields the token sets in the joint space, `[B, 1 + N, D]`, L2-normalised, in the order of `aggregated`.

        Reference: AF-CLIP, Eq. (3) to (7).
        """
        mixtures = self.mixtures(features.grid)
        sets = (self.adapter(tokens, mixtures) for tokens in features.tokens) if self.adapter else None
        for one in self.aggregated(features) if sets is None else chain.from_iterable(sets):
            yield F.normalize(self.backbone.project(one), dim=-1)

    def unit_tokens(self, features: ClipFeatures, text: Tensor) -> Iterator[UnitTokens]:
        """Yields the token sets of `adapted`, float32, for text embeddings `[2, D]`. They are formed only if needed."""
        ending, mixtures = self._ending(features.tokens[0].device, text), self.mixtures(features.grid)
        if ending is None or self.adapter is None:
            for tokens in self.adapted(features):
                yield FormedTokens(tokens, text)
        else:
            for tokens in features.tokens:
                for inner in self.adapter.attended(tokens, mixtures):
                    yield ending(inner)

    def _ending(self, device: torch.device, text: Tensor) -> JoinedEnding | None:
        projection = normed_projection(self.backbone.vision)
        mixed = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
        if self.adapter is None or projection is None or mixed:
            return None
        to_out = self.adapter.to_out
        return JoinedEnding(to_out, projection, text) if JoinedEnding.pays(to_out, projection) else None

    def loss(self, features: ClipFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss terms and their weighted sum `total`.

        Images without a known mask contribute to the image term only.

        Reference: AF-CLIP, Eq. (11) to (15).
        """
        text = self.text_embeddings()
        known, labelled = batch.known, batch.labelled
        target = patch_targets(batch.mask[known], features.grid)  # [B', h, w]
        kinds = patch_kinds(target.flatten(1))  # [B', 2, N]
        counts = kinds.sum(-1)
        weights = kinds.new_zeros(len(batch.mask), *kinds.shape[1:])
        weights[known] = kinds
        weights = F.pad(weights, (1, 0))  # the class token is neither normal nor anomalous
        cosines = torch.zeros((), device=text.device)
        alignments = []
        for tokens in self.unit_tokens(features, text):
            cosines = cosines + tokens.cosines
            if self.alignment_loss_weight:
                alignments.append(alignment_of_sums(tokens.sums(weights)[known], counts))
        probability = anomaly_probability(cosines / self.temperature)
        patch_map = probability[known, 1:].unflatten(1, features.grid)
        terms = {
            "image_focal": binary_focal_loss(probability[labelled, 0], batch.label[labelled], self.focal_gamma),
            "map_focal": binary_focal_loss(patch_map, target, self.focal_gamma),
            "map_l1": batch_mean((patch_map - target).abs()),
        }
        total = terms["image_focal"] + self.map_loss_weight * (terms["map_focal"] + terms["map_l1"])
        if alignments:
            terms["alignment"] = torch.stack(alignments).mean()
            total = total + self.alignment_loss_weight * terms["alignment"]
            if self.alias_targets:
                # autograd keeps `target` for the backward pass; `.data` changes it unseen, as in the official code
                target.data.masked_fill_(target == 0, -1)
        return {"total": total, **terms}

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns scores and maps from class token and patches. AF-CLIP+ adds those of the memory.

        Reference: AF-CLIP, Sec. 4.4 and Eq. (18).
        """
        text = self.text_embeddings()
        cosines = torch.zeros((), device=text.device)
        for tokens in self.unit_tokens(features, text):
            cosines = cosines + tokens.cosines
        probability = anomaly_probability(cosines / self.temperature)
        score, patches = probability[:, 0], probability[:, 1:]
        if self.k_shot:
            self.memory.fit_missing(batch.keys, self.preprocess, self.fit_memory)
            distance = self.memory.mean_distance(batch.keys, self.aggregated(features))
            score = distance.amax(dim=1) + self.memory_image_weight * score
            patches = distance + self.memory_map_weight * patches
        anomaly_map = upsample_and_smooth(patches.unflatten(1, features.grid), self.spec.image_size, self.map_sigma)
        return AnomalyPrediction(score, anomaly_map)

    def fit_memory(self, key: Key, image: Tensor) -> None:
        """Fits the memory bank of a `(dataset, category)` on the features of normal images `[S, 3, H, W]`.

        Reference: AF-CLIP, Eq. (16).
        """
        features = self.backbone.encode_image(image.to(self.device), self.spec)
        self.memory.fit(key, self.aggregated(features))
