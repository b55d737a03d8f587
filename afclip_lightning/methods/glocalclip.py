"""GlocalCLIP: AnomalyCLIP with separate prompts for the image and for its patches."""

from collections.abc import Sequence

import torch
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.arguments import require_layers, require_not_negative, require_positive
from afclip_lightning.components.dual_path import image_logits, patch_probabilities, summed_map_losses
from afclip_lightning.components.losses import glocal_contrastive_loss, image_cross_entropy
from afclip_lightning.components.scoring import anomaly_probability, prototypes, upsample_and_smooth
from afclip_lightning.methods.base import OptimizerFactory, PromptMethod, adam
from afclip_lightning.prompts.learner import DeepTokens, ObjectPrompts, embed_together
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures


class GlocalCLIP(PromptMethod):
    """GlocalCLIP: a normal and an abnormal prompt for the image, and another pair for its patches.

    No prompt names a product. The abnormal prompt of a pair starts with the tokens of its normal prompt. Both pairs
    share the deep text tokens, and a loss pulls them together. The class token of the original path gives the image
    score, and the patches of the V-V path give the map.

    The paper was not at hand: the rules are the official code's, and the defaults are those that it trains on VisA
    with. The code names four tapped blocks but adds to one tensor in place, so that all four are the last block. Its
    map is four times the map here, in the same order, and its losses of the map count four times (`map_loss_weight`).
    Here several `layers` are different blocks, and their maps are summed.

    Differs: deep tokens are not rounded to 16-bit floats unless `half_deep_tokens` asks for it. The official code
    resizes training masks bilinearly; here every mask is binary at input size. Its layers that nothing uses are left
    out.

    Args:
        backbone: The frozen CLIP.
        optimizer: Function that builds the optimiser of the prompts.
        layers: Tapped blocks of the V-V path, counted from 1.
        vv_from: First block of the V-V path.
        normal_words: Words after the learnable tokens of the normal prompts.
        abnormal_words: Words after the learnable tokens of the abnormal prompts.
        n_normal_tokens: Number of tokens of a normal prompt. The abnormal prompt starts with the same tokens.
        n_abnormal_tokens: Number of further tokens of an abnormal prompt.
        prompt_depth: Number of text blocks with learnable input. 1 means no deep tokens.
        deep_tokens: Deep text tokens per block.
        prompt_init_std: Standard deviation of all learnable tokens' initial values.
        half_deep_tokens: Whether deep tokens are rounded to 16-bit floats, as in the official code.
        temperature: Divisor of the cosine similarities.
        map_loss_weight: Weight of the map's losses relative to the cross entropy of the image.
        contrastive_weight: Weight of the loss that pulls the two pairs together.
        contrastive_margin: Distance up to which that loss pushes the prompts of the two states apart. With 0, as in the
            official code, it does not.
        map_sigma: Standard deviation of the Gaussian filter of the final map, in pixels.

    Raises:
        ValueError: An argument is out of its range.

    Reference: GlocalCLIP (Ham et al., 2024, arXiv 2411.06071), the official code.
    """

    title = "GlocalCLIP"
    paper = "ham2024glocalclip"
    official_code = "YUL-git/GlocalCLIP"
    parity = "equal to the official code; the paper was not at hand"
    fixed_by_training = ("normal_words", "abnormal_words", "n_normal_tokens", "half_deep_tokens", "temperature")

    def __init__(
        self,
        backbone: ClipBackbone,
        optimizer: OptimizerFactory = adam,
        layers: Sequence[int] = (24,),
        vv_from: int = 6,
        normal_words: str = "object.",
        abnormal_words: str = "damaged object.",
        n_normal_tokens: int = 13,
        n_abnormal_tokens: int = 13,
        prompt_depth: int = 9,
        deep_tokens: int = 4,
        prompt_init_std: float = 0.02,
        half_deep_tokens: bool = False,
        temperature: float = 0.07,
        map_loss_weight: float = 4.0,
        contrastive_weight: float = 1.0,
        contrastive_margin: float = 0.0,
        map_sigma: float = 8.0,
    ) -> None:
        require_layers(layers)
        require_not_negative(contrastive_margin=contrastive_margin, map_sigma=map_sigma)
        require_positive(temperature=temperature)
        super().__init__(backbone, backbone.spec(vv_layers=layers, vv_from=vv_from, image_embedding=True), optimizer)
        self.save_hyperparameters(ignore=["backbone", "optimizer"], logger=False)
        self.temperature = temperature
        self.map_loss_weight = map_loss_weight
        self.contrastive_weight = contrastive_weight
        self.contrastive_margin = contrastive_margin
        self.map_sigma = map_sigma
        # both share one module; checkpoints hold it once, as part of the first
        deep = DeepTokens.of_depth(backbone, prompt_depth, deep_tokens, prompt_init_std, half_deep_tokens)
        self.image_prompts, self.patch_prompts = (
            ObjectPrompts(
                backbone,
                normal_words,
                abnormal_words,
                n_normal_tokens,
                n_abnormal_tokens,
                deep=deep,
                init_std=prompt_init_std,
            )
            for _ in range(2)
        )

    def embed_text(self) -> Tensor:
        """Returns the embeddings of the image's pair, then of the patches', `[2, 2, D]`, not normalised."""
        return embed_together(self.backbone, [self.image_prompts, self.patch_prompts])

    def probabilities(self, features: ClipFeatures, text: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the image logits `[B, 2]` and the patches' probabilities `[L, B, h, w]`.

        Args:
            features: Features of the backbone.
            text: Result of `text_embeddings`.
        """
        of_image, of_patches = prototypes(text)
        return (
            image_logits(self.backbone, features, of_image, self.temperature),
            patch_probabilities(self.backbone, features, of_patches, self.temperature),
        )

    def loss(self, features: ClipFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss terms and their weighted sum `total`. Images without a known mask have no map loss."""
        text = self.text_embeddings()
        logits, maps = self.probabilities(features, text)
        known, labelled = batch.known, batch.labelled
        image_ce = image_cross_entropy(logits[labelled], batch.label[labelled])
        of_map = summed_map_losses(maps[:, known], batch.mask[known], self.spec.image_size)
        of_image, of_patches = prototypes(text.float())
        contrastive = glocal_contrastive_loss(of_image, of_patches, self.contrastive_margin)
        total = (
            image_ce
            + self.map_loss_weight * torch.stack(list(of_map.values())).sum()
            + self.contrastive_weight * contrastive
        )
        return {"total": total, "image_ce": image_ce, **of_map, "contrastive": contrastive}

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the class token's probability with the image's prompts, and the sum of the layers' maps."""
        logits, maps = self.probabilities(features, self.text_embeddings())
        anomaly_map = upsample_and_smooth(maps.sum(0), self.spec.image_size, self.map_sigma)
        return AnomalyPrediction(anomaly_probability(logits), anomaly_map)
