"""WinCLIP and, with `k_shot`, WinCLIP+."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.windows import encode_windows, window_index
from afclip_lightning.components.arguments import require_one_of
from afclip_lightning.components.memory import Key, MemoryBank
from afclip_lightning.components.scoring import anomaly_probability, similarity_logits, upsample
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.prompts.ensemble import CategoryText, Names, embed_states, name_of
from afclip_lightning.prompts.own import is_file, read_prompts
from afclip_lightning.prompts.templates import (
    WINCLIP_ABNORMAL,
    WINCLIP_NORMAL,
    WINCLIP_TEMPLATES,
    WINCLIP_TEMPLATES_21,
    sentences,
)
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures, Sample

Templates = Literal["paper", "code"]
PatchMemory = Literal["penultimate", "last", "last_normalised"]
MapFusion = Literal["mean", "sum"]
TEMPLATES: dict[str, tuple[str, ...]] = {"paper": WINCLIP_TEMPLATES, "code": WINCLIP_TEMPLATES_21}
SMALLEST = 1e-30  # lower limit of scores in a harmonic mean, which is then 0 in float32


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def window_coverage(grid: tuple[int, int], size: int, device: torch.device) -> Tensor:
    """Returns the windows that cover each patch, `[N, W]`, float32, 1 or 0.

    Order and errors are those of `window_index`.
    """
    index = window_index(grid, size)
    return torch.zeros(len(index), grid[0] * grid[1]).scatter_(1, index, 1.0).T.contiguous().to(device)


def harmonic_aggregation(scores: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """Returns the harmonic mean, per patch, of the scores of the windows that cover it, `[B, h, w]`, float32.

    Args:
        scores: `[B, W]`, 0 or more up to rounding. A patch under a window with score 0 gets 0.
        grid: Patch grid `(h, w)`.
        size: Side of the windows in patches.

    Reference: WinCLIP, Sec. 4.2.
    """
    coverage = window_coverage(grid, size, scores.device)
    with torch.autocast(scores.device.type, enabled=False):
        inverse = scores.float().clamp(min=SMALLEST).reciprocal() @ coverage.T  # [B, N]
    return (coverage.sum(dim=1) / inverse).unflatten(1, grid)


class WinCLIP(AnomalyMethod):
    """WinCLIP: the image and small windows of it are compared with an ensemble of prompts. Nothing is trained.

    The image score is the probability of the abnormal state. Each window is encoded and scored by itself. A patch gets
    the harmonic mean over the windows that cover it, and then over the window sizes and the whole image. With `k_shot`
    it is WinCLIP+: patches and windows are also compared with those of a few normal images, and both are averaged.

    The authors' code was not found. Two independent codes, Accurate-WinCLIP and anomalib, agree in zero-shot numbers.
    Where their rule differs from the paper, it is an option.

    Differs: the paper may have tiled wide images such as VisA's (`fit: tiles` of the evaluation). Both codes squash an
    image into a square, and so do the configs. Accurate-WinCLIP draws normal images with replacement. Here they are
    distinct.

    Args:
        backbone: The frozen CLIP; the paper's is ViT-B-16-plus-240 at its own size.
        window_sizes: Sides of the windows in patches.
        templates: Sentence templates: `paper`, the paper's 22; `code`, the 21 of both codes, which lack one template,
            have another twice and end with a period; or a YAML file with states and templates, as for `CLIP`.
        names: Name of a category in prompts: `category`, its folder's name as it is (`metal_nut`), as in the codes, or
            `class_name`, its name in prompts from the dataset (`metal nut`).
        temperature: Divisor of the cosine similarities.
        k_shot: Few-shot images per category in the memory bank. 0 is zero-shot WinCLIP.
        shot_seed: Seed of their random selection.
        patch_memory: Patch tokens in the memory bank of WinCLIP+: `penultimate`, after the last block but one (the
            paper); `last`, after the last block (Accurate-WinCLIP); `last_normalised`, after the tower's final
            normalisation (anomalib).
        map_fusion: Fusion of the two maps of WinCLIP+: `mean`, in [0, 1] (anomalib), or `sum`, twice that
            (Accurate-WinCLIP). Metrics are the same.

    Raises:
        ValueError: An argument is out of its range.
        WeightsError: The blocks of the tower cannot process a subset of the tokens.

    Reference: WinCLIP, Sec. 4.1 to 4.3, Eq. (1) and (4).
    """

    title = "WinCLIP, WinCLIP+"
    paper = "jeong2023winclip"
    parity = "equal to two re-implementations, Accurate-WinCLIP and anomalib"
    takes_few_shot: ClassVar[bool] = True
    memory: MemoryBank
    needs_class_name: ClassVar[bool] = True
    needs_pixels: ClassVar[bool] = True  # windows are encoded from the image

    def __init__(
        self,
        backbone: ClipBackbone,
        window_sizes: Sequence[int] = (2, 3),
        templates: Templates | str = "paper",
        names: Names = "category",
        temperature: float = 0.07,
        k_shot: int = 0,
        shot_seed: int = 0,
        patch_memory: PatchMemory = "penultimate",
        map_fusion: MapFusion = "mean",
    ) -> None:
        if not is_file(templates):
            require_one_of(Templates, templates=templates)
        require_one_of(Names, names=names)
        require_one_of(PatchMemory, patch_memory=patch_memory)
        require_one_of(MapFusion, map_fusion=map_fusion)
        if k_shot < 0 or temperature <= 0:
            raise ValueError(f"k_shot must not be negative and temperature be positive, got {k_shot}, {temperature}")
        if not window_sizes or len(set(window_sizes)) < len(window_sizes):
            raise ValueError(f"window_sizes must name at least one size, each once, got {list(window_sizes)}")
        for size in window_sizes:
            window_index(backbone.grid, size)
        depth = backbone.vision.depth
        layers = (depth - 1 if patch_memory == "penultimate" else depth,) if k_shot else ()
        super().__init__(backbone, backbone.spec(layers, image_embedding=True), optimizer=None)
        self.save_hyperparameters(ignore=["backbone"], logger=False)
        self.window_sizes = tuple(window_sizes)
        own = read_prompts(templates) if is_file(templates) else None
        self.states = (own.normal, own.abnormal) if own else (WINCLIP_NORMAL, WINCLIP_ABNORMAL)
        self.templates = own.templates if own else TEMPLATES[templates]
        self.names: Names = names
        self.temperature = temperature
        self.k_shot = k_shot
        self.shot_seed = shot_seed
        self.patch_memory = patch_memory
        self.map_fusion = map_fusion
        self.text = CategoryText(self.embed_text)
        self.memory = MemoryBank()

    def embed_text(self, sample: Sample) -> Tensor:
        """Returns the normal and the abnormal text embedding of a sample's category, `[2, D]`, L2-normalised.

        Reference: WinCLIP, Sec. 4.1. The averaging rule is that of the two codes.
        """
        name = name_of(sample, self.names)
        normal, abnormal = (sentences(states, self.templates, name) for states in self.states)
        return embed_states(self.backbone, normal, abnormal, "mean_then_norm")

    def on_evaluation_end(self) -> None:
        """Also drops the texts of the pass."""
        super().on_evaluation_end()
        self.text.reset()

    def windows(self, features: ClipFeatures, image: Tensor) -> list[Tensor]:
        """Returns the embeddings of the whole image and of its windows, `[B, 1 + W, D]` per window size."""
        assert features.image_embedding is not None
        whole = features.image_embedding[:, None]
        encoded = encode_windows(self.backbone.vision, image, self.window_sizes)
        return [torch.cat([whole, windows], dim=1) for windows in encoded]

    def patch_tokens(self, features: ClipFeatures) -> Tensor:
        """Returns the tokens `[B, 1 + N, C]` whose patches WinCLIP+ compares."""
        (tokens,) = features.tokens
        return self.backbone.vision.normalise(tokens) if self.patch_memory == "last_normalised" else tokens

    def harmonic_maps(self, scores: Sequence[Tensor], grid: tuple[int, int]) -> Iterator[Tensor]:
        """Yields a map `[B, h, w]` per window size, from the scores of the windows `[B, W]`."""
        for window_scores, size in zip(scores, self.window_sizes, strict=True):
            yield harmonic_aggregation(window_scores, grid, size)

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the image score, and the harmonic mean of the maps of all scales. WinCLIP+ adds those of the memory.

        Reference: WinCLIP, Eq. (1), Sec. 4.2 and 4.3.
        """
        text = self.text(batch.samples)
        windows = self.windows(features, batch.image)
        probabilities = [
            anomaly_probability(similarity_logits(F.normalize(w, dim=-1), text, self.temperature)) for w in windows
        ]
        score = probabilities[0][:, 0]
        scales = [score[:, None, None].expand(-1, *features.grid)]
        scales += self.harmonic_maps([probability[:, 1:] for probability in probabilities], features.grid)
        patches = len(scales) / torch.stack(scales).clamp(min=SMALLEST).reciprocal().sum(dim=0)  # [B, h, w]
        if self.k_shot:
            association = self.association(self.patch_tokens(features), windows, batch.keys, features.grid)
            score = (score + association.amax(dim=(1, 2))) / 2
            patches = patches + association
            if self.map_fusion == "mean":
                patches = patches / 2
        return AnomalyPrediction(score, upsample(patches, self.spec.image_size))

    def association(
        self, patch_tokens: Tensor, windows: Sequence[Tensor], keys: Sequence[Key], grid: tuple[int, int]
    ) -> Tensor:
        """Returns the mean distance to the memory of each patch and of the windows that cover it, `[B, h, w]`.

        Args:
            patch_tokens: See `patch_tokens`.
            windows: See `windows`.
            keys: Category of each of the B images.
            grid: Patch grid `(h, w)`.

        Raises:
            DatasetError: A category has neither a memory bank nor few-shot images.

        Reference: WinCLIP, Eq. (4).
        """
        self.memory.fit_missing(keys, self.preprocess, self.fit_memory)
        of_patches, *of_windows = (
            self.memory.distance(keys, index, tokens) for index, tokens in enumerate([patch_tokens, *windows])
        )
        return torch.stack([of_patches.unflatten(1, grid), *self.harmonic_maps(of_windows, grid)]).mean(dim=0)

    def fit_memory(self, key: Key, image: Tensor) -> None:
        """Fits the memory bank of a `(dataset, category)` on patches and windows of normal images `[S, 3, H, W]`."""
        image = image.to(self.device)
        features = self.backbone.encode_image(image, self.spec)
        self.memory.fit(key, [self.patch_tokens(features), *self.windows(features, image)])
