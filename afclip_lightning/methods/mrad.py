"""MRAD: retrieval from a memory of labelled keys of an auxiliary dataset. No text."""

from collections.abc import Iterable
from itertools import chain
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Adam

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.arguments import require_not_negative, require_one_of, require_positive
from afclip_lightning.components.losses import dice_loss, two_class_focal_loss
from afclip_lightning.components.retrieval import most_alike, neighbourhood_mean, region_means, retrieve, sampled
from afclip_lightning.components.schedule import cosine, set_rates
from afclip_lightning.components.scoring import mean_of_highest_pixels, upsample, upsample_and_smooth
from afclip_lightning.distributed import batch_mean, gathered
from afclip_lightning.methods.base import AnomalyMethod, OptimizerFactory
from afclip_lightning.types import UNKNOWN, AnomalyPrediction, Batch, ClipFeatures
from afclip_runtime.errors import DatasetError

Variant = Literal["TF", "FT"]
MEMORY = ("normal_images", "anomalous_images", "normal_patches", "anomalous_patches")
KEYS_AT_START = 4  # of each kind


def adam_of_mrad(parameters: Iterable[Tensor]) -> Adam:
    """Returns the optimiser of the official code. Run folders record it by name."""
    return Adam(parameters, lr=4e-4, betas=(0.5, 0.999))


class Queries(NamedTuple):
    """Queries of a batch: images `[B, D]` and their patches `[B, N, C]`, L2-normalised, float32."""

    image: Tensor
    patches: Tensor


class ImageKeys(NamedTuple):
    """Keys of one image in the memory: its path, and its keys by their place in `MEMORY`."""

    path: str
    keys: dict[int, Tensor]


