"""Mutual scoring: distances of the patches of an image to the patches of other images, at several scales."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.components.scoring import upsample
from afclip_runtime.types import ImageSize

NEAR = 1e-2  # squared distances below are recomputed from differences, since 2 - 2ab loses their precision


class MutualScoring:
    """Patches of a layer at several scales, and their scores from the distances to the patches of other images.

    Args:
        grid: Patch grid `(h, w)`.
        image_size: Size of the input image in pixels: the side of a square, or height and width.
        scales: Odd window sides of the aggregation, in patches. 1 is the patch itself.
        interval: Share of the references with the lowest distances. The score of a patch is the mean over them.

    Raises:
        ValueError: An argument is out of its range.

    Reference: MuSc (Li et al., ICLR 2024), LNAMD and MSM.
    """

    def __init__(self, grid: tuple[int, int], image_size: ImageSize, scales: Sequence[int], interval: float) -> None:
        if not scales or any(scale < 1 or scale % 2 == 0 for scale in scales):
            raise ValueError(f"scales must be odd and positive, got {list(scales)}")
        if not 0 < interval <= 1:
            raise ValueError(f"interval must be in (0, 1], got {interval}")
        self.grid = grid
        self.image_size = image_size
        self.scales = tuple(scales)
        self.interval = interval

    def at_scale(self, patches: Tensor, scale: int) -> Tensor:
        """Returns patches `[B, N, C]` of one layer, aggregated and L2-normalised.

        The input comes from `normalise_planes`.
        """
        return F.normalize(aggregate(patches, self.grid, scale), dim=-1)

    def lowest_mean(self, distances: Tensor) -> Tensor:
        """Returns the scores of patches, `[N]`, from their distances `[J, N]` to J references."""
        return lowest_mean(distances, self.interval)

    def upsampled(self, patch_maps: Tensor) -> Tensor:
        """Returns maps `[B, h, w]` at the size of the input image, `[B, H, W]`."""
        return upsample(patch_maps, self.image_size, align_corners=True)


def normalise_planes(tokens: Tensor) -> Tensor:
    """Returns the patches of tokens `[B, 1 + N, C]`, with mean 0 and variance 1 per image, `[B, N, C]`, float32.

    Reference: MuSc, LNAMD; the normalisation as in the official code.
    """
    patches = tokens[:, 1:].float()
    return F.layer_norm(patches, patches.shape[1:])


def aggregate(patches: Tensor, grid: tuple[int, int], scale: int) -> Tensor:
    """Returns the mean of the patches `[B, N, C]` over a window around each, `[B, N, C]`, with zero padding.

    The official code pools the values of a window from C x scale x scale to C, which is this mean.

    Reference: MuSc, LNAMD.
    """
    if scale == 1:
        return patches
    planes = patches.unflatten(1, grid).permute(0, 3, 1, 2)  # [B, C, h, w], a view in channels-last order
    return F.avg_pool2d(planes, scale, stride=1, padding=scale // 2).permute(0, 2, 3, 1).flatten(1, 2)


def similarities(queries: Tensor, references: Tensor) -> Tensor:
    """Returns cosines `[P, Q, N, M]` of L2-normalised patches `[P, N, C]` and `[Q, M, C]`, by one matrix product."""
    product = queries.flatten(0, 1) @ references.flatten(0, 1).T
    return product.unflatten(1, references.shape[:2]).unflatten(0, queries.shape[:2]).transpose(1, 2)


def nearest_distances(cosines: Tensor, queries: Tensor, references: Tensor) -> Tensor:
    """Returns the Euclidean distance of each query patch to the nearest patch of each reference, `[P, Q, N]`.

    Args:
        cosines: `[P, Q, N, M]`, see `similarities`.
        queries: `[P, N, C]`, L2-normalised.
        references: `[Q, M, C]`, L2-normalised.

    Reference: MuSc, MSM.
    """
    squared = 2 - 2 * cosines.amax(3)
    for near in (squared < NEAR).nonzero().split(queries.shape[1]):  # in parts, since all pairs may be near
        p, q, n = near.unbind(1)
        nearest = references[q, cosines[p, q, n].argmax(1)]
        squared[p, q, n] = (queries[p, n] - nearest).square_().sum(1)
    return squared.sqrt_()


def lowest_mean(distances: Tensor, interval: float) -> Tensor:
    """Returns the mean `[N]` over the lowest share of the distances `[J, N]` to J references, at least over one.

    Reference: MuSc, MSM, the interval average.
    Differs: the share has at least one reference. In the official code it has none for fewer than five images, which
    gives NaN.
    """
    kept = max(1, int(interval * distances.shape[0]))
    return distances.topk(kept, dim=0, largest=False).values.mean(0)
