"""KAnoCLIP: knowledge-driven prompts, bidirectional cross-modal interaction and an adapter of the image embedding."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.adapters import ConvAdapter
from afclip_lightning.components.arguments import (
    require_layers,
    require_not_negative,
    require_one_of,
    require_positive,
)
from afclip_lightning.components.cross_attention import BiCrossAttention
from afclip_lightning.components.losses import binary_focal_loss, knowledge_loss, map_losses
from afclip_lightning.components.scoring import anomaly_probability, similarity_logits, upsample, upsample_and_smooth
from afclip_lightning.knowledge.base import knowledge_digest
from afclip_lightning.knowledge.targets import Knowledge
from afclip_lightning.methods.base import CategoryPromptMethod, OptimizerFactory, adam
from afclip_lightning.prompts.category import CategoryPrompts
from afclip_lightning.prompts.ensemble import CategoryText, embed_states
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures, Sample

ConvAdapterKind = Literal["spatial", "global"]
FIXED_OPENING = "a photo of a"


class KAnoCLIP(CategoryPromptMethod):
    """KAnoCLIP: prompts trained with knowledge on anomalies, and cross-attention between patches and text.

    Normal and abnormal prompts with learnable tokens name the category (KnPL). Patches of the V-V path of four blocks
    (CLIP-VV) pass a bidirectional cross-attention with the two text embeddings (Bi-CMCI). Their similarity gives the
    map. The image embedding passes an adapter (Conv-Adapter). Its probability and the maximum of the map give the image
    score. Training pulls the abnormal prompts towards the sentences of a knowledge base. The base is read for the
    training categories only, and never in a test.

    No code was published. Where the paper is silent, these choices are ours:

    - sizes and training: 518 pixels, the tapped blocks, the first block of the V-V path, the temperature, learning
      rates, epochs and batch size (see the configs), widths, heads and bottleneck;
    - all adjectives and categories share the tokens of a state; an embedding is the mean over adjectives; a prompt ends
      with a period;
    - the knowledge loss is a mean over the images of a batch. Each image has the sentences of its category and, if it
      is anomalous with a known mask, one of its own; `knowledge_margin`;
    - Bi-CMCI: see `BiCrossAttention`; each stage has its own weights; patches and text are L2-normalised before it;
    - Norm of Eq. (9) is the mean over the stages of a softmax. It is in [0, 1] and comparable between images, unlike a
      scaling per image. Logits are upsampled, not their softmax. The two maps add up to 1, and Eq. (10) is the smoothed
      abnormal one. Training does not smooth;
    - Conv-Adapter: see `ConvAdapter`; with its residual it changes nothing at first;
    - the sum of Eq. (12), of the probabilities of the abnormal state, is halved, so that Eq. (14) has a probability;
    - focal and Dice loss cover both maps, with AnomalyCLIP's exponent and smoothed targets.

    Args:
        backbone: The frozen CLIP.
        optimizer: Function that builds the optimiser. Its learning rate is that of the prompts.
        head_lr: Learning rate of Bi-CMCI and Conv-Adapter.
        layers: Tapped blocks, counted from 1.
        vv_from: First block of the V-V path. `None` taps the original path (no CLIP-VV).
        learnable_prompts: Whether prompts have learnable tokens and knowledge (KnPL). Without, they are fixed, such as
            `a photo of a normal bottle.`
        normal_words: Words before the category in normal prompts.
        abnormal_words: Words before the category in abnormal prompts.
        prompt_tokens: K, number of learnable tokens per state.
        prompt_init_std: Standard deviation of the tokens' initial values.
        knowledge: Knowledge base of the training dataset: the name of one in the package, or a file.
        knowledge_margin: Margin of the knowledge loss.
        interaction: Whether patches and text pass Bi-CMCI.
        interaction_width: Channels inside a stage of Bi-CMCI.
        interaction_heads: Attention heads of Bi-CMCI.
        offset_groups: Groups of channels in its deformable attention. Each group has its own sampling points.
        offset_stride: Distance of two sampling points, in patches.
        conv_adapter: Input of Conv-Adapter: the class token and the patches of the last stage (`spatial`), the class
            token alone (`global`, Eq. (11) as printed), or `None` for no adapter.
        adapter_bottleneck: Channels of its bottleneck.
        adapter_residual: Whether the image embedding is added to its output. The printed equation has no residual.
        temperature: Divisor of the cosine similarities.
        knowledge_weight: α, weight of the knowledge loss. With 0, no knowledge base is read.
        global_weight: β, weight of the cross entropy of the image score.
        local_weight: γ, weight of the map's losses.
        map_sigma: Standard deviation of the Gaussian filter of the final map, in pixels.

    Raises:
        ValueError: An argument is out of its range.

    Reference: KAnoCLIP (Li et al., 2025), Eq. (1) to (15).
    """

    title = "KAnoCLIP"
    paper = "li2025kanoclip"
    parity = "no public code to compare with; choices that the paper leaves open are arguments"
    fixed_by_training = (
        "learnable_prompts",
        "normal_words",
        "abnormal_words",
        "interaction",
        "interaction_heads",
        "offset_groups",
        "offset_stride",
        "conv_adapter",
        "adapter_residual",
        "temperature",
    )

    def __init__(
        self,
        backbone: ClipBackbone,
        optimizer: OptimizerFactory = adam,
        head_lr: float = 1e-4,
        layers: Sequence[int] = (6, 12, 18, 24),
        vv_from: int | None = 6,
        learnable_prompts: bool = True,
        normal_words: Sequence[str] = ("normal", "perfect"),
        abnormal_words: Sequence[str] = ("abnormal", "defective"),
        prompt_tokens: int = 12,
        prompt_init_std: float = 0.02,
        knowledge: str = "mvtec",
        knowledge_margin: float = 0.0,
        interaction: bool = True,
        interaction_width: int = 256,
        interaction_heads: int = 8,
        offset_groups: int = 4,
        offset_stride: int = 4,
        conv_adapter: ConvAdapterKind | None = "spatial",
        adapter_bottleneck: int = 192,
        adapter_residual: bool = True,
        temperature: float = 0.07,
        knowledge_weight: float = 1.0,
        global_weight: float = 1.0,
        local_weight: float = 1.0,
        map_sigma: float = 4.0,
    ) -> None:
        require_layers(layers)
        taps: dict[str, Any] = {"layers": layers} if vv_from is None else {"vv_layers": layers, "vv_from": vv_from}
        super().__init__(backbone, backbone.spec(**taps, image_embedding=True), optimizer)
        if conv_adapter is not None:
            require_one_of(ConvAdapterKind, conv_adapter=conv_adapter)
        for name, value in (("normal_words", normal_words), ("abnormal_words", abnormal_words)):
            if isinstance(value, str) or not value:
                raise ValueError(f"{name} must be a list of words, got {value!r}")
        require_positive(temperature=temperature, prompt_tokens=prompt_tokens, adapter_bottleneck=adapter_bottleneck)
        require_not_negative(global_weight=global_weight, local_weight=local_weight, map_sigma=map_sigma)
        require_not_negative(knowledge_weight=knowledge_weight, knowledge_margin=knowledge_margin)
        self.save_hyperparameters(ignore=["backbone", "optimizer"], logger=False)
        self.head_lr = head_lr
        self.words = (tuple(normal_words), tuple(abnormal_words))
        self.knowledge_margin = knowledge_margin
        self.temperature = temperature
        self.knowledge_weight = knowledge_weight
        self.global_weight = global_weight
        self.local_weight = local_weight
        self.map_sigma = map_sigma
        self.prompts = (
            CategoryPrompts(backbone, *self.words, prompt_tokens, prompt_init_std) if learnable_prompts else None
        )
        sizes = (backbone.embed_dim, interaction_width, interaction_heads, offset_groups, offset_stride)
        self.interactions = nn.ModuleList(BiCrossAttention(*sizes) for _ in layers) if interaction else None
        self.conv_adapter = (
            ConvAdapter(backbone.embed_dim, adapter_bottleneck, conv_adapter == "spatial", adapter_residual)
            if conv_adapter
            else None
        )
        self.knowledge = Knowledge(knowledge) if learnable_prompts and knowledge_weight else None
        self.fixed_text = CategoryText(self._embed_fixed)

    def setup(self, stage: str) -> None:
        """Reads the knowledge base for the training categories, before training starts.

        Raises:
            UserError: The base lacks a category.
        """
        super().setup(stage)
        if stage == "fit" and self.knowledge is not None and self.data is not None:
            self.knowledge.read([name for part in self.data.training_sets for name in part.selected_categories()])

    def configure_optimizers(self) -> Optimizer | None:
        """Returns the optimiser with two parameter groups: the prompts, and the rest with `head_lr`."""
        optimizer = super().configure_optimizers()
        if optimizer is not None:
            (group,) = optimizer.param_groups
            prompts = set() if self.prompts is None else set(self.prompts.parameters())
            rest = [parameter for parameter in group["params"] if parameter not in prompts]
            group["params"] = [parameter for parameter in group["params"] if parameter in prompts]
            optimizer.add_param_group({"params": rest, "lr": self.head_lr})
        return optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the digest of the sentences of the training."""
        super().on_save_checkpoint(checkpoint)
        if self.knowledge is not None and self.knowledge.sentences:
            checkpoint["knowledge_digest"] = knowledge_digest(self.knowledge.sentences)

    def on_train_end(self) -> None:
        """Releases the embeddings of fixed sentences."""
        self.fixed_text.reset()
        if self.knowledge is not None:
            self.knowledge.reset()

    def on_evaluation_end(self) -> None:
        """Releases the text embeddings of the pass."""
        super().on_evaluation_end()
        self.fixed_text.reset()

    def _embed_fixed(self, sample: Sample) -> Tensor:
        normal, abnormal = (
            [f"{FIXED_OPENING} {a} {sample.class_name}." for a in adjectives] for adjectives in self.words
        )
        return embed_states(self.backbone, normal, abnormal, "mean_then_norm")

    def embed_text(self, samples: Sequence[Sample]) -> Tensor:
        """Returns the text embeddings of the category of each sample, `[B, 2, D]`.

        They are L2-normalised. Row 0 is normal and row 1 abnormal.

        Reference: KAnoCLIP, Eq. (1).
        """
        if self.prompts is None:
            return self.fixed_text(samples)
        return self.prompts.of_samples(self.backbone, samples)

    def evaluate(self, features: ClipFeatures, text: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the probability of the image embedding, `[B]`, and the abnormal map before smoothing, `[B, H, W]`.

        Args:
            features: Features of the backbone.
            text: `[B, 2, D]`.

        Reference: KAnoCLIP, Eq. (9), the first term of Eq. (12).
        """
        stages = []
        for stage, tokens in enumerate(features.vv_tokens or features.tokens):
            patches = self.backbone.embed_tokens(tokens[:, 1:])
            fused, fused_text = patches, text
            if self.interactions is not None:
                fused, fused_text = self.interactions[stage](patches, text, features.grid)
            logits = self.logits(fused, fused_text)
            # a softmax over two logits depends on their difference, so one plane is upsampled instead of two
            patch_map = logits.diff(dim=-1)[..., 0].unflatten(1, features.grid)
            stages.append(upsample(patch_map, self.spec.image_size).sigmoid())
        assert features.image_embedding is not None  # requested by the spec
        image = F.normalize(features.image_embedding.float(), dim=-1)
        if self.conv_adapter is not None:
            image = self.conv_adapter(image, patches, features.grid)
        return anomaly_probability(self.logits(image[:, None], text))[:, 0], torch.stack(stages).mean(0)

    def logits(self, tokens: Tensor, text: Tensor) -> Tensor:
        """Returns the logits `[B, N, 2]` of tokens `[B, N, D]` and text `[B, 2, D]`. Neither need be normalised."""
        tokens = tokens.float()
        lengths = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True).clamp(min=1e-12)
        # divided afterwards: a token has two similarities, but many channels
        return similarity_logits(tokens, F.normalize(text.float(), dim=-1), self.temperature) / lengths

    def image_score(self, probability: Tensor, anomaly_map: Tensor) -> Tensor:
        """Returns the mean of the probability of the image embedding and the maximum of the map, `[B]`, in [0, 1].

        Reference: KAnoCLIP, Eq. (12), halved.
        """
        return (probability + anomaly_map.amax(dim=(1, 2))) / 2

    def loss(self, features: ClipFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss terms and their weighted sum `total`. Images without a known mask have no map loss.

        Reference: KAnoCLIP, Eq. (2), (13) to (15).

        Raises:
            UserError: The knowledge base lacks a category.
        """
        text = self.embed_text(batch.samples)
        probability, abnormal = self.evaluate(features, text)
        score = self.image_score(probability, abnormal)
        rows, labelled = batch.known, batch.labelled
        # of a probability, in float32
        terms = {"image_bce": binary_focal_loss(score[labelled], batch.label[labelled], gamma=0)}
        total = self.global_weight * terms["image_bce"]
        if self.knowledge is not None:
            known = self.knowledge.means(self.backbone, batch)[labelled]
            normal, anomalous = text[labelled].unbind(1)
            terms["knowledge"] = knowledge_loss(known, normal, anomalous, self.knowledge_margin)
            total = total + self.knowledge_weight * terms["knowledge"]
        local = map_losses(abnormal[rows], batch.mask[rows])
        total = total + self.local_weight * torch.stack(list(local.values())).sum()
        return {"total": total, **terms, **local}

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns scores and maps.

        Reference: KAnoCLIP, Eq. (10) and (12).
        """
        probability, abnormal = self.evaluate(features, self.text_embeddings(batch.samples))
        anomaly_map = upsample_and_smooth(abnormal, self.spec.image_size, self.map_sigma)
        return AnomalyPrediction(self.image_score(probability, anomaly_map), anomaly_map)
