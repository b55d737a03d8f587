"""CoCoOp, a baseline of FAPrompt: CoOp's prompts, shifted by a small network of the image."""

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.arguments import require_not_negative, require_positive
from afclip_lightning.components.plain_clip import image_loss, last_patches, prediction_of, state_logits
from afclip_lightning.components.schedule import follow_warmed_cosine
from afclip_lightning.methods.base import AnomalyMethod, OptimizerFactory, sgd
from afclip_lightning.prompts.category import CategoryPrompts
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures, Sample


class CoCoOp(AnomalyMethod):
    """CoCoOp: `[V1] … [V4] normal bottle.` and `[V1] … [V4] anomalous bottle.`, each V shifted by the image.

    Both states and all categories share the tokens. A network of two layers turns the image embedding into the shift.
    Only the cross entropy of the image embedding trains them. Masks are not used. The map compares the last patches of
    CLIP, or with `vv_from` those of the V-V path. The published pixel numbers are far better than those of CoOp
    (FAPrompt, Table 2), and the paper does not say which map they are from.

    The code of these baselines was not found, and the appendices that describe them were not at hand. The words for the
    states are those of our `CLIP` baseline. Tokens, initialisation, optimiser and schedule are those of the official
    code of CoCoOp (KaiyangZhou/CoOp).

    Differs: that code crops and mirrors training images at random. Here they are as in a test.

    Args:
        backbone: The frozen CLIP.
        optimizer: Function that builds the optimiser of the prompts and the network.
        vv_from: First block of the V-V path, which the patches of the map then come from. `None` takes CLIP's own.
        normal_word: Word before the category in the normal prompt.
        abnormal_word: Word before the category in the abnormal prompt.
        prompt_tokens: Number of learnable tokens.
        start: Words whose embeddings initialise the tokens, one per token. Empty for a random initialisation.
        prompt_init_std: Standard deviation of a random initialisation.
        temperature: Divisor of the cosine similarities; that of CLIP's own training.
        warmup_lr: Learning rate of the first epoch. From the second epoch on, the rate falls from the optimiser's to 0
            on a half cosine.
        map_sigma: Standard deviation of the Gaussian filter of the map, in pixels. 0 does not filter.

    Raises:
        ValueError: An argument is out of its range.

    Reference: CoCoOp (Zhou et al., 2022, arXiv 2203.05557), Sec. 3.2; the baseline of FAPrompt.
    """

    title = "CoCoOp"
    paper = "zhou2022cocoop"
    official_code = "KaiyangZhou/CoOp"
    parity = "a baseline of other papers, whose code for it is not public; prompts and loss are our reading of them"
    needs_class_name: ClassVar[bool] = True
    fixed_by_training: ClassVar[tuple[str, ...]] = ("normal_word", "abnormal_word", "temperature")

    def __init__(
        self,
        backbone: ClipBackbone,
        optimizer: OptimizerFactory = sgd,
        vv_from: int | None = None,
        normal_word: str = "normal",
        abnormal_word: str = "anomalous",
        prompt_tokens: int = 4,
        start: str = "a photo of a",
        prompt_init_std: float = 0.02,
        temperature: float = 0.01,
        warmup_lr: float = 1e-5,
        map_sigma: float = 0.0,
    ) -> None:
        require_not_negative(warmup_lr=warmup_lr, map_sigma=map_sigma)
        require_positive(temperature=temperature, prompt_tokens=prompt_tokens)
        super().__init__(backbone, last_patches(backbone, vv_from), optimizer)
        self.save_hyperparameters(ignore=["backbone", "optimizer"], logger=False)
        self.temperature = temperature
        self.warmup_lr = warmup_lr
        self.map_sigma = map_sigma
        self.prompts = CategoryPrompts(
            backbone, [normal_word], [abnormal_word], prompt_tokens, prompt_init_std, unified=True, start=start
        )
        hidden = max(backbone.embed_dim // 16, 1)
        self.shift_network = nn.Sequential(
            nn.Linear(backbone.embed_dim, hidden), nn.ReLU(), nn.Linear(hidden, backbone.text.width)
        )

    def embed_text(self, features: ClipFeatures, samples: Sequence[Sample]) -> Tensor:
        """Returns the text embeddings of each image, `[B, 2, D]`, L2-normalised.

        Args:
            features: Features of the backbone.
            samples: The B samples, or one sample for all.
        """
        assert features.image_embedding is not None  # requested by the spec
        shift = self.shift_network(F.normalize(features.image_embedding.float(), dim=-1))
        text = self.prompts.shifted(self.backbone, [sample.class_name for sample in samples], shift)
        return F.normalize(text.float(), dim=-1)

    def logits(self, features: ClipFeatures, batch: Batch) -> Tensor:
        """Returns the logits of the image and of its patches, `[B, 1 + N, 2]`."""
        return state_logits(self.backbone, features, self.embed_text(features, batch.samples), self.temperature)

    def loss(self, features: ClipFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross entropy of the image, which is the `total`."""
        return image_loss(self.logits(features, batch), batch)

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the probability of the abnormal state: of the image embedding, and of the patches, upsampled."""
        return prediction_of(self.logits(features, batch), features.grid, self.spec.image_size, self.map_sigma)

    def on_train_epoch_start(self) -> None:
        """Sets the learning rate of the epoch."""
        follow_warmed_cosine(self.trainer, self.warmup_lr)
