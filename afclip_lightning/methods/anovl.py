"""AnoVL (AnoCLIP): domain-aware prompts, local patches, augmented views and test-time adaptation."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.arguments import require_not_negative, require_one_of, require_positive
from afclip_lightning.components.scoring import anomaly_probability, pool_and_upsample, similarity_logits
from afclip_lightning.components.synthesis import generator_of
from afclip_lightning.components.test_time import BatchAdapters, TestTimeAdapter
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.prompts.ensemble import CategoryText, average_states
from afclip_lightning.prompts.templates import ANOVL_TEXTURES, domain_aware
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures, Sample

Adapter = Literal["text", "linear"]
LUMA = (0.299, 0.587, 0.114)
SIXTEENTHS = (-4, -3, -2, -1, 1, 2, 3, 4)  # angles in sixteenths of a half turn
SHIFTS = tuple((a * across, a * down) for a in (0.2, 0.1) for across, down in ((1, 1), (-1, 1), (-1, -1), (1, -1)))


def augmented_views(image: Tensor) -> Iterator[Tensor]:
    """Yields the 22 views of images that AnoVL averages over, `[B, 3, H, W]` each, the images themselves first.

    Eight small rotations, eight translations, the mirror image, the grey image and three quarter turns follow. Pixels
    from outside are reflected.

    Args:
        image: `[B, 3, H, W]`, normalised.

    Reference: AnoVL's official code, which handles squares only. Differs: it interpolates quarter turns as well, at
    pixel positions. An image that is not square is rotated within its frame.
    """
    yield image
    for sixteenth in SIXTEENTHS:
        yield _turned(image, sixteenth * np.pi / 16)
    for across, down in SHIFTS:
        yield _moved(image, [[1, 0, across], [0, 1, down]])
    yield image.flip(-1)
    yield torch.einsum("bchw,c->bhw", image, image.new_tensor(LUMA))[:, None].expand_as(image)
    for quarters in (1, 2, 3):
        view = image.rot90(quarters, dims=(-2, -1))
        yield view if view.shape == image.shape else _turned(image, quarters * np.pi / 2)


def _turned(image: Tensor, angle: float) -> Tensor:
    """Returns images rotated about their centre. Angles are measured in pixels, so a circle stays a circle."""
    tall = (image.shape[-2] - 1) / (image.shape[-1] - 1)
    return _moved(image, [[np.cos(angle), -np.sin(angle) * tall, 0], [np.sin(angle) / tall, np.cos(angle), 0]])


def _moved(image: Tensor, matrix: list[list[float]]) -> Tensor:
    """Returns images resampled at the positions to which an affine map, in units of half a side, moves the pixels."""
    theta = image.new_tensor(matrix).expand(image.shape[0], 2, 3)
    grid = F.affine_grid(theta, list(image.shape), align_corners=True)
    return F.grid_sample(image, grid, padding_mode="reflection", align_corners=True)


class AnoVL(AnomalyMethod):
    """AnoVL, also called AnoCLIP: domain-aware prompts and patches of the V-V path, with test-time adaptation.

    The class token of the original path gives the image score, averaged over 22 views of the image. The patches of the
    V-V path give the map. With `steps` above 0, each image trains an adapter on its patches and on noisy copies of them
    before the map is computed. The image score does not pass the adapter.

    Differs: the code's optimiser carries its moments from image to image, so that a result depends on the images
    before. Here adapter and optimiser are new for each image, and all start from the same values. The code squashes
    MVTec AD's images bilinearly (`interpolation` of the backbone). It sees VisA's wide images in two overlapping
    squares, which are tiles here (`fit` of the evaluation). Its adapter trains on both squares at once. Here each has
    its own. The code names categories by their folders, except `macaroni`. Here samples have a class name, which
    `class_names` of a dataset sets. The configs set all this.

    Args:
        backbone: The frozen CLIP.
        vv_from: First block of the V-V path.
        textures: Categories whose prompts speak of a texture rather than an object.
        temperature: Divisor of the cosine similarities.
        augment: Whether the image score is averaged over the 22 views (in the code for MVTec AD, not for VisA).
        adapter: `text`, whose outputs weight the prompts (MVTec AD in the code), or `linear`, from token to token
            (VisA).
        steps: Number of steps of the adaptation. 0 leaves it out.
        learning_rate: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        residual: Weight of the original token in the adapted token.
        noise_std: Standard deviation of the noise in the copies.
        hard_weight: Weight of the hard loss relative to the entropy.
        seed: Seed of the noise and of the adapters' initial values.

    Raises:
        ValueError: An argument is out of its range.

    Reference: AnoVL (Deng et al., 2023), with the numbers of its public code (hq-deng/AnoVL, 3a70bfd).
    """

    title = "AnoVL (AnoCLIP)"
    paper = "deng2023anovl"
    official_code = "hq-deng/AnoVL"
    parity = "equal to the official code"
    needs_class_name: ClassVar[bool] = True
    needs_pixels: ClassVar[bool] = True  # views are encoded from the image

    def __init__(
        self,
        backbone: ClipBackbone,
        vv_from: int = 1,
        textures: Sequence[str] = ANOVL_TEXTURES,
        temperature: float = 1.0,
        augment: bool = True,
        adapter: Adapter = "text",
        steps: int = 5,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        residual: float = 0.5,
        noise_std: float = 0.055,
        hard_weight: float = 0.5,
        seed: int = 111,
    ) -> None:
        spec = backbone.spec(image_embedding=True, vv_layers=(backbone.vision.depth,), vv_from=vv_from)
        super().__init__(backbone, spec, optimizer=None)
        require_positive(temperature=temperature)
        require_one_of(Adapter, adapter=adapter)
        require_not_negative(noise_std=noise_std)
        self.view_spec = backbone.spec(image_embedding=True)
        self.textures = frozenset(textures)
        self.temperature = temperature
        self.augment = augment
        self.adapts_to_prompts = adapter == "text"
        self.noise_std = noise_std
        self.hard_weight = hard_weight
        self.seed = seed
        sentences = sum(map(len, domain_aware("", texture=False)))  # a texture has the same number
        outputs = sentences if self.adapts_to_prompts else backbone.embed_dim
        self.adapter = TestTimeAdapter(
            backbone.embed_dim, outputs, "linear", residual, steps, learning_rate, weight_decay, seed
        )
        self.sentences = CategoryText(self._embed_sentences)

    @property
    def adapts(self) -> bool:
        """Returns whether adaptation is on."""
        return self.adapter.steps > 0

    def on_evaluation_end(self) -> None:
        """Releases the text embeddings of the pass."""
        super().on_evaluation_end()
        self.sentences.reset()

    def _embed_sentences(self, sample: Sample) -> Tensor:
        normal, abnormal = domain_aware(sample.class_name, sample.category in self.textures)
        with torch.no_grad():
            return self.backbone.encode_text([*normal, *abnormal])

    def text(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """Returns text embeddings of the samples' categories, `[B, 2, D]`, and sentences, `[B, K, D]`, L2-normalised.

        The first half of the K sentences is normal, the second half abnormal.
        """
        sentences = self.sentences(samples)
        halves = (one.chunk(2) for one in sentences)
        states = [average_states(normal, abnormal, "mean_then_norm") for normal, abnormal in halves]
        return torch.stack(states), F.normalize(sentences, dim=-1)

    def logits(self, tokens: Tensor, text: Tensor) -> Tensor:
        """Returns the logits `[B, N, 2]` of tokens `[B, N, D]`, not necessarily normalised."""
        return similarity_logits(F.normalize(tokens, dim=-1), text, self.temperature)

    def patches(self, features: ClipFeatures) -> Tensor:
        """Returns the V-V patches in the joint space, `[B, N, D]`."""
        return self.backbone.project(features.vv_tokens[0][:, 1:]).float()

    def image_score(self, features: ClipFeatures, batch: Batch, text: Tensor) -> Tensor:
        """Returns the probability of the class token, `[B]`. With `augment` it is the mean over the views."""
        assert features.image_embedding is not None  # requested by the spec
        embeddings = [features.image_embedding]
        if self.augment:
            embeddings += [self._embed_view(view) for view in islice(augmented_views(batch.image), 1, None)]
        return anomaly_probability(self.logits(torch.stack(embeddings, dim=1), text)).mean(dim=1)

    def _embed_view(self, view: Tensor) -> Tensor:
        embedding = self.backbone.encode_image(view, self.view_spec).image_embedding
        assert embedding is not None
        return embedding

    def noise(self, samples: Sequence[Sample], shape: Sequence[int]) -> Iterator[Tensor]:
        """Yields the noise of each step, `[B, *shape]`. Each image has its own random generator."""
        streams = [generator_of(sample, self.seed) for sample in samples]
        while True:
            drawn = [stream.standard_normal(tuple(shape), dtype=np.float32) for stream in streams]
            yield self.noise_std * torch.from_numpy(np.stack(drawn))

    def adapt(self, samples: Sequence[Sample], patches: Tensor, text: Tensor, sentences: Tensor) -> BatchAdapters:
        """Returns the trained adapters of a batch.

        The soft loss is the entropy of the patches' probabilities. The hard loss labels patches as normal and their
        noisy copies as abnormal.

        Args:
            samples: The images.
            patches: `[B, N, D]`, patches of the images.
            text: `[B, 2, D]`.
            sentences: `[B, K, D]`.

        Reference: AnoVL, test-time adaptation; the code's weights.
        """
        noise = self.noise(samples, patches.shape[1:])

        def loss(adapters: BatchAdapters, patches: Tensor, text: Tensor) -> Tensor:
            clean = self.logits(adapters(patches), text).log_softmax(dim=-1)
            noisy = self.logits(adapters(patches + next(noise).to(patches.device)), text).log_softmax(dim=-1)
            soft = -(clean.exp() * clean).sum(dim=-1)
            hard = -noisy[..., 1] - clean[..., 0]
            return (soft + self.hard_weight * hard).mean(dim=1)

        return self.adapter.train_each(loss, (patches, text), sentences if self.adapts_to_prompts else None)

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the class token's score over the views, and the map of the patches, adapted if `steps` is above 0."""
        text, sentences = self.text(batch.samples)
        patches = self.patches(features)
        if self.adapter.steps:
            patches = self.adapt(batch.samples, patches, text, sentences)(patches).detach()
        probability = anomaly_probability(self.logits(patches, text)).unflatten(1, features.grid)
        return AnomalyPrediction(
            self.image_score(features, batch, text), pool_and_upsample(probability, self.spec.image_size)
        )
