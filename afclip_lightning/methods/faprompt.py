"""FAPrompt: compound abnormality prompts (CAP) and a prior from each image's most anomalous patches (DAP)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.arguments import require_not_negative, require_positive, require_weights
from afclip_lightning.components.losses import (
    binary_focal_loss,
    image_cross_entropy,
    map_losses,
    orthogonality_loss,
    prior_loss,
)
from afclip_lightning.components.scoring import (
    anomaly_probability,
    prototypes,
    similarity_logits,
    upsample,
    upsample_and_smooth,
)
from afclip_lightning.methods.base import OptimizerFactory, PromptMethod, adam
from afclip_lightning.prompts.learner import DeepTokens, ObjectPrompts
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures

PriorPatches = Literal["topk", "first_k", "image_token"]
Aggregation = Literal["mean", "best_match", "weighted"]


@dataclass
class PromptScores:
    """Scores of a batch by the prompts.

    Attributes:
        image_logits: `[B, 2]`, logits of the class token with the prior-enabled prompts.
        free_map: `[B, h, w]`, probability of each patch with the prior-free prompts.
        prior_map: `[B, h, w]`, the same with the prior-enabled prompts. `None` without DAP.
        score: `[B]`, image-level anomaly score.
        prior: `[B, width]`, the prior that is added to the abnormal tokens. `None` without DAP.
    """

    image_logits: Tensor
    free_map: Tensor
    prior_map: Tensor | None
    score: Tensor
    prior: Tensor | None

    @property
    def map(self) -> Tensor:
        """Returns the mean of the two maps, `[B, h, w]`. Reference: FAPrompt, Eq. (11)."""
        return self.free_map if self.prior_map is None else (self.free_map + self.prior_map) / 2


class FAPrompt(PromptMethod):
    """FAPrompt: one normal prompt and K orthogonal abnormal prompts that start with it, adapted to each image.

    The mean of the abnormal prompts is compared with the patches of the V-V path. The M most anomalous patches give a
    prior, which is added to the abnormal tokens. The adapted prompts give a second map and the probability of the
    image.

    The paper and the released code differ. The defaults are the paper's. `configs/official/faprompt.yaml` has the
    code's choices: `prior_patches: first_k`, the word "damaged", the weight of the prior-free maximum, the cross
    entropy of the class token, `score_as_logit`, and 16-bit deep tokens. Where the paper is silent (weights of the
    losses, `map_sigma`, sizes), the code's values are used.

    Differs: the official code resizes training masks bilinearly; here every mask is binary at input size. Its unused
    layers are left out.

    Args:
        backbone: The frozen CLIP.
        optimizer: Function that builds the optimiser of the prompts and the prior network.
        layer: Tapped block of the V-V path, counted from 1.
        vv_from: First block of the V-V path.
        normal_words: Words after the tokens of the normal prompt.
        abnormal_words: Words after the tokens of the abnormal prompts.
        n_normal_tokens: Number of tokens of the normal prompt. The abnormal prompts start with the same tokens.
        n_abnormal_tokens: Number of further tokens per abnormal prompt.
        n_abnormal_prompts: K, number of abnormal prompts.
        cap_orthogonal: Whether a loss keeps the abnormal prompts orthogonal.
        dap: Whether a prior is used. Without, there are one map and one set of prompts.
        prior_patches: Input of the prior: `topk`, the patches of the highest prior-free probability; `first_k`, the
            first patches of the image, as in the released code; `image_token`, the class token.
        n_prior_patches: M, number of patches of the prior.
        prior_loss: Whether a loss drives the prior of normal images to 0.
        aggregation: Aggregation of the abnormal prompts: `mean`; `best_match`, the most similar prompt per token;
            `weighted`, a mean with weights from a network like the prior network, applied to the patches of the prior
            (the paper does not specify its own).
        prompt_depth: Number of text blocks with learnable input. 1 means no deep tokens.
        deep_tokens: Deep text tokens per block.
        prompt_init_std: Standard deviation of all learnable tokens' initial values.
        half_deep_tokens: Whether deep tokens are rounded to 16-bit floats.
        temperature: Divisor of the cosine similarities.
        prior_map_loss_weight: Weight of the losses of the prior-enabled map; those of the prior-free one have 1.
        orthogonal_loss_weight: Weight of the orthogonality loss.
        image_ce_weight: Weight of a cross entropy of the class token's logits, in addition to the focal loss of the
            score.
        score_as_logit: Whether the focal loss takes the image score, which is a probability, for a logit.
        free_maximum_weight: Weight of the maximum of the prior-free map in the image score, from 0 to 1. The maximum of
            the prior-enabled map has `1 - free_maximum_weight`.
        map_sigma: Standard deviation of the Gaussian filter of the final map, in pixels.

    Raises:
        ValueError: An argument is out of its range, or the image has fewer patches than the prior needs.

    Reference: FAPrompt, Eq. (1) to (11).
    """

    title = "FAPrompt"
    paper = "zhu2025faprompt"
    official_code = "mala-lab/FAPrompt"
    parity = "equal to the official code"
    fixed_by_training = (
        "normal_words",
        "abnormal_words",
        "n_normal_tokens",
        "n_abnormal_prompts",
        "dap",
        "prior_patches",
        "n_prior_patches",
        "aggregation",
        "half_deep_tokens",
        "temperature",
    )

    def __init__(
        self,
        backbone: ClipBackbone,
        optimizer: OptimizerFactory = adam,
        layer: int = 24,
        vv_from: int = 6,
        normal_words: str = "object.",
        abnormal_words: str = "object.",
        n_normal_tokens: int = 5,
        n_abnormal_tokens: int = 2,
        n_abnormal_prompts: int = 10,
        cap_orthogonal: bool = True,
        dap: bool = True,
        prior_patches: PriorPatches = "topk",
        n_prior_patches: int = 10,
        prior_loss: bool = True,
        aggregation: Aggregation = "mean",
        prompt_depth: int = 9,
        deep_tokens: int = 4,
        prompt_init_std: float = 0.02,
        half_deep_tokens: bool = False,
        temperature: float = 0.07,
        prior_map_loss_weight: float = 0.5,
        orthogonal_loss_weight: float = 0.1,
        image_ce_weight: float = 0.0,
        score_as_logit: bool = False,
        free_maximum_weight: float = 0.5,
        map_sigma: float = 10.0,
    ) -> None:
        require_not_negative(map_sigma=map_sigma)
        super().__init__(backbone, backbone.spec(vv_layers=[layer], vv_from=vv_from, image_embedding=True), optimizer)
        require_positive(temperature=temperature)
        require_weights(free_maximum_weight=free_maximum_weight)
        patches = backbone.grid[0] * backbone.grid[1]
        if prior_patches != "image_token" and not 1 <= n_prior_patches <= patches:
            raise ValueError(
                f"n_prior_patches must be within 1 to {patches}, the patches of an image of {backbone.image_size} "
                f"pixels, got {n_prior_patches}"
            )
        self.save_hyperparameters(ignore=["backbone", "optimizer"], logger=False)
        self.cap_orthogonal = cap_orthogonal and n_abnormal_prompts > 1
        self.prior_patches = prior_patches
        self.n_prior_patches = 1 if prior_patches == "image_token" else n_prior_patches
        self.prior_loss = prior_loss
        self.aggregation = aggregation
        self.temperature = temperature
        self.prior_map_loss_weight = prior_map_loss_weight
        self.orthogonal_loss_weight = orthogonal_loss_weight
        self.image_ce_weight = image_ce_weight
        self.score_as_logit = score_as_logit
        self.free_maximum_weight = free_maximum_weight
        self.map_sigma = map_sigma
        self.half_deep_tokens = half_deep_tokens
        self.prompts = ObjectPrompts(
            backbone,
            normal_words,
            abnormal_words,
            n_normal_tokens,
            n_abnormal_tokens,
            n_abnormal_prompts,
            deep=DeepTokens.of_depth(backbone, prompt_depth, deep_tokens, prompt_init_std, half_deep_tokens),
            init_std=prompt_init_std,
        )
        inputs = self.n_prior_patches * backbone.embed_dim
        self.prior_network = _network(inputs, backbone.text.width) if dap else None
        self.weight_network = _network(inputs, n_abnormal_prompts) if aggregation == "weighted" else None

    def embed_text(self) -> Tensor:
        """Returns the prior-free text embeddings `[1 + K, D]`, the normal one first, not normalised."""
        return self.prompts(self.backbone)

    def tokens(self, features: ClipFeatures) -> Tensor:
        """Returns the class token of the original path and the patches of the V-V path, `[B, 1 + N, D]`, L2-normalised.

        The class token passes no final normalisation, as in the official code.
        """
        assert features.class_token is not None  # requested by the spec
        image = self.backbone.embed_tokens(features.class_token, final_norm=False)
        patches = self.backbone.embed_tokens(features.vv_tokens[0][:, 1:])
        return torch.cat([image[:, None], patches], dim=1)

    def evaluate(self, features: ClipFeatures, text: Tensor) -> PromptScores:
        """Returns the scores of a batch.

        Args:
            features: Features of the backbone.
            text: Prior-free embeddings, the result of `text_embeddings`.

        Reference: FAPrompt, Eq. (3), (4), (6), (8) and (9), with `free_maximum_weight` in the score.
        """
        tokens = self.tokens(features)
        patches = tokens[:, 1:]
        prior = weights = prior_enabled = None
        if self.prior_network is not None or self.weight_network is not None:
            selected = self.select(tokens, text).flatten(1)  # [B, M * D]
            prior = self.prior_network(selected) if self.prior_network else None
            weights = self.weight_network(selected).softmax(-1) if self.weight_network else None
        text = text.expand(tokens.shape[0], -1, -1)
        free = anomaly_probability(self.logits(patches, text, weights))
        if prior is not None:
            normal = text[:, :1]
            if self.half_deep_tokens and torch.is_grad_enabled():
                # as in the official code, which rounds the gradient of the deep tokens per image
                normal = self.prompts.normal(self.backbone, tokens.shape[0])
            text = torch.cat([normal, self.prompts.adapted(self.backbone, prior)], dim=1)
            prior_enabled = anomaly_probability(self.logits(patches, text, weights))
        image_logits = self.logits(tokens[:, :1], text, weights)[:, 0]
        maximum = free.amax(1)
        if prior_enabled is not None:
            maximum = self.free_maximum_weight * maximum + (1 - self.free_maximum_weight) * prior_enabled.amax(1)
        return PromptScores(
            image_logits=image_logits,
            free_map=free.unflatten(1, features.grid),
            prior_map=None if prior_enabled is None else prior_enabled.unflatten(1, features.grid),
            score=(anomaly_probability(image_logits) + maximum) / 2,
            prior=prior,
        )

    def select(self, tokens: Tensor, text: Tensor) -> Tensor:
        """Returns the tokens `[B, M, D]` that are the input of the prior.

        Args:
            tokens: Result of `tokens`.
            text: Prior-free embeddings `[1 + K, D]`.
        """
        if self.prior_patches == "image_token":
            return tokens[:, :1]
        patches = tokens[:, 1:]
        if self.prior_patches == "first_k":
            return patches[:, : self.n_prior_patches]
        with torch.no_grad():
            logits = similarity_logits(patches, prototypes(text), self.temperature)
            # the difference ranks like the probability, but does not saturate into ties
            chosen = (logits[..., 1] - logits[..., 0]).topk(self.n_prior_patches, dim=1).indices
        return patches.gather(1, chosen[..., None].expand(-1, -1, patches.shape[-1]))

    def logits(self, tokens: Tensor, text: Tensor, weights: Tensor | None) -> Tensor:
        """Returns the logits of the two states, `[B, T, 2]`.

        Args:
            tokens: `[B, T, D]`, L2-normalised.
            text: `[B, 1 + K, D]`, the normal one first, not normalised.
            weights: `[B, K]`, weights of the abnormal prompts, with `aggregation: weighted`.
        """
        if self.aggregation == "best_match":
            every = similarity_logits(tokens, F.normalize(text.float(), dim=-1), self.temperature)
            return torch.cat([every[..., :1], every[..., 1:].amax(-1, keepdim=True)], dim=-1)
        if weights is not None:
            text = torch.cat([text[:, :1], (weights[:, None] @ text[:, 1:]).to(text)], dim=1)
        return similarity_logits(tokens, prototypes(text.float()), self.temperature)

    def loss(self, features: ClipFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss terms and their weighted sum `total`. Images without a known mask have no map loss.

        Reference: FAPrompt, Eq. (2), (5), (7) and (10); the weights are the official code's.
        """
        text = self.text_embeddings()
        scores = self.evaluate(features, text)
        score = torch.sigmoid(scores.score) if self.score_as_logit else scores.score
        known, labelled = batch.known, batch.labelled
        label = batch.label[labelled]
        terms = {"image_focal": binary_focal_loss(score[labelled], label, gamma=2.0)}
        total = terms["image_focal"]
        if self.image_ce_weight:
            terms["image_ce"] = image_cross_entropy(scores.image_logits[labelled], label)
            total = total + self.image_ce_weight * terms["image_ce"]
        for kind, patch_map, weight in (
            ("free", scores.free_map, 1.0),
            ("prior", scores.prior_map, self.prior_map_loss_weight),
        ):
            if patch_map is not None:
                pixels = upsample(patch_map[known], self.spec.image_size)
                for name, term in map_losses(pixels, batch.mask[known]).items():
                    terms[f"{kind}_{name}"] = term
                    total = total + weight * term
        if self.cap_orthogonal:
            terms["orthogonal"] = orthogonality_loss(text[1:])
            total = total + self.orthogonal_loss_weight * terms["orthogonal"]
        if self.prior_loss and scores.prior is not None:
            terms["prior"] = prior_loss(scores.prior, batch.label)
            total = total + terms["prior"]
        return {"total": total, **terms}

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns scores and maps.

        Reference: FAPrompt, Eq. (9) and (11).
        """
        scores = self.evaluate(features, self.text_embeddings())
        anomaly_map = upsample_and_smooth(scores.map, self.spec.image_size, self.map_sigma)
        return AnomalyPrediction(scores.score, anomaly_map)


def _network(inputs: int, outputs: int) -> nn.Sequential:
    """Returns the prior network: two layers, whose hidden width is 1/16 of the input width."""
    hidden = max(inputs // 16, 1)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
