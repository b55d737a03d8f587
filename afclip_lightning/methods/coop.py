"""CoOp, a baseline of AnomalyCLIP and FAPrompt: learnable prompts of the two states with the name of the category."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.arguments import require_not_negative, require_positive
from afclip_lightning.components.plain_clip import image_loss, last_patches, prediction_of, state_logits
from afclip_lightning.components.schedule import follow_warmed_cosine
from afclip_lightning.methods.base import CategoryPromptMethod, OptimizerFactory, sgd
from afclip_lightning.prompts.category import CategoryPrompts
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures, Sample


class CoOp(CategoryPromptMethod):
    """CoOp: `[V1] … [V16] normal bottle.` and `[V1] … [V16] anomalous bottle.` with learnable tokens V.

    Both states and all categories share the tokens. Only the cross entropy of the image embedding trains them. Masks
    are not used. The map compares the last patches of CLIP. It is far below chance, as in the published tables.
    `vv_from` takes the patches of the V-V path instead.

    The code of these baselines was not found, and the appendices that describe them were not at hand. The words for the
    states are those of our `CLIP` baseline. Tokens, initialisation, optimiser and schedule are those of the official
    code of CoOp (KaiyangZhou/CoOp).

    Differs: that code crops and mirrors training images at random. Here they are as in a test.

    Args:
        backbone: The frozen CLIP.
        optimizer: Function that builds the optimiser of the prompts.
        vv_from: First block of the V-V path, which the patches of the map then come from. `None` takes CLIP's own.
        normal_word: Word before the category in the normal prompt.
        abnormal_word: Word before the category in the abnormal prompt.
        prompt_tokens: Number of learnable tokens.
        prompt_init_std: Standard deviation of their initial values.
        temperature: Divisor of the cosine similarities; that of CLIP's own training.
        warmup_lr: Learning rate of the first epoch. From the second epoch on, the rate falls from the optimiser's to 0
            on a half cosine.
        map_sigma: Standard deviation of the Gaussian filter of the map, in pixels. 0 does not filter.

    Raises:
        ValueError: An argument is out of its range.

    Reference: CoOp (Zhou et al., 2022, arXiv 2109.01134), Eq. (2); the baselines of AnomalyCLIP and FAPrompt.
    """

    title = "CoOp"
    paper = "zhou2022coop"
    official_code = "KaiyangZhou/CoOp"
    parity = "a baseline of other papers, whose code for it is not public; prompts and loss are our reading of them"
    fixed_by_training: ClassVar[tuple[str, ...]] = ("normal_word", "abnormal_word", "temperature")

    def __init__(
        self,
        backbone: ClipBackbone,
        optimizer: OptimizerFactory = sgd,
        vv_from: int | None = None,
        normal_word: str = "normal",
        abnormal_word: str = "anomalous",
        prompt_tokens: int = 16,
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
            backbone, [normal_word], [abnormal_word], prompt_tokens, prompt_init_std, unified=True
        )

    def embed_text(self, samples: Sequence[Sample]) -> Tensor:
        """Returns the text embeddings of the category of each sample, `[B, 2, D]`."""
        return self.prompts.of_samples(self.backbone, samples)

    def logits(self, features: ClipFeatures, batch: Batch) -> Tensor:
        """Returns the logits of the image and of its patches, `[B, 1 + N, 2]`."""
        return state_logits(self.backbone, features, self.text_embeddings(batch.samples), self.temperature)

    def loss(self, features: ClipFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross entropy of the image, which is the `total`."""
        return image_loss(self.logits(features, batch), batch)

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the probability of the abnormal state: of the image embedding, and of the patches, upsampled."""
        return prediction_of(self.logits(features, batch), features.grid, self.spec.image_size, self.map_sigma)

    def on_train_epoch_start(self) -> None:
        """Sets the learning rate of the epoch."""
        follow_warmed_cosine(self.trainer, self.warmup_lr)
