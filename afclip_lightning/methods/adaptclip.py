"""AdaptCLIP: a visual, a textual and a prompt-query adapter in one head."""

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.store import FeatureStore
from afclip_lightning.components.arguments import require_layers, require_not_negative
from afclip_lightning.components.batch_norm import SharedBatchNorm
from afclip_lightning.components.losses import image_cross_entropy, map_losses
from afclip_lightning.components.memory import Key, MemoryBank
from afclip_lightning.components.prompt_images import PromptImages
from afclip_lightning.components.scoring import (
    anomaly_probability,
    mean_of_highest,
    prototypes,
    similarity_logits,
    upsample,
    upsample_and_smooth,
)
from afclip_lightning.data.dataset import AnomalyDataset
from afclip_lightning.methods.base import OptimizerFactory, PromptMethod, adam
from afclip_lightning.prompts.ensemble import embed_states
from afclip_lightning.prompts.learner import ObjectPrompts
from afclip_lightning.prompts.templates import WINCLIP_ABNORMAL, WINCLIP_NORMAL, WINCLIP_TEMPLATES_21, sentences
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures, Sample

Prompts = Callable[[Sequence[Sample], int, FeatureStore | None], tuple[list[Batch], list[int]]]
TOP_TOKENS = 10  # per channel; their mean is used beside the mean of all tokens


class AdapterOutput(NamedTuple):
    """Output of an adapter for a batch: image logits `[B, 2]` and the map of anomalous probabilities `[B, h, w]`."""

    image: Tensor
    places: Tensor


class TokenAdapter(nn.Module):
    """Residual bottleneck: `x + W2 relu(bn(W1 x))`, without biases.

    Args:
        channels: D.
        reduction: Reduction factor of the bottleneck.

    Reference: AdaptCLIP, visual adapter; the official code.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        narrow = max(1, channels // reduction)
        self.layers = nn.Sequential(
            nn.Linear(channels, narrow, bias=False),
            SharedBatchNorm(narrow),
            nn.ReLU(),
            nn.Linear(narrow, channels, bias=False),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns adapted tokens `[B, T, D]`; in training, with the statistics of all B T of them."""
        change: Tensor = self.layers(tokens.flatten(0, 1))
        return tokens + change.unflatten(0, tokens.shape[:2]).float()


class PromptQueryAdapter(nn.Module):
    """Classifies patches by their difference from the nearest normal patch, and the image by all of them.

    Each tapped block has its own normalisation. The blocks share the two heads, for patches and for the image. The
    running statistics of the heads are therefore updated once per block in a step.

    Args:
        channels: D.
        layers: Number of tapped blocks.
        width: Channels of the first layer of the heads. The second has half as many.
        context: Whether the patches are added to their differences.

    Reference: AdaptCLIP, prompt-query adapter; the official code.
    """

    def __init__(self, channels: int, layers: int, width: int, context: bool) -> None:
        super().__init__()
        self.context = context
        half = width // 2
        self.norms = nn.ModuleList(SharedBatchNorm(channels) for _ in range(layers))
        self.local = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            SharedBatchNorm(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.Conv2d(width, half, 3, padding=1, bias=False),
            SharedBatchNorm(half),
            nn.ReLU(),
            nn.ConvTranspose2d(half, half, 2, stride=2),
            nn.Conv2d(half, 2, 1),
        )
        self.overall = nn.Sequential(
            nn.Linear(channels, width, bias=False),
            SharedBatchNorm(width),
            nn.ReLU(),
            nn.Linear(width, half, bias=False),
            SharedBatchNorm(half),
            nn.ReLU(),
            nn.Linear(half, 2, bias=False),
        )

    def forward(self, layer: int, patches: Tensor, nearest: Tensor, grid: tuple[int, int]) -> AdapterOutput:
        """Returns the image logits and the map of a layer, which has 4 x 4 places per patch.

        Args:
            layer: Position among the tapped layers, from 0.
            patches: `[B, N, D]`, L2-normalised.
            nearest: `[B, N, D]`, L2-normalised, the most similar normal patch of each patch.
            grid: Patch grid `(h, w)`.
        """
        difference = (patches - nearest).abs()
        compared = patches + difference if self.context else difference
        tokens = self.norms[layer](compared.mT)  # [B, D, N]
        places = anomaly_probability(self.local(tokens.unflatten(2, grid)).movedim(1, -1))
        mean = (tokens.mean(dim=2) + mean_of_highest(tokens, TOP_TOKENS)) / 2
        return AdapterOutput(self.overall(mean).float(), places)


