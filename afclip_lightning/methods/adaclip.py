"""AdaCLIP: static and dynamic prompts between the blocks of both towers, and a hybrid semantic fusion for the image."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.arguments import (
    require_layers,
    require_not_negative,
    require_one_of,
    require_positive,
    require_weights,
)
from afclip_lightning.components.clustering import cluster_means, k_means, memberships
from afclip_lightning.components.losses import dice_loss, two_class_focal_loss
from afclip_lightning.components.scoring import (
    anomaly_probability,
    similarity_logits,
    upsample,
    upsample_and_smooth,
)
from afclip_lightning.methods.base import AnomalyMethod, OptimizerFactory
from afclip_lightning.prompts.ensemble import CategoryText, Names, average_states, embed_states, name_of
from afclip_lightning.prompts.hybrid import HybridTokens, PromptedBlocks
from afclip_lightning.prompts.learner import SentenceIds
from afclip_lightning.prompts.templates import ADACLIP_ABNORMAL, ADACLIP_NORMAL, ADACLIP_TEMPLATES, sentences
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures, Sample

Fusion = Literal["highest_cluster", "top_patches", "none"]
PATCHES_A_CLUSTER = 5  # for `top_patches`


def adamw(parameters: Iterable[Tensor]) -> AdamW:
    """Returns the optimiser of AdaCLIP's official code. Run folders record it by name."""
    return AdamW(parameters, lr=0.01, betas=(0.5, 0.999))


@dataclass
class Tokens:
    """Outputs of the prompted towers for a batch, in the joint space, L2-normalised.

    Attributes:
        patches: `[B, N, D]` per tapped block.
        image: `[B, D]`, the class token.
        text: `[B, 2, D]`, normal and abnormal.
    """

    patches: list[Tensor]
    image: Tensor
    text: Tensor


