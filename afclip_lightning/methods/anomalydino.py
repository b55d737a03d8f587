"""AnomalyDINO: distance to the nearest patches of a few normal images, in the foreground of an image."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.arguments import require_not_negative, require_one_of, require_shares
from afclip_lightning.components.foreground import Morphology, first_component, foreground
from afclip_lightning.components.memory import Key, MemoryBank
from afclip_lightning.components.retrieval import nearest
from afclip_lightning.components.rotation import rotated
from afclip_lightning.components.scoring import mean_of_highest, upsample_and_smooth
from afclip_lightning.data.whole_test_set import CategoryImages, WholeTestSet, share
from afclip_lightning.methods.base import AnomalyMethod, UsesTestSet
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures, Sample
from afclip_runtime.errors import DatasetError

EVERY = "*"  # every category, in a list of categories
MASKED = (
    *("capsule", "hazelnut", "pill", "screw", "toothbrush"),  # of MVTec AD
    *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2"),  # all of VisA
    *("pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"),
)
FEWEST_FOR_A_SHARE = 100  # patches; with fewer, the highest value counts
Place = tuple[str, str, str]  # dataset, category, path


class AnomalyDINO(AnomalyMethod):
    """AnomalyDINO: cosine distance of each patch to the nearest of a few normal images and their rotated copies.

    Nothing is trained. Patches are those of one block after the tower's final normalisation. In categories that are
    `masked`, background patches have distance 0. The background follows from the first principal component of the
    image's own patches. The image score is the mean of the highest 1 % of the distances, before upsampling and
    filtering. Distances are 1 minus the cosine, in [0, 2].

    With `k_shot: 0` it is the batched zero-shot method. An image is compared with the patches of all other test images
    of its category, without copies. The distance of a patch is the mean of its lowest 0.1 % of distances, at least of
    two. The patches of a category lie in memory, 4 I N C bytes for I images. Comparisons are exact, some thousand
    patches at a time.

    Differs: the code keeps the aspect ratio of each image. Here a run has one input size, for which `resize: trim` of
    the backbone is the code's rule (docs/sizes.md). Maps are filtered, and copies rotated, at that size. The code
    dilates the mask along the column of all patches, so that it leaks over the ends of rows: `morphology: column`. In
    the batched case the code gives NaN for fewer than 2,000 patches. The L2 metric is not built. Which categories are
    masked is the code's choice for MVTec AD and VisA. Others are masked only if `masked` names them. The paper's text
    was not at hand: the rules are the official code's (b3435f0).

    Args:
        backbone: The frozen tower: DINOv2 ViT-S/14 in the paper.
        layer: Tapped block, counted from 1. The last block by default.
        k_shot: Few-shot images per category. 0 is batched zero-shot.
        shot_seed: Seed of their random selection.
        rotations: Number of rotated copies per few-shot image, at equal angles of a full turn, including the image. 1
            means no further copy.
        rotated: Categories whose few-shot images are rotated. `*` means all (`agnostic` in the code; `informed`:
            hazelnut, screw).
        masked: Categories whose background is masked. `*` means all.
        mask_references: Whether their few-shot images are masked as well.
        mask_threshold: Threshold of the first component, in units of the tokens of DINOv2.
        morphology: Whether the mask is dilated and closed on the patch `grid`, or along the `column` of all patches.
        neighbours: Few-shot: number of nearest patches that a distance is averaged over.
        neighbour_share: Batched zero-shot: share of all patches that a distance is averaged over.
        top_patches: Share of the patches that the image score is averaged over. Of fewer than 100 patches the highest
            counts.
        map_sigma: Standard deviation of the Gaussian filter of the map, in pixels. 0 does not filter.

    Attributes:
        known: Batched zero-shot: distances of the patches of each test image.

    Raises:
        ValueError: An argument is out of its range.

    Reference: AnomalyDINO (arXiv 2405.14529, WACV 2025); the official code.
    """

    title = "AnomalyDINO"
    paper = "damm2025anomalydino"
    official_code = "dammsi/AnomalyDINO"
    parity = "equal to the official code; its mask is `morphology: column`"
    takes_few_shot: ClassVar[bool] = True
    uses_test_set: ClassVar[UsesTestSet] = "without few-shot images"
    memory: MemoryBank

    def __init__(
        self,
        backbone: ClipBackbone,
        layer: int | None = None,
        k_shot: int = 1,
        shot_seed: int = 0,
        rotations: int = 8,
        rotated: Sequence[str] = (EVERY,),
        masked: Sequence[str] = MASKED,
        mask_references: bool = False,
        mask_threshold: float = 10.0,
        morphology: Morphology = "grid",
        neighbours: int = 1,
        neighbour_share: float = 0.001,
        top_patches: float = 0.01,
        map_sigma: float = 4.0,
    ) -> None:
        require_not_negative(k_shot=k_shot, mask_threshold=mask_threshold, map_sigma=map_sigma)
        require_one_of(Morphology, morphology=morphology)
        if rotations < 1 or neighbours < 1:
            raise ValueError(f"rotations and neighbours must be at least 1, got {rotations} and {neighbours}")
        require_shares(neighbour_share=neighbour_share, top_patches=top_patches)
        super().__init__(backbone, backbone.spec([layer or backbone.vision.depth]), optimizer=None)
        self.save_hyperparameters(ignore=["backbone"], logger=False)
        self.k_shot = k_shot
        self.shot_seed = shot_seed
        self.rotations = rotations
        self.rotated = frozenset(rotated)
        self.masked = frozenset(masked)
        self.mask_references = mask_references
        self.mask_threshold = mask_threshold
        self.morphology: Morphology = morphology
        self.neighbours = neighbours
        self.neighbour_share = neighbour_share
        self.top_patches = top_patches
        self.map_sigma = map_sigma
        self.memory = MemoryBank()
        self.known: dict[Place, Tensor] = {}

    def patches(self, features: ClipFeatures) -> Tensor:
        """Returns the patches after the tower's final normalisation, `[B, N, C]`, float32."""
        with torch.autocast(self.device.type, enabled=False):
            return self.backbone.vision.normalise(features.tokens[0][:, 1:].float())

    def shown(self, patches: Tensor, categories: Sequence[str]) -> Tensor | None:
        """Returns the patches that show the product, `[B, N]`, bool. `None` if no category is masked."""
        masked = [_names(self.masked, category) for category in categories]
        if not any(masked):
            return None
        product = foreground(first_component(patches), self.backbone.grid, self.mask_threshold, self.morphology)
        return product | ~torch.tensor(masked, device=product.device)[:, None]

    def fit_memory(self, key: Key, image: Tensor) -> None:
        """Fits the memory bank of a `(dataset, category)` on normal images `[S, 3, H, W]` and their rotated copies."""
        turns = self.rotations if _names(self.rotated, key[1]) else 1
        copies, kept = [], []
        for turn in range(turns):
            turned = rotated(image, 360 / turns * turn) if turn else image
            patches = self.patches(self.backbone.encode_image(turned.to(self.device), self.spec))
            copies.append(patches)
            if self.mask_references and (shown := self.shown(patches, [key[1]])) is not None:
                kept.append(shown)
        of_image = torch.cat(copies, dim=1)  # [S, turns * N, C]: copies belong to their image
        tokens = torch.cat([of_image[:, :1], of_image], dim=1)  # the first patch takes the place of the class token
        self.memory.fit(key, [tokens], kept=torch.cat(kept, dim=1) if kept else None)

    def extract(self, batch: Batch) -> ClipFeatures:
        """Returns the backbone's features; none in the batched case, where `score` looks up stored results."""
        return super().extract(batch) if self.k_shot else ClipFeatures(tokens=(), grid=self.backbone.grid)

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the mean of the highest distances `[B]`, and the map of all distances `[B, H, W]`, both in [0, 2].

        Raises:
            DatasetError: A category has no memory bank and no few-shot images, or an image was not observed.
        """
        if self.k_shot:
            self.memory.fit_missing(batch.keys, self.preprocess, self.fit_memory)
            patches = self.patches(features)
            tokens = torch.cat([patches[:, :1], patches], dim=1)
            distances = 2 * self.memory.distance(batch.keys, 0, tokens, self.neighbours)
            shown = self.shown(patches, [category for _, category in batch.keys])
            distances = distances if shown is None else distances * shown
        else:
            distances = torch.stack([self._known(sample) for sample in batch.samples]).to(self.device)
        count = distances.shape[1]
        highest = int(self.top_patches * count) if count >= FEWEST_FOR_A_SHARE else 1
        anomaly_map = upsample_and_smooth(distances.unflatten(1, features.grid), self.spec.image_size, self.map_sigma)
        return AnomalyPrediction(mean_of_highest(distances, highest), anomaly_map)

    def _known(self, sample: Sample) -> Tensor:
        if (place := _place(sample)) not in self.known:
            raise DatasetError(
                f"{sample.image_path}: AnomalyDINO has no results for this image: with k_shot 0 images are compared "
                "with all other test images of their category. Use validate, test or predict, or give few-shot images "
                "and k_shot."
            )
        return self.known[place]

    def observe(self, test_set: WholeTestSet) -> dict[Place, Tensor]:
        """Returns the distances of the patches of this process's categories, by image.

        Raises:
            DatasetError: A category has a single test image.
        """
        categories, found = test_set.categories(), {}
        for key in share({key: len(images) ** 2 for key, images in categories.items()}):
            found.update(self._of_category(categories[key]))
        return found

    def _of_category(self, images: CategoryImages) -> dict[Place, Tensor]:
        samples: list[Sample] = []
        unit, shown = [], []
        for batch in images.loader(range(len(images))):
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                patches = self.patches(self.features_of(batch.to(self.device)))
                product = self.shown(patches, [sample.category for sample in batch.samples])
            samples += batch.samples
            unit.append(F.normalize(patches, dim=-1).cpu())
            shown.append(torch.ones(patches.shape[:2], dtype=torch.bool) if product is None else product.cpu())
        if len(samples) < 2:
            raise DatasetError(
                f"{images.samples[0].dataset}/{images.samples[0].category} has one test image, and with k_shot 0 "
                "AnomalyDINO compares an image with the others. Give few-shot images, or leave the category out."
            )
        distances = batched_distances(torch.cat(unit), self.neighbour_share, self.device) * torch.cat(shown)
        return {_place(sample): one for sample, one in zip(samples, distances, strict=True)}

    def take_observed(self, observed: Sequence[dict[Place, Any]]) -> None:
        """Stores the distances that all processes have computed."""
        self.known = {place: one for part in observed for place, one in part.items()}

    def on_evaluation_end(self) -> None:
        """Also drops the distances of the test images."""
        super().on_evaluation_end()
        self.known = {}


def batched_distances(unit: Tensor, neighbour_share: float, device: torch.device | None = None) -> Tensor:
    """Returns the mean distance of patches to the nearest patches of the other images, `[I, N]`, on the CPU.

    The mean is over the patches that are nearer than the k-th nearest, where k is the share of all patches. It is over
    at least one patch. The official code may average over none.

    Args:
        unit: Patches of the images of a category, `[I, N, C]`, L2-normalised.
        neighbour_share: Share of the patches.
        device: Device of the comparison.

    Reference: AnomalyDINO, the official code of the batched case.
    """
    others = (len(unit) - 1) * unit.shape[1]
    count = min(max(2, int(neighbour_share * others)), others)
    found = []
    for image in range(len(unit)):
        keys = torch.cat([unit[:image], unit[image + 1 :]]).flatten(0, 1).to(device)
        similarity, _ = nearest(unit[image].to(device), keys, count)
        farthest = similarity[:, -1:]
        nearer = similarity > farthest
        total = (similarity * nearer).sum(dim=1) / nearer.sum(dim=1).clamp(min=1)
        found.append(1 - torch.where(nearer.any(dim=1), total, farthest[:, 0]).cpu())
    return torch.stack(found)


def _names(categories: frozenset[str], category: str) -> bool:
    return EVERY in categories or category in categories


def _place(sample: Sample) -> Place:
    return sample.dataset, sample.category, str(sample.image_path)
