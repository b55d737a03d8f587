"""AA-CLIP: residual adapters, first in the text tower and then in the vision tower: two stages of one fit."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from afclip_lightning.backbones.attention import run_block, value_block
from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.adapters import ResidualAdapter, unbiased_projection
from afclip_lightning.components.arguments import require_layers, require_not_negative, require_one_of, require_weights
from afclip_lightning.components.losses import image_cross_entropy, map_losses
from afclip_lightning.components.ranges import Ranges, merged, ranges_of, scaled
from afclip_lightning.components.scoring import anomaly_probability, blur, similarity_logits, upsample
from afclip_lightning.components.text_anchors import TextAnchors
from afclip_lightning.data.whole_test_set import WholeTestSet
from afclip_lightning.distributed import batch_mean, processes, total
from afclip_lightning.methods.base import AnomalyMethod, OptimizerFactory, UsesTestSet
from afclip_lightning.prompts.ensemble import CategoryText
from afclip_lightning.prompts.templates import (
    AACLIP_ABNORMAL,
    AACLIP_NAMES,
    AACLIP_NORMAL,
    AACLIP_TEMPLATES,
    sentences,
)
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures, Sample

Rule = Literal["paper", "code"]
MapFusion = Literal["tokens", "maps"]
ImageScore = Literal["mean", "scaled", "map"]
Names = Literal["description", "class_name", "category"]


def image_adam(parameters: Iterable[Tensor]) -> Adam:
    """Returns the optimiser of AA-CLIP's visual stage. Run folders record it by name."""
    return Adam(parameters, lr=5e-4, betas=(0.5, 0.999))