class AdaCLIP(AnomalyMethod):
    """AdaCLIP: hybrid prompts in the first blocks of both towers, linear layers from patches and class token to text.

    A first pass of the frozen tower gives the image embedding for the dynamic prompts. A second pass, with the prompts,
    gives the patches and the class token. The text depends on the image as well: all sentences are encoded per image.
    The map is the softmax of the mean logits over the blocks. The image score is that of the class token, fused with
    the centre of anomalous patches.

    Paper and code differ in that fusion, as a comment in the code says. The paper clusters all patches and takes the
    cluster with the highest mean probability (the default). The code clusters the most anomalous patches and takes the
    mean of all centres. `configs/official/adaclip.yaml` has the code's choices: `top_patches`, `half_prompts` and
    `dice_of_rows`.

    Differs: the code uses scikit-learn's k-means, which starts at random. Here k-means is deterministic
    (`components.clustering`), so that scores repeat and a graph can hold it. Recorded numbers of the fusion are
    therefore compared with the recorded clusters. The paper's fusion has no recorded number. It follows a comment of
    the code's authors, with the code's weight, 0.2. The code keeps the epoch of the best F1 on the test set of another
    dataset. Here it is the last epoch. The code trains on a medical set as well; most configs here name industrial sets
    only. Its unused first text prompts are left out. It resizes masks bilinearly. Here every mask is binary at input
    size.

    Args:
        backbone: The frozen CLIP.
        optimizer: Function that builds the optimiser of prompts and linear layers.
        layers: Tapped blocks, counted from 1.
        prompt_depth: J, number of blocks with prompts. The first text block has its words instead, so text has J - 1.
        prompt_tokens: M, prompts per block.
        static_prompts: Whether there are prompts that all images share.
        dynamic_prompts: Whether there are prompts that are computed from each image.
        visual_prompts: Whether the vision tower has prompts.
        text_prompts: Whether the text tower has prompts. Without, text is encoded once per category.
        prompt_init_std: Standard deviation of the static prompts' initial values.
        half_prompts: Whether prompts are rounded to 16-bit floats, as the official code does in any precision.
        fusion: Patches that are fused with the class token: `highest_cluster` (the paper), `top_patches` (the code),
            `none`.
        clusters: K, number of clusters.
        fusion_weight: Weight of the fused patches, from 0 to 1. The class token has `1 - fusion_weight`.
        names: Name of a category in prompts: `category`, as the dataset does (`metal_nut`; the official code), or
            `class_name` (`metal nut`). Dashes become spaces.
        temperature: Divisor of the cosine similarities.
        dice_of_rows: Whether the Dice loss is that of each row of pixels rather than each image. The official code does
            so at its batch size of 1.
        map_sigma: Standard deviation of the Gaussian filter of the final map, in pixels.

    Raises:
        ValueError: An argument is out of its range.

    Reference: AdaCLIP (Cao et al., 2024, arXiv 2407.15795), with the numbers of its public code (caoyunkang/AdaCLIP,
    e27ee32).
    """

    title = "AdaCLIP"
    paper = "cao2024adaclip"
    official_code = "caoyunkang/AdaCLIP"
    parity = "equal to the official code, except for the clusters of its fusion, which start at random there"
    needs_class_name: ClassVar[bool] = True
    needs_pixels: ClassVar[bool] = True  # for the second pass
    changes_blocks: ClassVar[bool] = True
    fixed_by_training = (
        "layers",
        "prompt_depth",
        "prompt_tokens",
        "half_prompts",
        "fusion",
        "clusters",
        "fusion_weight",
        "names",
        "temperature",
    )

    def __init__(
        self,
        backbone: ClipBackbone,
        optimizer: OptimizerFactory = adamw,
        layers: Sequence[int] = (6, 12, 18, 24),
        prompt_depth: int = 4,
        prompt_tokens: int = 5,
        static_prompts: bool = True,
        dynamic_prompts: bool = True,
        visual_prompts: bool = True,
        text_prompts: bool = True,
        prompt_init_std: float = 0.02,
        half_prompts: bool = False,
        fusion: Fusion = "highest_cluster",
        clusters: int = 20,
        fusion_weight: float = 0.2,
        names: Names = "category",
        temperature: float = 0.01,
        dice_of_rows: bool = False,
        map_sigma: float = 4.0,
    ) -> None:
        require_layers(layers)
        require_not_negative(map_sigma=map_sigma)
        super().__init__(backbone, backbone.spec(image_embedding=True), optimizer)
        require_one_of(Names, names=names)
        require_one_of(Fusion, fusion=fusion)
        require_positive(temperature=temperature)
        require_weights(fusion_weight=fusion_weight)
        deepest = min(backbone.vision.depth, backbone.text.depth)
        if not 1 <= prompt_depth <= deepest:
            raise ValueError(
                f"prompt_depth must be within 1 to {deepest}, the blocks of both towers, got {prompt_depth}"
            )
        patches = backbone.grid[0] * backbone.grid[1]
        if fusion != "none" and not 1 <= clusters <= patches:
            raise ValueError(f"clusters must be within 1 to {patches}, the patches of an image, got {clusters}")
        self.save_hyperparameters(ignore=["backbone", "optimizer"], logger=False)
        self.prompted_spec = backbone.spec(layers, image_embedding=True)
        self.fusion: Fusion = fusion
        self.clusters = clusters
        self.fusion_weight = fusion_weight
        self.names: Names = names
        self.temperature = temperature
        self.dice_of_rows = dice_of_rows
        self.map_sigma = map_sigma

        def tokens(blocks: int, width: int) -> HybridTokens:
            return HybridTokens(
                blocks,
                prompt_tokens,
                width,
                backbone.embed_dim,
                static_prompts,
                dynamic_prompts,
                prompt_init_std,
                half_prompts,
            )

        self.visual_tokens = tokens(prompt_depth, backbone.vision.width) if visual_prompts else None
        prompted_text = text_prompts and prompt_depth > 1
        self.text_tokens = tokens(prompt_depth - 1, backbone.text.width) if prompted_text else None
        self.patch_layers = nn.ModuleList(nn.Linear(backbone.vision.width, backbone.embed_dim) for _ in layers)
        self.class_layer = nn.Linear(backbone.embed_dim, backbone.embed_dim)
        self.sentence_ids = SentenceIds(_both_states, overwritten=prompt_tokens)
        self.text = CategoryText(self._embed_fixed)

    def on_train_end(self) -> None:
        """Drops the texts."""
        self.text.reset()

    def on_evaluation_end(self) -> None:
        """Also drops the texts of the pass."""
        super().on_evaluation_end()
        self.text.reset()

    def _embed_fixed(self, sample: Sample) -> Tensor:
        return embed_states(self.backbone, *_sentences(name_of(sample, self.names)), "norm_mean_norm")

    def embed_text(self, samples: Sequence[Sample], condition: Tensor) -> Tensor:
        """Returns the text embeddings of each image, from its own prompts, `[B, 2, D]`, in one pass of the text tower.

        Args:
            samples: The B samples, or one that stands for all.
            condition: `[B, D]`, input of the dynamic prompts.

        Raises:
            ValueError: A sentence does not fit into the text tower's context.
        """
        if self.text_tokens is None:
            return self.text(samples)
        text = self.backbone.text
        ids, ends = self.sentence_ids(self.backbone, [name_of(sample, self.names) for sample in samples])
        count, images = ids.shape[1], condition.shape[0]
        words = text.token_embedding(ids).expand(images, -1, -1, -1).flatten(0, 1)  # [B * K, T, width]
        ends = ends.expand(images, -1).flatten()
        embedded = text(words, ends, self.text_tokens(condition, count)).float().unflatten(0, (-1, count))
        n_normal = len(ADACLIP_NORMAL) * len(ADACLIP_TEMPLATES)
        with torch.autocast(embedded.device.type, enabled=False):
            return average_states(embedded[:, :n_normal], embedded[:, n_normal:], "norm_mean_norm")

    def prompted(self, image: Tensor, condition: Tensor) -> ClipFeatures:
        """Returns the features of the tower with its prompts.

        Args:
            image: `[B, 3, H, W]`, normalised.
            condition: `[B, D]`, input of the dynamic prompts.
        """
        if self.visual_tokens is None:
            return self.backbone.encode_image(image, self.prompted_spec)
        blocks = PromptedBlocks(self.backbone, self.visual_tokens(condition))
        return self.backbone.encode_adapted(image, self.prompted_spec, blocks)

    def tokens(self, features: ClipFeatures, batch: Batch) -> Tokens:
        """Returns patches, class token and texts of a batch, after both passes.

        Args:
            features: Features of the frozen tower.
            batch: The images.
        """
        assert features.image_embedding is not None  # requested by the spec
        condition = features.image_embedding
        prompted = self.prompted(batch.image, condition)
        assert prompted.image_embedding is not None
        with torch.autocast(condition.device.type, enabled=False):  # a logit is 100 times a cosine
            patches = [
                F.normalize(layer(tokens[:, 1:].float()), dim=-1)
                for layer, tokens in zip(self.patch_layers, prompted.tokens, strict=True)
            ]
            image = F.normalize(self.class_layer(prompted.image_embedding.float()), dim=-1)
        return Tokens(patches, image, self.embed_text(batch.samples, condition))

    def patch_logits(self, tokens: Tokens) -> Tensor:
        """Returns the abnormal minus the normal logit of each patch, `[L, B, N]`.

        A softmax over two logits depends on their difference only, and upsampling is linear. So one plane is enough.
        """
        logits = [similarity_logits(patches, tokens.text, self.temperature) for patches in tokens.patches]
        return torch.stack(logits).diff(dim=-1)[..., 0]

    def image_logits(self, tokens: Tokens, patch_logits: Tensor) -> Tensor:
        """Returns the image logits `[B, 2]`, from the class token and the patches that are fused with it.

        Args:
            tokens: Result of `tokens`.
            patch_logits: Result of `patch_logits`.
        """
        image = tokens.image
        if self.fusion != "none":
            fused = self.fused(tokens.patches, patch_logits.mean(0).sigmoid())
            with torch.autocast(image.device.type, enabled=False):
                image = F.normalize(self.fusion_weight * fused + (1 - self.fusion_weight) * image, dim=-1)
        return similarity_logits(image[:, None], tokens.text, self.temperature)[:, 0]

    def fused(self, patches: Sequence[Tensor], probability: Tensor) -> Tensor:
        """Returns the hybrid semantic fusion of the patches, `[B, D]`, L2-normalised. It is differentiable.

        Args:
            patches: `[B, N, D]` per layer, L2-normalised.
            probability: `[B, N]`, probability of the abnormal state.

        Reference: AdaCLIP, hybrid semantic fusion; `top_patches` as in the official code.
        """
        if self.fusion == "top_patches":
            count = min(PATCHES_A_CLUSTER * self.clusters, probability.shape[1])
            chosen = probability.detach().topk(count, dim=1).indices[..., None]
            patches = [layer.gather(1, chosen.expand(-1, -1, layer.shape[-1])) for layer in patches]
            members = memberships(k_means(torch.cat(list(patches), dim=-1), self.clusters), self.clusters)
            return mean_of_centres(patches, members)
        mean = torch.stack(list(patches)).mean(0)  # [B, N, D]
        members = memberships(k_means(mean, self.clusters), self.clusters)
        of_clusters = cluster_means(probability.detach()[..., None], members)[..., 0]  # [B, K]; 0 where empty
        highest = members.gather(2, of_clusters.argmax(dim=1)[:, None, None].expand(-1, members.shape[1], 1))
        return F.normalize(cluster_means(mean, highest)[:, 0], dim=-1)

    def loss(self, features: ClipFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss terms and their sum `total`. Images without a known mask have no map loss.

        Each layer has a separate map here, the softmax of its upsampled logits.

        Reference: AdaCLIP; all weights are 1, as in the official code.
        """
        tokens = self.tokens(features, batch)
        patch_logits = self.patch_logits(tokens)
        known, labelled = batch.known, batch.labelled
        probability = anomaly_probability(self.image_logits(tokens, patch_logits))
        terms = {"image_focal": two_class_focal_loss(probability[labelled], batch.label[labelled])}
        mask = batch.mask[known]
        dice = _dice_of_rows if self.dice_of_rows else dice_loss
        for logits in patch_logits:
            patch_map = logits[known].unflatten(1, features.grid)
            pixels = upsample(patch_map, self.spec.image_size, align_corners=True).sigmoid()
            for name, term in (
                ("focal", two_class_focal_loss(pixels, mask)),
                ("dice_abnormal", dice(pixels, mask)),
                ("dice_normal", dice(1 - pixels, 1 - mask.float())),
            ):
                terms[name] = terms[name] + term if name in terms else term
        return {"total": torch.stack(list(terms.values())).sum(), **terms}

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the probability of the fused class token, and the map of the layers' mean logits, both in [0, 1]."""
        tokens = self.tokens(features, batch)
        patch_logits = self.patch_logits(tokens)
        score = anomaly_probability(self.image_logits(tokens, patch_logits))
        patch_map = patch_logits.mean(0).unflatten(1, features.grid)
        pixels = upsample(patch_map, self.spec.image_size, align_corners=True).sigmoid()
        return AnomalyPrediction(score, upsample_and_smooth(pixels, self.spec.image_size, self.map_sigma))


def mean_of_centres(patches: Sequence[Tensor], members: Tensor) -> Tensor:
    """Returns the mean of the centres of all clusters, `[B, D]`, L2-normalised.

    A centre is also a mean over the blocks.

    Args:
        patches: `[B, M, D]` per block.
        members: `[B, M, K]`, membership of the patches in the clusters.

    Reference: AdaCLIP's official code.
    """
    centres = cluster_means(torch.stack(list(patches)).mean(0), members)
    there = (members.sum(1) > 0).float()[..., None]  # a group may have lost all of its patches
    return F.normalize((centres * there).sum(1) / there.sum(1), dim=-1)


def _sentences(class_name: str) -> tuple[list[str], list[str]]:
    """Returns a category's normal and abnormal sentences."""
    name = class_name.replace("-", " ")
    normal, abnormal = (sentences(states, ADACLIP_TEMPLATES, name) for states in (ADACLIP_NORMAL, ADACLIP_ABNORMAL))
    return normal, abnormal


def _both_states(class_name: str) -> list[str]:
    return [text for state in _sentences(class_name) for text in state]


def _dice_of_rows(probability: Tensor, target: Tensor) -> Tensor:
    """Returns `dice_loss` of each row of pixels of `[B, H, W]`."""
    return dice_loss(probability.flatten(0, 1)[:, None], target.flatten(0, 1)[:, None])
