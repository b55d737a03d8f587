"""SubspaceAD: distance of a patch to the principal subspace of the patches of a few normal images."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.arguments import require_layers, require_not_negative, require_shares
from afclip_lightning.components.memory import Key
from afclip_lightning.components.rotation import rotated
from afclip_lightning.components.scoring import mean_of_highest_pixels, upsample
from afclip_lightning.components.subspace import Moments, SubspaceBank
from afclip_lightning.data.whole_test_set import WholeTestSet, share
from afclip_lightning.methods.base import AnomalyMethod, UsesTestSet
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures
from afclip_runtime.errors import DatasetError

WHOLE_TURN = 345.0  # largest angle in degrees
BLUR_SIGMA = 4.0  # of a filter of 3 x 3 pixels, so nearly their mean


class SubspaceAD(AnomalyMethod):
    """SubspaceAD: a principal component analysis of the patches of a few normal images; nothing is trained.

    Patches are means over the tapped blocks, without normalisation. The memory is the mean and the fewest axes that
    explain `explained_variance` of the variance of the patches of `k_shot` normal images and their rotated copies. The
    score of a patch is its squared distance to that subspace and has no upper bound. The image score is the mean of the
    highest values of the map. With `k_shot: 0` it is the batched zero-shot method: the subspace is that of all test
    images of the category, without copies.

    Differs: few-shot images are rotated at input size, by OpenCV and not by Pillow, whose nearest pixels differ in a
    few places. Angles come from a seed per image; in the code, images and angles depend on the categories before. The
    code draws the angles twice, so that mean and covariance are of different copies: `two_draws`. Not built: the other
    scores of the code (Mahalanobis, cosine, Euclidean, dropped components, kernel PCA), its background mask by
    attention, which divides by patches that it skips, and its F1, which needs a validation set. The paper's text was
    not at hand: the rules are the official code's (2ca687e).

    Args:
        backbone: The frozen tower: DINOv2 with registers in the paper (giant, 672 px).
        layers: Tapped blocks, counted from 1.
        k_shot: Few-shot images per category. 0 is batched zero-shot.
        shot_seed: Seed of their random selection, and of the angles.
        rotations: Number of rotated copies per few-shot image, black outside the image.
        unrotated: Categories without rotated copies.
        two_draws: Whether the angles are drawn twice, for the mean and for the covariance, as in the official code.
        explained_variance: Share of the variance that the axes explain, in (0, 1].
        top_pixels: Share of the pixels that the image score is averaged over.
        blur: Whether the map is filtered over 3 x 3 pixels.

    Raises:
        ValueError: An argument is out of its range.

    Reference: SubspaceAD (arXiv 2602.23013, CVPR 2026); the official code.
    """

    title = "SubspaceAD"
    paper = "lendering2026subspacead"
    official_code = "CLendering/SubspaceAD"
    parity = "equal to the official code"
    takes_few_shot: ClassVar[bool] = True
    uses_test_set: ClassVar[UsesTestSet] = "without few-shot images"
    memory: SubspaceBank

    def __init__(
        self,
        backbone: ClipBackbone,
        layers: Sequence[int] = (23, 24, 25, 26, 27, 28, 29),
        k_shot: int = 1,
        shot_seed: int = 0,
        rotations: int = 30,
        unrotated: Sequence[str] = ("transistor",),
        two_draws: bool = False,
        explained_variance: float = 0.99,
        top_pixels: float = 0.01,
        blur: bool = True,
    ) -> None:
        require_layers(layers)
        require_not_negative(k_shot=k_shot, rotations=rotations)
        require_shares(explained_variance=explained_variance, top_pixels=top_pixels)
        super().__init__(backbone, backbone.spec(layers), optimizer=None)
        self.save_hyperparameters(ignore=["backbone"], logger=False)
        self.k_shot = k_shot
        self.shot_seed = shot_seed
        self.rotations = rotations
        self.unrotated = frozenset(unrotated)
        self.two_draws = two_draws
        self.top_pixels = top_pixels
        self.blur = blur
        self.memory = SubspaceBank(explained_variance)

    def patches(self, features: ClipFeatures) -> Tensor:
        """Returns the mean of the patches over the blocks, `[B, N, C]`, float32."""
        return torch.stack([tokens[:, 1:].float() for tokens in features.tokens]).mean(dim=0)

    def fit_memory(self, key: Key, image: Tensor) -> None:
        """Fits the subspace of a `(dataset, category)` on normal images `[S, 3, H, W]` and their rotated copies."""
        generator = torch.Generator().manual_seed(self.shot_seed)
        first = self._moments(key, image, generator)
        if self.two_draws:
            first = self._moments(key, image, generator).about(first.mean)
        self.memory.fit_moments(key, first)

    def _moments(self, key: Key, image: Tensor, generator: torch.Generator) -> Moments:
        """Returns the moments of normal images and one draw of their rotated copies."""
        copies = 0 if key[1] in self.unrotated else self.rotations
        preprocess = self.preprocess
        black = [-mean / std for mean, std in zip(preprocess.mean, preprocess.std, strict=True)]
        total = self._moments_of(image)
        for one in image.split(1):
            for angle in (WHOLE_TURN * torch.rand(copies, generator=generator, dtype=torch.float64)).tolist():
                total = total + self._moments_of(rotated(one, angle, black))
        return total

    def _moments_of(self, image: Tensor) -> Moments:
        return Moments.of(self.patches(self.backbone.encode_image(image.to(self.device), self.spec)).flatten(0, 1))

    def observe(self, test_set: WholeTestSet) -> dict[Key, list[Tensor]]:
        """Returns the subspaces of this process's categories, each fitted to all test images of the category."""
        found = {}
        categories = test_set.categories()
        for key in share({key: len(images) for key, images in categories.items()}):
            total: Moments | None = None
            for batch in categories[key].loader(range(len(categories[key]))):
                with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                    features = self.features_of(batch.to(self.device))
                moments = Moments.of(self.patches(features).flatten(0, 1))
                total = moments if total is None else total + moments
            if total is not None:
                self.memory.fit_moments(key, total)
                found[key] = [tensor.cpu() for tensor in self.memory.banks[key]]
        return found

    def take_observed(self, observed: Sequence[dict[Key, Any]]) -> None:
        """Stores the subspaces of all processes."""
        self.memory.banks = {key: list(bank) for part in observed for key, bank in part.items()}

    def on_evaluation_end(self) -> None:
        """Also drops the subspaces of the test images."""
        super().on_evaluation_end()
        if not self.k_shot:
            self.memory.clear()

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the mean of the map's highest values `[B]`, and the map `[B, H, W]`: squared distances, from 0 on.

        Raises:
            DatasetError: A category has no subspace: neither few-shot images nor test images that were observed.
        """
        if self.k_shot:
            self.memory.fit_missing(batch.keys, self.preprocess, self.fit_memory)
        elif missing := set(batch.keys) - self.memory.banks.keys():
            raise DatasetError(
                f"SubspaceAD has no subspace for {'/'.join(min(missing))}: with k_shot 0 it needs all test images of a "
                "category at once. Use validate, test or predict, or give few-shot images and k_shot."
            )
        patches = self.memory.residuals(batch.keys, self.patches(features)).unflatten(1, features.grid)
        anomaly_map = upsample(patches, self.spec.image_size)
        if self.blur:
            anomaly_map = small_blur(anomaly_map)
        highest = mean_of_highest_pixels(anomaly_map, self.top_pixels)
        return AnomalyPrediction(highest, anomaly_map)


def small_blur(maps: Tensor) -> Tensor:
    """Returns maps `[B, H, W]` after a Gaussian filter of 3 x 3 pixels. Borders are mirrored without the edge.

    Reference: SubspaceAD, the official code.
    """
    side = math.exp(-1 / (2 * BLUR_SIGMA**2))
    weights = maps.float().new_tensor([side, 1.0, side]) / (1 + 2 * side)
    padded = F.pad(maps[:, None].float(), (1, 1, 1, 1), mode="reflect")
    with torch.autocast(maps.device.type, enabled=False):
        return F.conv2d(F.conv2d(padded, weights.view(1, 1, 3, 1)), weights.view(1, 1, 1, 3))[:, 0]
