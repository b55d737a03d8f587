"""Dual-Image Enhanced CLIP: test images serve each other as references, with optional test-time adaptation."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.arguments import require_one_of, require_positive
from afclip_lightning.components.scoring import anomaly_probability, pool_and_upsample, similarity_logits
from afclip_lightning.components.synthesis import DraemSynthesis, generator_of
from afclip_lightning.components.test_time import BatchAdapters, Start, TestTimeAdapter
from afclip_lightning.data.references import Pairing
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.prompts.ensemble import CategoryText, embed_states
from afclip_lightning.prompts.templates import ANOVL_TEXTURES, domain_aware
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures, Sample

MaskLoss = Literal["anomalous", "all"]
SimilarityLoss = Literal["cosine", "mse"]


class DualImageCLIP(AnomalyMethod):
    """Dual-Image Enhanced CLIP: a patch is compared with texts and with the patches of other test images.

    The class token of the original path gives the image score, and the patches of the V-V path give the map. The
    references of an image are other images of its category, drawn by the data module. They may be anomalous. With
    `steps` above 0 it is the paper's "Ours+": each image trains a linear adapter, which learns to see a synthesised
    anomaly while the map stays close to the map without adapter. Nothing else trains, and nothing is kept between
    images.

    No code is public. The text copy of the paper at hand lacks the values of α, β, λ, the temperature, the learning
    rate and the image size, and the formulas of Eq. (1) to (13). They are replaced by the most likely reading of the
    text around them and of AnoVL's code, on which the paper builds. These choices are ours:

    - the values of `alpha`, `beta`, `similarity_weight`, `learning_rate`, `weight_decay` and `temperature`;
    - Eq. (5) as 1 minus the largest cosine, between V-V patches of the last block in the joint space;
    - Eq. (6) and (12) as weighted means, Eq. (12) with the maximum of the patch scores;
    - Eq. (13) as Eq. (6) with the text score of the adapted patches and the unchanged reference score;
    - Eq. (7) and (8) as AnoVL's square adapter with its `residual`, optionally with the normalised token
      (`normalise_residual`), and with initial values (`start`) that all images share;
    - a new adapter and optimiser for each image;
    - Eq. (10) over the patches of the mask or over all patches (`mask_loss`), where a patch is anomalous from
      `synthesis.min_coverage` on; Eq. (11) as a cosine or as a mean square (`similarity_loss`);
    - one `seed` for pairs, synthesised anomalies and initial values;
    - the selection of more than one reference; see `draw_references`;
    - squashed squares for both datasets, and AnoVL's pooling and upsampling of the map.

    A category needs at least `n_references` + 1 test images. Images of any shape are squashed into squares. If the norm
    of the patches is much larger than 1, an adapter with unnormalised `residual` hardly changes their direction. Set
    `normalise_residual` then.

    Differs: the paper's textures are from DTD. Here they are drawn, unless `synthesis` names a folder.

    Args:
        backbone: The frozen CLIP.
        n_references: Number of reference images per image.
        alpha: Weight of the reference score relative to the text score.
        beta: Weight of the maximum of the map in the image score, relative to the class token.
        temperature: Divisor of the cosine similarities with texts.
        vv_from: First block of the V-V path.
        textures: Categories whose prompts speak of a texture rather than an object.
        steps: Number of steps of the adaptation. 0 leaves it out.
        learning_rate: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        start: Initial values of the adapters. See `TestTimeAdapter`.
        residual: Weight of the original token in the adapted token.
        normalise_residual: Whether the original token is L2-normalised in it.
        mask_loss: Patches of the mask loss: those of the synthesised anomaly (`anomalous`), or all, averaged per kind
            (`all`).
        similarity_loss: Similarity of the map with adapter to the map without.
        similarity_weight: λ, weight of the similarity loss relative to the mask loss.
        synthesis: Synthesis of anomalies. The default is DRAEM's with procedural textures.
        seed: Seed of pairs, synthesised anomalies and initial values.

    Raises:
        ValueError: An argument is out of its range.

    Reference: Dual-Image Enhanced CLIP, Eq. (1) to (13).
    """

    title = "Dual-Image Enhanced CLIP"
    paper = "zhang2024dualimage"
    parity = "no public code to compare with; choices that the paper leaves open are arguments"
    needs_references: ClassVar[bool] = True
    needs_class_name: ClassVar[bool] = True
    needs_pixels: ClassVar[bool] = True  # anomalies are synthesised in the image

    def __init__(
        self,
        backbone: ClipBackbone,
        n_references: int = 1,
        alpha: float = 0.5,
        beta: float = 0.5,
        temperature: float = 0.07,
        vv_from: int = 1,
        textures: Sequence[str] = ANOVL_TEXTURES,
        steps: int = 2,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        start: Start = "linear",
        residual: float = 0.5,
        normalise_residual: bool = False,
        mask_loss: MaskLoss = "anomalous",
        similarity_loss: SimilarityLoss = "cosine",
        similarity_weight: float = 1.0,
        synthesis: DraemSynthesis | None = None,
        seed: int = 0,
    ) -> None:
        spec = backbone.spec(image_embedding=True, vv_layers=(backbone.vision.depth,), vv_from=vv_from)
        super().__init__(backbone, spec, optimizer=None)
        if n_references < 1:
            raise ValueError(f"n_references must be at least 1, got {n_references}")
        if not (0 <= alpha <= 1 and 0 <= beta <= 1):
            raise ValueError(f"alpha and beta must be 0 to 1, got {alpha} and {beta}")
        require_positive(temperature=temperature)
        require_one_of(MaskLoss, mask_loss=mask_loss)
        require_one_of(SimilarityLoss, similarity_loss=similarity_loss)
        self.pairing = Pairing(n_references, seed)
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.textures = frozenset(textures)
        self.normalise_residual = normalise_residual
        self.mask_loss: MaskLoss = mask_loss
        self.similarity_loss: SimilarityLoss = similarity_loss
        self.similarity_weight = similarity_weight
        self.synthesis = synthesis or DraemSynthesis()
        self.seed = seed
        dim = backbone.embed_dim
        self.adapter = TestTimeAdapter(dim, dim, start, residual, steps, learning_rate, weight_decay, seed)
        self.text = CategoryText(self._embed_text)

    @property
    def adapts(self) -> bool:
        """Returns whether adaptation is on."""
        return self.adapter.steps > 0

    def on_evaluation_end(self) -> None:
        """Releases the text embeddings of the pass."""
        super().on_evaluation_end()
        self.text.reset()

    def _embed_text(self, sample: Sample) -> Tensor:
        prompts = domain_aware(sample.class_name, sample.category in self.textures)
        return embed_states(self.backbone, *prompts, "mean_then_norm")

    def patches(self, image: Tensor | ClipFeatures) -> Tensor:
        """Returns the V-V patches of images `[B, 3, H, W]` or of their features, in the joint space, `[B, N, D]`."""
        features = image if isinstance(image, ClipFeatures) else self.backbone.encode_image(image, self.spec)
        return self.backbone.project(features.vv_tokens[0][:, 1:]).float()

    def text_score(self, tokens: Tensor, text: Tensor) -> Tensor:
        """Returns the probability of the abnormal text, `[B, N]`.

        Args:
            tokens: `[B, N, D]`, not necessarily normalised: patches, adapted patches, or the class token.
            text: `[B, 2, D]`, L2-normalised.

        Reference: Dual-Image Enhanced CLIP, Eq. (1), (2), (3) and (9).
        """
        return anomaly_probability(self._logits(tokens, text))

    def _logits(self, tokens: Tensor, text: Tensor) -> Tensor:
        return similarity_logits(F.normalize(tokens, dim=-1), text, self.temperature)

    def reference_score(self, patches: Tensor, references: Sequence[Tensor]) -> Tensor:
        """Returns 1 minus the cosine to the most similar patch of all references, `[B, N]`, in [0, 2].

        Args:
            patches: `[B, N, D]`.
            references: Patches of the R references, `[B, N, D]` each.

        Reference: Dual-Image Enhanced CLIP, Eq. (5).
        """
        unit = F.normalize(patches, dim=-1)
        nearest = [similarity_logits(unit, F.normalize(one, dim=-1), 1.0).amax(dim=-1) for one in references]
        return 1 - torch.stack(nearest).amax(dim=0)

    def joint_score(self, text_score: Tensor, reference_score: Tensor) -> Tensor:
        """Returns the weighted mean of the text score and the reference score of patches.

        Reference: Dual-Image Enhanced CLIP, Eq. (6) and (13).
        """
        return (1 - self.alpha) * text_score + self.alpha * reference_score

    def adaptation_loss(
        self, adapters: BatchAdapters, patches: Tensor, altered: Tensor, anomalous: Tensor, joint: Tensor, text: Tensor
    ) -> Tensor:
        """Returns the loss of each image, `[B]`.

        Args:
            adapters: Adapters of the images.
            patches: `[B, N, D]`, patches of the images.
            altered: `[B, N, D]`, patches of the images with a synthesised anomaly.
            anomalous: `[B, N]`, 1 in the synthesised anomaly and 0 elsewhere. Each image has at least one 1.
            joint: `[B, N]`, the joint score without adapter.
            text: `[B, 2, D]`.

        Reference: Dual-Image Enhanced CLIP, Eq. (10) and (11).
        """
        normal, abnormal = (-self._logits(adapters(altered), text).log_softmax(dim=-1)).unbind(-1)
        loss = (abnormal * anomalous).sum(1) / anomalous.sum(1)
        if self.mask_loss == "all":
            rest = 1 - anomalous
            loss = loss + (normal * rest).sum(1) / rest.sum(1).clamp(min=1)
        adapted = self.text_score(adapters(patches), text)
        if self.similarity_loss == "cosine":
            return loss + self.similarity_weight * (1 - F.cosine_similarity(adapted, joint, dim=1))
        return loss + self.similarity_weight * (adapted - joint).square().mean(dim=1)

    def synthesise(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the images with a synthesised anomaly, `[B, 3, H, W]`, and the anomalous patches, `[B, N]`, bool."""
        side = self.backbone.vision.patch_size
        references: Tensor | list[None] = [None] * len(batch.samples)
        if batch.reference is not None and batch.reference_rows is not None:
            references = torch.cat([batch.image, batch.reference])[batch.reference_rows[:, 0]]
        altered = [
            self.synthesis.synthesise(image, generator_of(sample, self.seed), side, self.preprocess, reference)
            for sample, image, reference in zip(batch.samples, batch.image, references, strict=True)
        ]
        images, masks = (torch.stack(list(part)) for part in zip(*altered, strict=True))
        h, w = self.backbone.grid
        covered = masks.reshape(-1, h, side, w, side).sum(dim=(2, 4)).flatten(1)  # in pixels: shares may be rounded
        return images, covered >= self.synthesis.min_coverage * side**2

    def adapt(self, batch: Batch, patches: Tensor, joint: Tensor, text: Tensor) -> BatchAdapters:
        """Returns the trained adapters of a batch. It takes one pass of the backbone over the synthesised images.

        Args:
            batch: The images.
            patches: `[B, N, D]`, patches of the images.
            joint: `[B, N]`, their joint score without adapter.
            text: `[B, 2, D]`.
        """
        image, anomalous = self.synthesise(batch)
        tensors = (patches, self._at_length(self.patches(image)), anomalous, joint, text)
        return self.adapter.train_each(self.adaptation_loss, tensors)

    def _at_length(self, patches: Tensor) -> Tensor:
        return F.normalize(patches, dim=-1) if self.normalise_residual else patches

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns image scores, from class token and maximum of the map, and maps.

        Raises:
            ValueError: The batch has no reference images.

        Reference: Dual-Image Enhanced CLIP, Eq. (12) and (13).
        """
        if batch.reference is None or batch.reference_rows is None:
            raise ValueError(
                "The batch has no reference images. They come from a data module that setup asks for them: give the "
                "trainer the data module and not its loaders, or call its `pair` first."
            )
        text = self.text(batch.samples)
        patches = every = self.patches(features)
        if len(batch.reference):
            every = torch.cat([patches, self.patches(batch.reference)])
        distance = self.reference_score(patches, [every[rows] for rows in batch.reference_rows.unbind(1)])
        patches = self._at_length(patches)
        joint = self.joint_score(self.text_score(patches, text), distance)
        if self.adapter.steps:
            adapters = self.adapt(batch, patches, joint, text)
            joint = self.joint_score(self.text_score(adapters(patches), text), distance)
        assert features.image_embedding is not None  # requested by the spec
        image = self.text_score(features.image_embedding[:, None], text)[:, 0]
        score = (1 - self.beta) * image + self.beta * joint.amax(dim=1)
        anomaly_map = pool_and_upsample(joint.unflatten(1, features.grid), self.spec.image_size)
        return AnomalyPrediction(score.detach(), anomaly_map.detach())
