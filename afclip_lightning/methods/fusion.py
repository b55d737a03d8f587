"""Several heads as one: each is standardised by its values on normal images."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.spec import union
from afclip_lightning.components.memory import Key
from afclip_lightning.distributed import gathered
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.methods.beside import zero_shot
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures
from afclip_runtime.errors import DatasetError, UserError

NO_SPREAD = 1e-6  # relative to the location; a smaller spread is rounding


class Fusion(AnomalyMethod):
    """The weighted mean of several heads, each standardised by its values on normal images.

    Heads have different scales: probabilities, distances, or standard deviations of a memory. A plain sum is decided by
    the head with the largest spread. `scale` is the standard deviation over normal images, of scores and of map values.
    Each head therefore contributes the same noise, and a head that often finds defects in normal images counts less.
    The ranking of images depends on `scale` only. It is the deviation within categories, because images are ranked
    within their category. `location`, the mean, moves normal images to 0. Quantiles in the tail would tell more about
    false alarms, but few images do not have them.

    Heads may be trained already. `head fuse` makes a fusion of checkpoints and holds their tensors itself. It takes the
    two statistics from folders of normal images, of a product or of the auxiliary dataset. If no head has to be
    trained, `fit` takes them from the normal images of the auxiliary dataset and trains nothing. Test images are not
    used.

    Unfitted, it is the mean of the heads without standardisation.

    The rule is ours. Measurements are in experiments/fusion.

    Args:
        backbone: The frozen CLIP.
        heads: Per head, `method`, the name of a zero-shot method, and `arguments` of its constructor.
        weights: Weights of the heads, in their order. They are equal by default.

    Attributes:
        heads: The methods, which share the backbone and one pass.
        location: Mean on normal images, `[heads, 2]`, of scores and of map values.
        scale: Standard deviation within a category, `[heads, 2]`, in the same order.

    Raises:
        ValueError: There are fewer than two heads, they cannot share a pass, one needs more than an image, or a weight
            is not positive.
        UserError: A head rejects its arguments.
    """

    title = "Fusion"
    parity = "a rule of this project: several heads as one, `afclip head fuse`"
    fixed_by_training = ("heads",)
    location: Tensor
    scale: Tensor
    weights: Tensor

    def __init__(self, backbone: ClipBackbone, heads: list[dict[str, Any]], weights: list[float] | None = None) -> None:
        if len(heads) < 2:
            raise ValueError(f"heads: a fusion needs two or more heads, got {len(heads)}")
        built = []
        for head in heads:
            if not isinstance(head.get("method"), str) or head.keys() - {"method", "arguments"}:
                raise ValueError(f"heads: each needs the name of a method, and may have arguments; got {head!r}")
            built.append(zero_shot(head["method"], backbone, head.get("arguments") or {}, "others"))
        weights = [1.0] * len(built) if weights is None else weights
        if len(weights) != len(built) or not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise ValueError(f"weights must be {len(built)} positive numbers, one per head, got {weights}")
        super().__init__(backbone, union([head.spec for head in built]), optimizer=None)
        self.save_hyperparameters(ignore=["backbone"], logger=False)
        self.heads = nn.ModuleList(built)
        self.needs_class_name, self.needs_pixels, self.changes_blocks = (  # type: ignore[misc]  # if any head does
            any(getattr(head, name) for head in built)
            for name in ("needs_class_name", "needs_pixels", "changes_blocks")
        )
        self.register_buffer("location", torch.zeros(len(built), 2))
        self.register_buffer("scale", torch.ones(len(built), 2))
        self.register_buffer("weights", torch.tensor(weights) / sum(weights), persistent=False)

    @property
    def members(self) -> list[AnomalyMethod]:
        """Returns the heads, in their order."""
        return list(self.heads)  # type: ignore[arg-type]  # all of them are methods

    def on_evaluation_start(self) -> None:
        """Prepares each head."""
        super().on_evaluation_start()
        for head in self.members:
            head.on_evaluation_start()

    def on_evaluation_end(self) -> None:
        """Drops what each head prepared."""
        super().on_evaluation_end()
        for head in self.members:
            head.on_evaluation_end()

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the fused score `[B]` and map `[B, H, W]`, in standard deviations; normal images have about 0."""
        said = [head.predict_from(features, self.spec, batch) for head in self.members]
        scores, maps = torch.zeros_like(said[0].pred_score), torch.zeros_like(said[0].anomaly_map)
        for one, (of_score, of_map), scale, weight in zip(said, self.location, self.scale, self.weights, strict=True):
            scores = scores + weight * (one.pred_score - of_score) / scale[0]
            maps = maps + weight * (one.anomaly_map - of_map) / scale[1]
        return AnomalyPrediction(scores, maps)

    @torch.no_grad()
    def statistics_of(self, features: ClipFeatures, batch: Batch) -> Tensor:
        """Returns score, mean of the map and mean square of the map, per image and head, `[B, heads, 3]`, float64."""
        rows = []
        for head in self.members:
            said = head.predict_from(features, self.spec, batch)
            pixels = said.anomaly_map.double().flatten(1)
            rows.append(torch.stack([said.pred_score.double(), pixels.mean(dim=1), pixels.square().mean(dim=1)], dim=1))
        return torch.stack(rows, dim=1)

    def take_normal(self, groups: Sequence[Tensor]) -> None:
        """Sets location and scale from the results of `statistics_of` for normal images.

        Args:
            groups: `[n, heads, 3]` per category.

        Raises:
            DatasetError: No category has two normal images.
            UserError: A head gives all of them the same score or map.
        """
        if not any(len(group) > 1 for group in groups):
            raise DatasetError("A fusion needs at least two normal images of one category for its scales. Add some.")
        every = torch.cat([*groups])
        location = every[..., :2].mean(dim=0)
        within = torch.stack([(group[..., 0] - group[..., 0].mean(dim=0)).square().sum(dim=0) for group in groups])
        of_scores = within.sum(dim=0) / (len(every) - len(groups))
        spread = [len(group) * (group[..., 2].mean(dim=0) - group[..., 1].mean(dim=0).square()) for group in groups]
        of_maps = torch.stack(spread).sum(dim=0) / len(every)
        scale = torch.stack([of_scores, of_maps], dim=1).clamp(min=0).sqrt()
        for index, flat in enumerate((scale <= NO_SPREAD * location.abs()).tolist()):
            if any(flat):
                raise UserError(
                    f"{type(self.members[index]).__name__}, head {index + 1}, gives all normal images the same "
                    "score or map, so it has no scale: leave it out, or give images that differ."
                )
        self.location, self.scale = location.to(self.location), scale.to(self.scale)

    def on_train_start(self) -> None:
        """Takes location and scale from the training set's normal images, unless they came with a checkpoint.

        Raises:
            UserError: A head has to be trained first.
            DatasetError: There are too few normal images.
        """
        if names := [type(head).__name__ for head in self.members if head.learnt_names()]:
            raise UserError(
                f"Fusion trains no head, and {', '.join(names)} has to be trained: fit it by itself, and make a fusion "
                "of its checkpoint with the command `head fuse`."
            )
        if self.trainer.ckpt_path is None:
            found: dict[Key, list[tuple[str, Tensor]]] = defaultdict(list)
            for part in gathered(self._read(self.training_batches())):
                for key, path, said in part:
                    found[key].append((path, said))
            ordered = [sorted(group, key=lambda one: one[0]) for _, group in sorted(found.items())]
            self.take_normal([torch.stack([said for _, said in group]) for group in ordered])

    def _read(self, loader: Iterable[Batch]) -> list[tuple[Key, str, Tensor]]:
        """Returns the results of `statistics_of` for the normal images of a loader, on the CPU."""
        found = []
        self.eval()  # stays in evaluation mode: nothing is trained
        self.on_evaluation_start()
        for batch in loader:
            on_device = batch.to(self.device)
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                said = self.statistics_of(self.features_of(on_device), on_device).cpu()
            rows = zip(batch.keys, batch.samples, said, strict=True)
            found += [(key, str(sample.image_path), one) for key, sample, one in rows if sample.label == 0]
        self.on_evaluation_end()
        return found

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int:
        """Ends training, since nothing is trained."""
        return -1