class AdaptCLIP(PromptMethod):
    """AdaptCLIP: three adapters on frozen CLIP that are trained independently of each other.

    The visual adapter changes tokens, which are compared with fixed sentences. The textual adapter learns prompts,
    which are compared with frozen tokens. The prompt-query adapter compares each patch with the nearest patch of normal
    images. In training, that is one normal image of the category, drawn again in each epoch. The losses are summed. The
    first two adapters are the zero-shot method. With `k_shot`, all three are used, and the distances to the nearest
    patches as well. The same trained head works for any number of few-shot images.

    The running statistics of batch normalisation belong to the trained state, in checkpoints and head files.

    Differs: the statistics of the visual adapter include the class token of the original path, one token of 1,370. The
    official code has that of the V-V path. In a fit over several processes, statistics are those of all images. A step
    equals that of one process up to rounding, which training amplifies: after 30 steps on drawn products, weights
    differed by 6e-3, and by as much in one process whose initial weights were changed by 6e-8. A last batch of a single
    image raises an error in the official code. Here it is normalised by the running statistics where it has one value
    per channel. Training masks are binary at input size. The paper's text was not at hand: all rules are the official
    code's (354d9e3).

    Args:
        backbone: The frozen CLIP.
        optimizer: Function that builds the optimiser of the adapters.
        layers: Tapped blocks of the V-V path, counted from 1. Texts are compared with the last block.
        vv_from: First block of the V-V path.
        prompt_tokens: Number of learnable tokens per prompt. Only a period follows them.
        prompt_init_std: Standard deviation of the tokens' initial values.
        reduction: Reduction factor of the bottlenecks of the visual adapter.
        width: Channels of the heads of the prompt-query adapter, an even number.
        context: Whether the prompt-query adapter adds the patches to their differences.
        temperature: Divisor of the cosine similarities with texts.
        map_sigma: Standard deviation of the Gaussian filter of the final map, in pixels. 0 does not filter.
        prompt_seed: Seed of the selection of normal images in training.
        k_shot: Few-shot images per category in the memory bank. 0 is zero-shot.
        shot_seed: Seed of their random selection.

    Attributes:
        prompts: The prompt images of training, if batches do not have them as references: see `PromptImages.read`. A
            fit sets it.

    Raises:
        ValueError: An argument is out of its range.

    Reference: AdaptCLIP (arXiv 2505.09926); the official code.
    """

    title = "AdaptCLIP"
    paper = "gao2026adaptclip"
    official_code = "gaobb/AdaptCLIP"
    parity = "equal to the official code, including losses and running statistics"
    takes_few_shot: ClassVar[bool] = True
    trains_beside_normal: ClassVar[bool] = True
    memory: MemoryBank
    fixed_by_training = ("prompt_tokens", "context", "temperature")

    def __init__(
        self,
        backbone: ClipBackbone,
        optimizer: OptimizerFactory = adam,
        layers: Sequence[int] = (6, 12, 18, 24),
        vv_from: int = 6,
        prompt_tokens: int = 12,
        prompt_init_std: float = 0.02,
        reduction: int = 4,
        width: int = 128,
        context: bool = True,
        temperature: float = 0.07,
        map_sigma: float = 4.0,
        prompt_seed: int = 0,
        k_shot: int = 0,
        shot_seed: int = 0,
    ) -> None:
        require_layers(layers)
        require_not_negative(k_shot=k_shot, map_sigma=map_sigma, prompt_seed=prompt_seed)
        if temperature <= 0 or reduction < 1:
            raise ValueError(f"temperature must be positive and reduction at least 1, got {temperature}, {reduction}")
        if width < 2 or width % 2:
            raise ValueError(f"width must be an even number from 2, got {width}")
        super().__init__(backbone, backbone.spec(vv_layers=layers, vv_from=vv_from, image_embedding=True), optimizer)
        self.save_hyperparameters(ignore=["backbone", "optimizer"], logger=False)
        self.temperature = temperature
        self.map_sigma = map_sigma
        self.prompt_seed = prompt_seed
        self.k_shot = k_shot
        self.shot_seed = shot_seed
        self.learnt_texts = ObjectPrompts(
            backbone, ".", ".", prompt_tokens, prompt_tokens, compound=False, init_std=prompt_init_std
        )
        self.image_adapter = TokenAdapter(backbone.embed_dim, reduction)
        self.patch_adapter = TokenAdapter(backbone.embed_dim, reduction)
        self.comparison = PromptQueryAdapter(backbone.embed_dim, len(layers), width, context)
        self.memory = MemoryBank()
        self.prompts: Prompts | None = None
        self.fixed_texts: Tensor | None = None

    def embed_text(self) -> Tensor:
        """Returns the learned and the fixed pair of texts, `[2, 2, D]`, L2-normalised, the normal text first per pair.

        The fixed pair is embedded once per fit, and once per pass.
        """
        if self.fixed_texts is None:
            states = (WINCLIP_NORMAL, WINCLIP_ABNORMAL)
            normal, abnormal = (sentences(state, WINCLIP_TEMPLATES_21, "object") for state in states)
            self.fixed_texts = embed_states(self.backbone, normal, abnormal, "mean_then_norm")
        return torch.stack([prototypes(self.learnt_texts(self.backbone)), self.fixed_texts])

    def setup(self, stage: str) -> None:
        """Also lists the normal images that training images are compared with.

        Raises:
            DatasetError: A category has no normal image.
        """
        super().setup(stage)
        if stage == "fit" and self.data is not None:
            self.prompts = PromptImages.of(self.data.training_sets, self.preprocess, self.prompt_seed).read

    def on_train_start(self) -> None:
        """If the trainer was given a loader, takes the normal images of its dataset as prompt images."""
        dataset = getattr(self.trainer.train_dataloader, "dataset", None)
        if self.data is None and isinstance(dataset, AnomalyDataset):
            images = PromptImages(dataset.samples, [], self.preprocess, dataset.loading, self.prompt_seed)
            self.prompts = images.read

    def on_train_end(self) -> None:
        """Drops the fixed texts: the backbone may move to another device."""
        self.fixed_texts = None

    def on_evaluation_end(self) -> None:
        """Also drops the fixed texts."""
        super().on_evaluation_end()
        self.fixed_texts = None

    def projected(self, features: ClipFeatures) -> list[Tensor]:
        """Returns the tokens of each tapped layer in the joint space, `[B, 1 + N, D]`, not normalised, float32."""
        with torch.autocast(self.device.type, enabled=False):
            return [self.backbone.project(tokens.float()) for tokens in features.vv_tokens]

    def fit_memory(self, key: Key, image: Tensor) -> None:
        """Fits the memory bank of a `(dataset, category)` on normal images `[S, 3, H, W]`, in the joint space."""
        self.memory.fit(key, self.projected(self.backbone.encode_image(image.to(self.device), self.spec)))

    def beside_texts(self, features: ClipFeatures, tokens: Tensor, text: Tensor) -> tuple[AdapterOutput, AdapterOutput]:
        """Returns the outputs of the visual and the textual adapter.

        Args:
            features: Features of the backbone.
            tokens: Tokens of the last tapped layer, from `projected`.
            text: Result of `text_embeddings`.
        """
        assert features.class_token is not None  # requested by the spec
        learnt, fixed = text
        with torch.autocast(self.device.type, enabled=False):
            image = self.backbone.project(features.class_token.float(), final_norm=False)[:, None]
        visual = self._output(self.image_adapter(image), self.patch_adapter(tokens), fixed, features.grid)
        return visual, self._output(image, tokens, learnt, features.grid)

    def _output(self, image: Tensor, tokens: Tensor, text: Tensor, grid: tuple[int, int]) -> AdapterOutput:
        image_logits, logits = (
            similarity_logits(F.normalize(one, dim=-1), text, self.temperature) for one in (image, tokens[:, 1:])
        )
        return AdapterOutput(image_logits[:, 0], anomaly_probability(logits).unflatten(1, grid))

    def prompt_tokens(self, tokens: Sequence[Tensor], batch: Batch) -> list[Tensor]:
        """Returns the tokens of the normal image that each training image is compared with, `[B, 1 + N, D]` per layer.

        Args:
            tokens: Tokens of the training images, from `projected`.
            batch: The training images.

        Raises:
            TypeError: The batch has no references, and there are no prompt images.
        """
        if batch.reference is not None and batch.reference_rows is not None:
            every = list(tokens)
            if len(batch.reference):
                others = self.projected(self.backbone.encode_image(batch.reference, self.spec))
                every = [torch.cat(both) for both in zip(every, others, strict=True)]
            return [one[batch.reference_rows[:, 0]] for one in every]
        if self.prompts is None:
            raise TypeError(
                "AdaptCLIP trains with normal reference images: give the trainer a data module, or batches that have "
                "references."
            )
        batches, rows = self.prompts(batch.samples, self.current_epoch, self.store)
        parts = [self.projected(self.features_of(part.to(self.device))) for part in batches]
        return [torch.cat(layer)[rows] for layer in zip(*parts, strict=True)]

    def adapters(self, features: ClipFeatures, batch: Batch) -> Iterator[AdapterOutput]:
        """Yields the outputs for the labelled images in training: visual, textual, and the comparison per layer.

        Unlabelled images are left out of the batch statistics: some only fill up the last step of several processes.
        """
        rows, tokens = batch.labelled, self.projected(features)
        prompts = self.prompt_tokens(tokens, batch)
        labelled = features.map(lambda tensor: tensor[rows])
        yield from self.beside_texts(labelled, tokens[-1][rows], self.text_embeddings())
        for layer, pair in enumerate(zip(tokens, prompts, strict=True)):
            own, normal = (F.normalize(one[rows, 1:], dim=-1) for one in pair)
            with torch.autocast(own.device.type, enabled=False):
                index = (own @ normal.mT).argmax(dim=-1, keepdim=True).expand(-1, -1, own.shape[-1])
            yield self.comparison(layer, own, normal.gather(1, index), features.grid)

    def loss(self, features: ClipFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns cross entropy, focal and Dice losses, each summed over the adapters and layers, and `total`.

        Images whose mask is not known take part in the image term only.
        """
        rows = batch.labelled
        label = batch.label[rows]
        known = batch.known if isinstance(batch.known, slice) else batch.mask_known[rows]
        mask = batch.mask[rows][known]
        terms: dict[str, Tensor] = {}
        for said in self.adapters(features, batch):
            each = {"image_ce": image_cross_entropy(said.image, label)}
            each |= map_losses(upsample(said.places[known], self.spec.image_size), mask)
            terms = {name: terms.get(name, 0) + term for name, term in each.items()}
        return {"total": sum(terms.values(), torch.zeros((), device=mask.device)), **terms}

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the image score `[B]` and the map `[B, H, W]`. Zero-shot, both are probabilities.

        With `k_shot`, both are harmonic means. That of the map includes distances in [0, 2].

        Raises:
            DatasetError: With `k_shot`, a category has neither a memory bank nor few-shot images.
        """
        tokens = self.projected(features)
        said = self.beside_texts(features, tokens[-1], self.text_embeddings())
        image = [anomaly_probability(one.image) for one in said]
        if not self.k_shot:
            places = torch.stack([one.places for one in said]).mean(dim=0)
            anomaly_map = upsample_and_smooth(places, self.spec.image_size, self.map_sigma)
            return AnomalyPrediction(torch.stack([*image, anomaly_map.amax((1, 2))]).mean(dim=0), anomaly_map)
        compared, distances = self.compared(tokens, batch.keys, features.grid)
        image.append(torch.stack([anomaly_probability(one.image) for one in compared]).mean(dim=0))
        size = self.spec.image_size
        maps = [upsample(one.places, size) for one in said]
        maps.append(torch.stack([upsample(one.places, size) for one in compared]).mean(dim=0))
        aligned = harmonic_mean([upsample(one, size) for one in distances])
        pixels = harmonic_mean([torch.stack(maps).mean(dim=0), aligned])
        anomaly_map = upsample_and_smooth(pixels, size, self.map_sigma)
        score = harmonic_mean([torch.stack(image).mean(dim=0), anomaly_map.amax((1, 2))])
        return AnomalyPrediction(score, anomaly_map)

    def compared(
        self, tokens: Sequence[Tensor], keys: Sequence[Key], grid: tuple[int, int]
    ) -> tuple[list[AdapterOutput], list[Tensor]]:
        """Returns per layer the output of the comparison with the memory, and the distances in [0, 2], `[B, h, w]`.

        Raises:
            DatasetError: A category has neither a memory bank nor few-shot images.
        """
        self.memory.fit_missing(keys, self.preprocess, self.fit_memory)
        said, distances = [], []
        for layer, one in enumerate(tokens):
            own, nearest = F.normalize(one[:, 1:], dim=-1), self.memory.nearest(keys, layer, one)
            said.append(self.comparison(layer, own, nearest, grid))
            distances.append((1 - (own * nearest).sum(dim=-1)).clamp(min=0).unflatten(1, grid))
        return said, distances


def harmonic_mean(values: Sequence[Tensor]) -> Tensor:
    """Returns the harmonic mean of non-negative tensors. It is 0 where one of them is 0."""
    return len(values) / torch.stack(list(values)).reciprocal().sum(dim=0)