class MRAD(AnomalyMethod):
    """MRAD: a memory of labelled keys, image by image and region by region, built from the auxiliary dataset by `fit`.

    The probability that a query is anomalous is the mean of the labels of the keys, weighted by a softmax of their
    similarities. The temperature is 1, so that probabilities differ by a few hundredths from the share of anomalous
    keys. Half precision, or another temperature, gives another method. The memory has one key per image of the
    auxiliary dataset, and one or two keys of its patches: the mean of the anomalous and of the normal patches, averaged
    over neighbourhoods. Image keys are class tokens of the original path, and patches come from the V-V path.

    `TF` compares queries and keys as they are: `fit` reads the auxiliary dataset once, and nothing is trained. `FT`
    trains a linear map of the queries and one of the keys, for images and for patches, in one epoch over the same
    images. The keys most similar to a query are hidden in training, because the image's own keys are among them.

    Untrained, the memory has a few random keys, as other heads start with random weights.

    Differs: the maps of the keys have no bias. A softmax does not depend on it, its gradient is 0, and the official
    code changes it by rounding noise only. It is 1,536 of the code's 2,755,584 parameters for ViT-L/14. Masks are
    binary at input size. The code resizes them bilinearly. The code's builder fails on a last batch of one image.
    MRAD-CLIP, with prompts, is not built. The paper's text was not at hand: all rules are the official code's
    (1cc1c6b). `memory_size` and `neighbours` are ours.

    Args:
        backbone: The frozen CLIP, or any vision tower whose blocks the V-V path runs on.
        optimizer: Function that builds the optimiser of the linear maps.
        variant: `FT` or `TF`.
        layer: Tapped block of the V-V path, counted from 1.
        vv_from: First block of the V-V path.
        memory_size: Maximum number of image keys, and of patch keys. With more, this number is sampled with a fixed
            seed, and each label keeps its share.
        neighbours: Number of most similar keys that a query is compared with. `None` means all.
        hidden_images: Share of the image keys, the most similar ones, that a query does not see in training.
        hidden_patches: The same share of the patch keys.
        temperature: Divisor of the image's probabilities in the cross entropy.
        final_lr: Learning rate at the end of training. It is reached on a half cosine, step by step.
        image_weight: Weight of the probability of the image in its score, from 0 to 1. The highest values of the map
            have `1 - image_weight`.
        top_pixels: Share of the pixels that count as the highest values of the map.
        map_sigma: Standard deviation of the Gaussian filter of the final map, in pixels. 0 does not filter.

    Attributes:
        normal_images: Keys of normal images, `[K, D]`, L2-normalised. The other three kinds of keys have the same form.

    Raises:
        ValueError: An argument is out of its range.

    Reference: MRAD (arXiv 2602.00522, ICLR 2026); the official code.
    """

    title = "MRAD-TF, MRAD-FT"
    paper = "xu2026mrad"
    official_code = "CROVO1026/MRAD"
    parity = "equal to the official code; MRAD-CLIP is not built"
    fixed_by_training = ("variant", "neighbours")
    rows_from_training: ClassVar[tuple[str, ...]] = MEMORY
    normal_images: Tensor
    anomalous_images: Tensor
    normal_patches: Tensor
    anomalous_patches: Tensor

    def __init__(
        self,
        backbone: ClipBackbone,
        optimizer: OptimizerFactory = adam_of_mrad,
        variant: Variant = "FT",
        layer: int = 24,
        vv_from: int = 2,
        memory_size: int | None = None,
        neighbours: int | None = None,
        hidden_images: float = 0.05,
        hidden_patches: float = 0.2,
        temperature: float = 0.07,
        final_lr: float = 1e-6,
        image_weight: float = 0.7,
        top_pixels: float = 0.01,
        map_sigma: float = 4.0,
    ) -> None:
        require_one_of(Variant, variant=variant)
        if (memory_size is not None and memory_size < 2) or (neighbours is not None and neighbours < 1):
            raise ValueError(
                f"memory_size must be at least 2 and neighbours at least 1, got {memory_size}, {neighbours}"
            )
        for name, value in {"hidden_images": hidden_images, "hidden_patches": hidden_patches}.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be from 0 to below 1, got {value}")
        require_not_negative(final_lr=final_lr, map_sigma=map_sigma)
        require_positive(temperature=temperature)
        if not 0 <= image_weight <= 1 or not 0 < top_pixels <= 1:
            raise ValueError(
                f"image_weight must be in [0, 1] and top_pixels in (0, 1], got {image_weight}, {top_pixels}"
            )
        spec = backbone.spec(vv_layers=[layer], vv_from=vv_from, image_embedding=True)
        super().__init__(backbone, spec, optimizer)
        self.save_hyperparameters(ignore=["backbone", "optimizer"], logger=False)
        self.variant: Variant = variant
        self.memory_size = memory_size
        self.neighbours = neighbours
        self.hidden_images = hidden_images
        self.hidden_patches = hidden_patches
        self.temperature = temperature
        self.final_lr = final_lr
        self.image_weight = image_weight
        self.top_pixels = top_pixels
        self.map_sigma = map_sigma
        embedding, width = backbone.embed_dim, backbone.vision.width
        if variant == "FT":
            self.image_query = nn.Linear(embedding, embedding)
            self.image_key = nn.Linear(embedding, embedding, bias=False)
            self.patch_query = nn.Linear(width, embedding)
            self.patch_key = nn.Linear(width, embedding, bias=False)
        for name, channels in zip(MEMORY, (embedding, embedding, width, width), strict=True):
            self.register_buffer(name, F.normalize(torch.randn(KEYS_AT_START, channels), dim=-1))

    def patches(self, features: ClipFeatures) -> Tensor:
        """Returns the patches of the V-V path, averaged over neighbourhoods, `[B, N, C]`, not normalised."""
        tokens = self.backbone.vision.normalise(features.vv_tokens[0][:, 1:].float())
        return neighbourhood_mean(tokens, features.grid)

    def images(self, features: ClipFeatures) -> Tensor:
        """Returns the class tokens in the joint space, `[B, D]`, L2-normalised."""
        assert features.class_token is not None  # requested by the spec
        return self.backbone.embed_tokens(features.class_token, final_norm=False)

    def queries(self, features: ClipFeatures) -> Queries:
        """Returns the queries of a batch."""
        with torch.autocast(self.device.type, enabled=False):
            return Queries(self.images(features), F.normalize(self.patches(features), dim=-1))

    def probabilities(self, queries: Queries, hide: bool = False) -> tuple[Tensor, Tensor]:
        """Returns the probabilities that images `[B]` and patches `[B, N]` are anomalous.

        Args:
            queries: Queries of a batch.
            hide: Whether the most similar keys are hidden, as in training.
        """
        image, patches = queries
        levels = [
            (image, self.normal_images, self.anomalous_images, self.hidden_images),
            (patches.flatten(0, 1), self.normal_patches, self.anomalous_patches, self.hidden_patches),
        ]
        found = []
        with torch.autocast(image.device.type, enabled=False):
            for (query, normal, anomalous, share), maps in zip(levels, self._maps(), strict=True):
                hidden = most_alike(query, torch.cat([normal, anomalous]), share) if hide and share else None
                # maps the query back instead of mapping the keys: the product is the same
                mapped = query if maps is None else maps[0](query) @ maps[1].weight
                found.append(retrieve(mapped, normal, anomalous, hidden, self.neighbours))
        return found[0], found[1].unflatten(0, patches.shape[:2])

    def _maps(self) -> tuple[tuple[nn.Linear, nn.Linear] | None, ...]:
        """Returns the linear maps of queries and keys, of images and of patches; `None` for `TF`."""
        if self.variant == "TF":
            return None, None
        return (self.image_query, self.image_key), (self.patch_query, self.patch_key)

    def loss(self, features: ClipFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns focal and Dice loss of the map, cross entropy of the image, and `total`, their sum.

        Images whose mask is not known take part in the image term only.
        """
        if self.variant == "TF":
            return super().loss(features, batch)
        known, labelled = batch.known, batch.labelled
        image, patches = self.probabilities(self.queries(features), hide=True)
        pixels = upsample(patches[known].unflatten(1, features.grid), self.spec.image_size)
        mask = batch.mask[known]
        logits = (2 * image[labelled] - 1) / self.temperature  # probabilities of two classes, used as logits
        label = batch.label[labelled].float()
        terms = {
            "focal": two_class_focal_loss(pixels, mask),
            "dice": dice_loss(pixels, mask),
            "image_ce": batch_mean(F.binary_cross_entropy_with_logits(logits, label, reduction="none")),
        }
        return {"total": terms["focal"] + terms["dice"] + terms["image_ce"], **terms}

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the image score `[B]` and the map `[B, H, W]`. Both are probabilities.

        The score combines the probability of the image and the highest values of the map.
        """
        image, patches = self.probabilities(self.queries(features))
        anomaly_map = upsample_and_smooth(patches.unflatten(1, features.grid), self.spec.image_size, self.map_sigma)
        highest = mean_of_highest_pixels(anomaly_map, self.top_pixels)
        return AnomalyPrediction(self.image_weight * image + (1 - self.image_weight) * highest, anomaly_map)

    def on_train_start(self) -> None:
        """Builds the memory from the training set. If training resumes, the checkpoint has it.

        Raises:
            DatasetError: The training set has no normal or no anomalous image.
        """
        if self.trainer.ckpt_path is None:
            self.keep_keys(chain.from_iterable(gathered(list(self._read(self.training_batches())))))

    def _read(self, loader: Iterable[Batch]) -> Iterable[ImageKeys]:
        for batch in loader:
            on_device = batch.to(self.device)
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                features = self.features_of(on_device)
            yield from self.keys_of(features, on_device)

    @torch.no_grad()
    def keys_of(self, features: ClipFeatures, batch: Batch) -> list[ImageKeys]:
        """Returns the keys of each image of a batch for the memory, on the CPU."""
        with torch.autocast(self.device.type, enabled=False):
            image = self.images(features).cpu()
            means, there = region_means(self.patches(features), batch.mask, features.grid)
            regions, there = F.normalize(means, dim=-1).cpu(), there.cpu()
        found = []
        for row, sample in enumerate(batch.samples):
            keys = {sample.label: image[row]} if sample.label != UNKNOWN else {}
            if sample.mask_known:
                keys |= {2 + kind: regions[row, kind] for kind in (0, 1) if there[row, kind]}
            found.append(ImageKeys(str(sample.image_path), keys))
        return found

    def keep_keys(self, images: Iterable[ImageKeys]) -> None:
        """Replaces the memory by the keys of these images, in the order of their paths.

        Raises:
            DatasetError: No image is normal, or no image is anomalous.
        """
        kinds: list[list[Tensor]] = [[] for _ in MEMORY]
        for _, keys in sorted(images, key=lambda image: image.path):
            for kind, key in keys.items():
                kinds[kind].append(key)
        for kind, what in enumerate(("normal", "anomalous")):
            if not kinds[kind]:
                raise DatasetError(
                    f"MRAD's memory needs normal and anomalous images: the training set has no {what} one."
                )
        if not kinds[3]:
            rank_zero_warn("No training image has an anomalous region that fills a patch: all maps will be 0.")
        rows = [
            torch.stack(keys) if keys else getattr(self, name)[:0].cpu()
            for name, keys in zip(MEMORY, kinds, strict=True)
        ]
        kept = (*sampled(rows[0], rows[1], self.memory_size), *sampled(rows[2], rows[3], self.memory_size))
        for name, one in zip(MEMORY, kept, strict=True):
            setattr(self, name, one.to(self.device))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        """Sets the learning rate of the step; ends training if nothing is trained."""
        if self.variant == "TF":
            return -1
        steps, made = self.trainer.estimated_stepping_batches, self.trainer.global_step
        last, done = self.final_lr, made / steps
        set_rates(self.trainer.optimizers, lambda first: cosine(first, min(first, last), done))
        return None