class AACLIP(AnomalyMethod):
    """AA-CLIP: text anchors for normal and abnormal, then patches that are aligned with them.

    Stage 1, the first `text_epochs` epochs of a fit, trains adapters after the first blocks of the text tower and a
    projection that replaces its own. They separate the two states, with the frozen vision tower and V-V attention.
    Stage 2, the other epochs, trains adapters after the first blocks of the vision tower and projections of patches,
    with the fixed texts. One optimiser holds both stages. Parameters of the other stage have no gradient. A fit resumes
    in either stage.

    Paper and code differ (issues 29, 33 and 38 of the code). By default stage 1 has the paper's loss, of class token
    and map, and the projected patches of the blocks are summed to one map. `configs/official/aaclip.yaml` has the
    code's choices: `text_stage: code`, which adds the class token to the patches, takes the last block only, squares a
    mean, and attends over the batch; `map_fusion: maps`, a map and a loss per block; and `image_score: scaled`.

    Differs: `image_score: mean` is ours, because the code's score needs all test images at once. In stage 1, the
    paper's `Proj` of frozen patches is read as the tower's own projection, and its cross entropy as one without
    temperature, like that of stage 2. The code augments training images and takes 32 per category. Here all are taken
    unchanged. Its batch sizes are 16 and 2. The configs accumulate 8 batches of 2 in stage 1. The paper's loss and
    fusion, and `mean`, have no recorded numbers.

    Args:
        backbone: The frozen CLIP.
        optimizer: Function that builds the optimiser of both stages from two groups of parameters; its rate is the
            visual stage's.
        layers: Tapped blocks, counted from 1.
        text_epochs: Epochs of stage 1. With 0, the text tower stays unchanged.
        text_lr: Learning rate of stage 1.
        milestones: Steps of stage 2 after which its learning rate falls.
        lr_decay: Factor of the learning rate at a milestone.
        text_adapters: K_T, number of blocks of the text tower with an adapter.
        image_adapters: K_I, number of blocks of the vision tower with an adapter.
        text_weight: Weight of the adapted token in the text tower, from 0 to 1.
        image_weight: Weight of the adapted token in the vision tower, from 0 to 1.
        projection_relu: Whether a leaky ReLU follows the projections of patches.
        vv_from: First block with V-V attention, in stage 1.
        text_stage: Loss of stage 1: that of the `paper` or of the `code`.
        disentangle_weight: Weight of the loss that keeps the states' texts orthogonal.
        map_fusion: Sum over the blocks: of `tokens` (the paper) or of `maps` (the code).
        image_score: `mean`, the mean of the image's own probability and the maximum of the map, in [0, 1];
            `scaled`, the same with both scaled over all test images of the category (the code, on industrial sets);
            `map`, the maximum of the map (the code, on medical sets).
        names: Name of a category in prompts: `description`, the code's words for MVTec AD's and VisA's, else the class
            name; `class_name` (`metal nut`); or `category` (`metal_nut`).
        temperature: Divisor of the cosine similarities of patches.
        blur_window: Side of the Gaussian window on the patches. The code has 9 on medical sets.
        blur_sigma: Standard deviation of the window in patches. The code has 1.5 on medical sets.

    Attributes:
        map_ranges: Range of the maps per category, with `scaled`. It is known during validate, test and predict.
        image_ranges: Range of the image values per category, in the same way.

    Raises:
        ValueError: An argument is out of its range.
        WeightsError: V-V attention cannot run on the blocks of the tower.

    Reference: AA-CLIP (Ma et al., 2025, arXiv 2503.06661), Eq. (4) and (7), with the numbers of its public code
    (Mwxinnn/AA-CLIP, 53db195).
    """

    title = "AA-CLIP"
    paper = "ma2025aaclip"
    official_code = "Mwxinnn/AA-CLIP"
    parity = (
        "equal to the official code with `configs/official/aaclip.yaml`; the paper's loss and fusion are the default"
    )
    needs_class_name: ClassVar[bool] = True
    needs_pixels: ClassVar[bool] = True  # the blocks run in `loss` and `score`
    changes_blocks: ClassVar[bool] = True
    uses_test_set: ClassVar[UsesTestSet] = "with image_score: scaled"
    fixed_by_training = ("text_weight", "image_weight", "projection_relu", "map_fusion", "names", "temperature")

    def __init__(
        self,
        backbone: ClipBackbone,
        optimizer: OptimizerFactory = image_adam,
        layers: Sequence[int] = (6, 12, 18, 24),
        text_epochs: int = 5,
        text_lr: float = 1e-5,
        milestones: Sequence[int] = (16000, 32000),
        lr_decay: float = 0.5,
        text_adapters: int = 3,
        image_adapters: int = 6,
        text_weight: float = 0.1,
        image_weight: float = 0.1,
        projection_relu: bool = False,
        vv_from: int = 6,
        text_stage: Rule = "paper",
        disentangle_weight: float = 0.1,
        map_fusion: MapFusion = "tokens",
        image_score: ImageScore = "mean",
        names: Names = "description",
        temperature: float = 0.01,
        blur_window: int = 7,
        blur_sigma: float = 1.0,
    ) -> None:
        require_layers(layers)
        require_not_negative(text_epochs=text_epochs, disentangle_weight=disentangle_weight)
        super().__init__(backbone, backbone.spec(layers), optimizer)
        require_one_of(Rule, text_stage=text_stage)
        require_one_of(MapFusion, map_fusion=map_fusion)
        require_one_of(ImageScore, image_score=image_score)
        require_one_of(Names, names=names)
        if temperature <= 0 or text_lr <= 0 or blur_sigma <= 0 or blur_window < 1 or blur_window % 2 == 0:
            raise ValueError(
                "temperature, text_lr and blur_sigma must be positive and blur_window odd, got "
                f"{temperature}, {text_lr}, {blur_sigma} and {blur_window}"
            )
        for name, count, depth in (
            ("text_adapters", text_adapters, backbone.text.depth),
            ("image_adapters", image_adapters, backbone.vision.depth),
        ):
            if not 0 <= count <= depth:
                raise ValueError(f"{name} must be within 0 to {depth}, the tower's blocks, got {count}")
        require_weights(text_weight=text_weight, image_weight=image_weight)
        self.save_hyperparameters(ignore=["backbone", "optimizer"], logger=False)
        backbone.spec(vv_layers=[backbone.vision.depth], vv_from=1)  # raises if V-V attention cannot run on this tower
        self.text_epochs = text_epochs
        self.text_lr = text_lr
        self.milestones = tuple(milestones)
        self.lr_decay = lr_decay
        self.projection_relu = projection_relu
        self.vv_from = vv_from
        self.text_stage: Rule = text_stage
        self.disentangle_weight = disentangle_weight
        self.map_fusion: MapFusion = map_fusion
        self.image_score: ImageScore = image_score
        self.names: Names = names
        self.temperature = temperature
        self.blur_window, self.blur_sigma = blur_window, blur_sigma
        vision, joint = backbone.vision.width, backbone.embed_dim
        self.text_anchors = TextAnchors(backbone, _sentences, text_adapters, text_weight, trained=text_epochs > 0)
        self.image_adapters = nn.ModuleList(ResidualAdapter(vision, image_weight) for _ in range(image_adapters))
        self.patch_projections = nn.ModuleList(unbiased_projection(vision, joint) for _ in layers)
        self.image_projection = unbiased_projection(vision, joint)
        self.text = CategoryText(self._embed_fixed)
        self.map_ranges: Ranges = {}
        self.image_ranges: Ranges = {}

    @property
    def in_text_stage(self) -> bool:
        """Returns whether the current epoch is in stage 1."""
        return self.current_epoch < self.text_epochs

    @property
    def needs_test_set(self) -> bool:
        """Returns whether `image_score` is `scaled`; see the base class."""
        return self.image_score == "scaled"

    def extract(self, batch: Batch) -> ClipFeatures:
        """Returns the grid without features, because the tower runs with its adapters in `loss` and `score`."""
        return ClipFeatures((), self.backbone.grid)

    # --- texts

    def name_of(self, sample: Sample) -> str:
        """Returns the name of a sample's category in prompts."""
        if self.names == "category":
            return sample.category
        described = AACLIP_NAMES.get(sample.dataset.removesuffix("_seen"), {}) if self.names == "description" else {}
        return described.get(sample.category, sample.class_name)

    def _embed_fixed(self, sample: Sample) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            texts: Tensor = self.text_anchors(self.backbone, [self.name_of(sample)])
            return texts[0]

    # --- stage 1

    @torch.no_grad()
    def frozen_tokens(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns each layer's patches `[B, N, D]` after V-V attention, and the class token `[B, D]`, L2-normalised.

        Args:
            image: `[B, 3, H, W]`, normalised.
        """
        across = self.text_stage == "code"

        def step(number: int, block: nn.Module, tokens: Tensor, rotation: Tensor | None) -> Tensor:
            if number < self.vv_from:
                return run_block(block, tokens, rotation)
            return value_block(block, tokens, over_batch=across)

        values = self.backbone.encode_adapted(image, self.spec, step)
        plain = self.backbone.encode_image(image, self.backbone.spec(image_embedding=True))
        assert plain.image_embedding is not None
        patches = [self.backbone.embed_tokens(tokens[:, 1:]) for tokens in values.tokens]
        return patches, F.normalize(plain.image_embedding.float(), dim=-1)

    def _text_loss(self, batch: Batch) -> dict[str, Tensor]:
        patches, image = self.frozen_tokens(batch.image)
        names = [self.name_of(sample) for sample in batch.samples]
        known = sorted(set(names))
        text = self.text_anchors(self.backbone, known)[[known.index(name) for name in names]]  # [B, 2, D]
        terms: dict[str, Tensor] = {}
        if self.text_stage == "paper":
            terms["image_ce"] = self._image_loss(similarity_logits(image[:, None], text, 1.0)[:, 0], batch)
            patches = [F.normalize(torch.stack(patches).sum(0), dim=-1)]
        else:
            patches = [patches[-1] + image[:, None]]
        terms |= self._map_losses(patches, text, batch)
        with torch.autocast(text.device.type, enabled=False):
            overlap = (text[:, 0] * text[:, 1]).sum(-1)
            if self.text_stage == "paper":
                disentangle = batch_mean(overlap.square())
            else:  # this process's share of a squared mean, with its gradient
                share = batch_mean(overlap)
                mean = total(share) / processes()
                disentangle = 2 * mean * share - mean.square()
        aligned = torch.stack(list(terms.values())).sum()
        return {"total": aligned + self.disentangle_weight * disentangle, **terms, "disentangle": disentangle}

    # --- stage 2 and test

    def adapted_tokens(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns the projected patches `[B, N, D]`, L2-normalised, one tensor per map, and the image `[B, D]`.

        Args:
            image: `[B, 3, H, W]`, normalised.
        """

        def step(number: int, block: nn.Module, tokens: Tensor, rotation: Tensor | None) -> Tensor:
            tokens = run_block(block, tokens, rotation)
            return self.image_adapters[number - 1](tokens) if number <= len(self.image_adapters) else tokens

        tapped = self.backbone.encode_adapted(image, self.spec, step).tokens
        with torch.autocast(image.device.type, enabled=False):  # a logit is 100 times a cosine
            normed = [self.backbone.vision.normalise(tokens[:, 1:].float()) for tokens in tapped]
            patches = [self._project(layer, x) for layer, x in zip(self.patch_projections, normed, strict=True)]
            if self.map_fusion == "tokens":
                patches = [torch.stack(patches).sum(0)]
            of_image = F.normalize(self._project(self.image_projection, normed[-1]), dim=-1).mean(dim=1)
            return [F.normalize(layer, dim=-1) for layer in patches], of_image

    def _project(self, layer: nn.Module, tokens: Tensor) -> Tensor:
        projected: Tensor = layer(tokens)
        return F.leaky_relu(projected) if self.projection_relu else projected

    def _image_stage_loss(self, batch: Batch) -> dict[str, Tensor]:
        text = self.text(batch.samples)
        patches, image = self.adapted_tokens(batch.image)
        terms = {"image_ce": self._image_loss(similarity_logits(image[:, None], text, 1.0)[:, 0], batch)}
        terms |= self._map_losses(patches, text, batch)
        return {"total": torch.stack(list(terms.values())).sum(), **terms}

    def _image_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        labelled = batch.labelled
        return image_cross_entropy(logits[labelled], batch.label[labelled])

    def patch_maps(self, patches: Sequence[Tensor], text: Tensor) -> Tensor:
        """Returns the abnormal minus the normal logit of each patch, `[maps, B, h, w]`.

        Args:
            patches: `[B, N, D]` per map.
            text: `[B, 2, D]`.
        """
        logits = torch.stack([similarity_logits(layer, text, self.temperature) for layer in patches])
        return logits.diff(dim=-1)[..., 0].unflatten(-1, self.backbone.grid)

    def _map_losses(self, patches: Sequence[Tensor], text: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Returns focal and Dice losses, each summed over the maps. Images without a known mask are left out."""
        known, terms = batch.known, dict[str, Tensor]()
        for patch_map in self.patch_maps(patches, text):
            pixels = upsample(patch_map[known], self.spec.image_size, align_corners=True).sigmoid()
            for name, term in map_losses(pixels, batch.mask[known]).items():
                terms[name] = terms[name] + term if name in terms else term
        return terms

    def loss(self, features: ClipFeatures, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss terms of the current stage and their weighted sum `total`.

        Reference: AA-CLIP, Eq. (4); the official code for stage 2.
        """
        terms = self._text_loss(batch) if self.in_text_stage else self._image_stage_loss(batch)
        if processes() > 1:  # processes expect a gradient of every parameter, also of the other stage
            for idle in self._of_stage(not self.in_text_stage):
                terms["total"] = terms["total"] + 0 * idle.sum()
        return terms

    def measured(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the maps `[B, H, W]`, not bounded, and the images' logits `[B, 2]`.

        A map is half the difference of the logits plus 0.5; with `maps`, the maps of the layers are added up. As in the
        official code, there is no softmax, which would make large differences almost equal.
        """
        text = self.text(batch.samples)
        patches, image = self.adapted_tokens(batch.image)
        maps = self.patch_maps(patches, text)
        summed = blur(maps.sum(0), self.blur_window, self.blur_sigma)  # sum and blur are linear, like upsampling
        pixels = upsample(summed, self.spec.image_size, align_corners=True)
        return (pixels + len(maps)) / 2, similarity_logits(image[:, None], text, 1.0)[:, 0]

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the image score (see `image_score`) and the map, which is not bounded.

        Raises:
            DatasetError: With `scaled`, nothing was measured of a category.
        """
        maps, logits = self.measured(batch)
        highest = maps.amax(dim=(1, 2))
        if self.image_score == "map":
            return AnomalyPrediction(highest, maps)
        if self.image_score == "scaled":
            of_map = scaled(highest, batch, self.map_ranges)
            return AnomalyPrediction((of_map + scaled(_of_image(logits), batch, self.image_ranges)) / 2, maps)
        layers = 1 if self.map_fusion == "tokens" else len(self.patch_projections)
        probability = (2 * highest / layers - 1).sigmoid()  # from the mean of the layers' logits
        return AnomalyPrediction((anomaly_probability(logits) + probability) / 2, maps)

    # --- the test set, with `scaled`

    def observe(self, test_set: WholeTestSet) -> tuple[Ranges, Ranges]:
        """Returns the ranges of maps and of images over this process's part of the test images, by category."""
        with self.trainer.precision_plugin.forward_context():
            return self.measure(test_set)

    def measure(self, batches: Iterable[Batch]) -> tuple[Ranges, Ranges]:
        """Returns the lowest and the highest value of the maps, and of the images, by category."""
        of_maps: Ranges = {}
        of_images: Ranges = {}
        for batch in batches:
            batch = batch.to(self.device)
            maps, logits = self.measured(batch)
            image = _of_image(logits)
            of_maps = merged([of_maps, ranges_of(maps.amin(dim=(1, 2)), maps.amax(dim=(1, 2)), batch)])
            of_images = merged([of_images, ranges_of(image, image, batch)])
        return of_maps, of_images

    def take_observed(self, observed: Sequence[tuple[Ranges, Ranges]]) -> None:
        """Keeps the ranges over all test images."""
        self.map_ranges = merged([of_maps for of_maps, _ in observed])
        self.image_ranges = merged([of_images for _, of_images in observed])

    def on_evaluation_end(self) -> None:
        """Also drops the texts and the ranges of the pass."""
        super().on_evaluation_end()
        self.text.reset()
        self.map_ranges, self.image_ranges = {}, {}

    # --- training

    def _of_stage(self, text: bool) -> list[Tensor]:
        """Returns the parameters that train in stage 1, or those that train in stage 2."""
        trained = ((name, p) for name, p in self.named_parameters() if p.requires_grad)
        return [parameter for name, parameter in trained if name.startswith("text_") == text]

    def configure_optimizers(self) -> Optimizer | None:
        """Returns one optimiser with two groups of parameters: of stage 2, and of stage 1."""
        if self.optimizer is None:
            return None
        groups: list[dict[str, Any]] = [{"params": self._of_stage(False), "stage": "image"}]
        if of_text := self._of_stage(True):
            groups.append({"params": of_text, "stage": "text", "lr": self.text_lr})
        optimizer = self.optimizer(cast(Iterable[Tensor], groups))
        for group in optimizer.param_groups:
            group |= {"initial_lr": group["lr"], "steps": 0}  # kept with the optimiser, so that training can resume
        return optimizer

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Keeps the other stage's parameters fixed, and lowers the learning rate at its milestones."""
        stage = "text" if self.in_text_stage else "image"
        for group in optimizer.param_groups:
            if group["stage"] != stage:
                for parameter in group["params"]:
                    parameter.grad = None
            else:
                past = sum(group["steps"] >= milestone for milestone in self.milestones) if stage == "image" else 0
                group["lr"] = group["initial_lr"] * self.lr_decay**past
                group["steps"] += 1

    def on_fit_start(self) -> None:
        """Warns if no epoch is left for stage 2."""
        if self.text_epochs and (self.trainer.max_epochs or 0) in range(1, self.text_epochs + 1):
            rank_zero_warn(
                f"max_epochs is {self.trainer.max_epochs}, and the text stage takes {self.text_epochs}: the visual "
                "stage is not trained. Set trainer.max_epochs to the epochs of both, or text_epochs to fewer."
            )

    def on_train_epoch_start(self) -> None:
        """Drops the texts, which the previous epoch may have changed."""
        self.text.reset()

    def on_train_end(self) -> None:
        """Drops the texts."""
        self.text.reset()


def _of_image(logits: Tensor) -> Tensor:
    """Returns the image value of the official code, `[B]`: the similarity to the abnormal state, from 0 to 1."""
    return (logits[:, 1] + 1) / 2


def _sentences(class_name: str) -> tuple[list[str], list[str]]:
    """Returns a category's normal and abnormal sentences."""
    normal, abnormal = (sentences(states, AACLIP_TEMPLATES, class_name) for states in (AACLIP_NORMAL, AACLIP_ABNORMAL))
    return normal, abnormal
