"""AnomalyCLIP, the baseline that FAPrompt is built on."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.arguments import require_layers, require_not_negative, require_positive
from afclip_lightning.components.dual_path import image_logits, patch_probabilities, summed_map_losses
from afclip_lightning.components.losses import image_cross_entropy, orthogonality_loss
from afclip_lightning.components.scoring import anomaly_probability, prototypes, upsample_and_smooth
from afclip_lightning.methods.base import OptimizerFactory, PromptMethod, adam
from afclip_lightning.prompts.learner import DeepTokens, ObjectPrompts
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures


class AnomalyCLIP(PromptMethod):
    """AnomalyCLIP: learnable prompts that name no product, with deep text tokens, and patches of the V-V path.

    The class token of the original path gives the image score, and the patches of the V-V path give the map.

    Differs: deep tokens are not rounded to 16-bit floats unless `half_deep_tokens` asks for it. The official code
    resizes training masks bilinearly; here every mask is binary at input size.

    Args:
        backbone: The frozen CLIP.
        optimizer: Function that builds the optimiser of the prompts.
        layers: Tapped blocks of the V-V path, counted from 1. The official scripts tap the last block only. The maps of
            several blocks are summed.
        vv_from: First block of the V-V path.
        normal_words: Words after the learnable tokens of the normal prompt.
        abnormal_words: Words after the learnable tokens of the abnormal prompts.
        prompt_tokens: Number of learnable tokens per prompt.
        n_abnormal_prompts: Number of abnormal prompts, whose embeddings are averaged. Above 1 it is the AnomalyCLIP
            Ensemble* of FAPrompt's Table 5.
        orthogonal_weight: Weight of the loss that keeps several abnormal prompts orthogonal.
        ensemble: Number of sets of prompts. Each is initialised and trained by itself, and their scores and maps are
            averaged: the AnomalyCLIP Ensemble of FAPrompt's Table 5.
        prompt_depth: Number of text blocks with learnable input. 1 means no deep tokens.
        deep_tokens: Deep text tokens per block.
        prompt_init_std: Standard deviation of all learnable tokens' initial values.
        half_deep_tokens: Whether deep tokens are rounded to 16-bit floats, as in the official code.
        temperature: Divisor of the cosine similarities.
        map_loss_weight: Weight of the map's losses relative to the cross entropy of the image.
        map_sigma: Standard deviation of the Gaussian filter of the final map, in pixels.

    Raises:
        ValueError: An argument is out of its range.

    Reference: AnomalyCLIP (Zhou et al., 2024); the official code for what the paper leaves open.
    """

    title = "AnomalyCLIP"
    paper = "zhou2024anomalyclip"
    official_code = "zqhang/AnomalyCLIP"
    parity = "equal to the official code"
    fixed_by_training = (
        "normal_words",
        "abnormal_words",
        "prompt_tokens",
        "n_abnormal_prompts",
        "ensemble",
        "half_deep_tokens",
        "temperature",
    )

    def __init__(
        self,
        backbone: ClipBackbone,
        optimizer: OptimizerFactory = adam,
        layers: Sequence[int] = (24,),
        vv_from: int = 6,
        normal_words: str = "object.",
        abnormal_words: str = "damaged object.",
        prompt_tokens: int = 12,
        n_abnormal_prompts: int = 1,
        orthogonal_weight: float = 0.1,
        ensemble: int = 1,
        prompt_depth: int = 9,
        deep_tokens: int = 4,
        prompt_init_std: float = 0.02,
        half_deep_tokens: bool = False,
        temperature: float = 0.07,
        map_loss_weight: float = 4.0,
        map_sigma: float = 4.0,
    ) -> None:
        require_layers(layers)
        require_not_negative(map_sigma=map_sigma)
        super().__init__(backbone, backbone.spec(vv_layers=layers, vv_from=vv_from, image_embedding=True), optimizer)
        require_positive(ensemble=ensemble, temperature=temperature)
        self.save_hyperparameters(ignore=["backbone", "optimizer"], logger=False)
        self.orthogonal_weight = orthogonal_weight
        self.temperature = temperature
        self.map_loss_weight = map_loss_weight
        self.map_sigma = map_sigma
        self.members = nn.ModuleList(
            ObjectPrompts(
                backbone,
                normal_words,
                abnormal_words,
                prompt_tokens,
                prompt_tokens,
                n_abnormal_prompts,
                compound=False,
                deep=DeepTokens.of_depth(backbone, prompt_depth, deep_tokens, prompt_init_std, half_deep_tokens),
                init_std=prompt_init_std,
            )
            for _ in range(ensemble)
        )

    def embed_text(self) -> Tensor:
        """Returns the text embeddings of the E members, `[E, 1 + K, D]`, the normal one first, not normalised."""
        return torch.stack([prompts(self.backbone) for prompts in self.members])

    def probabilities(self, features: ClipFeatures, text: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the image logits `[E, B, 2]` and the patches' probabilities `[L, E, B, h, w]`.

        Args:
            features: Features of the backbone.
            text: Result of `text_embeddings`.
        """
        pairs = prototypes(text)[:, None]  # [E, 1, 2, D]
        return (
            image_logits(self.backbone, features, pairs, self.temperature),
            patch_probabilities(self.backbone, features, pairs, self.temperature),
        )

    def loss(self, features: ClipFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss terms and their weighted sum `total`. Images without a known mask have no map loss."""
        text = self.text_embeddings()
        logits, maps = self.probabilities(features, text)
        members = len(logits)
        known, labelled = batch.known, batch.labelled
        label = batch.label[labelled].repeat(members)
        logits = logits[:, labelled].flatten(0, 1)
        terms = {"image_ce": image_cross_entropy(logits, label)}
        of_known, mask = maps[:, :, known].flatten(1, 2), batch.mask[known].repeat(members, 1, 1)
        terms |= summed_map_losses(of_known, mask, self.spec.image_size)
        of_map = terms["focal"] + terms["dice_abnormal"] + terms["dice_normal"]
        total = terms["image_ce"] + self.map_loss_weight * of_map
        if text.shape[1] > 2:
            terms["orthogonal"] = torch.stack([orthogonality_loss(member[1:]) for member in text]).mean()
            total = total + self.orthogonal_weight * terms["orthogonal"]
        # the terms are means over the members, but each member trains as if it were alone
        return {"total": members * total, **terms}

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the probability of the class token and the summed maps of the blocks, averaged over the ensemble."""
        logits, maps = self.probabilities(features, self.text_embeddings())
        anomaly_map = upsample_and_smooth(maps.sum(0).mean(0), self.spec.image_size, self.map_sigma)
        return AnomalyPrediction(anomaly_probability(logits).mean(0), anomaly_map)
