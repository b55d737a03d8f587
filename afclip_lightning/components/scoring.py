"""From similarities to scores and maps: pure functions."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_runtime.errors import UserError
from afclip_runtime.types import ImageSize, height_and_width

WIDEST_SIGMA = 8192  # in pixels: the largest image side that a backbone accepts


def similarity_logits(tokens: Tensor, text_embeddings: Tensor, temperature: float) -> Tensor:
    """Returns cosine similarities over temperature, `[B, T, K]`, float32.

    Args:
        tokens: `[B, T, D]`, L2-normalised.
        text_embeddings: `[K, D]`, or `[B, K, D]` per image, L2-normalised. In a pair, row 0 is normal and row 1
            abnormal.
        temperature: Divides the cosines.

    Reference: AF-CLIP, Eq. (9); FAPrompt, Eq. (3).
    """
    with torch.autocast(tokens.device.type, enabled=False):  # sums of many such logits overflow half precision
        return tokens.float() @ text_embeddings.float().mT / temperature


def anomaly_probability(logits: Tensor) -> Tensor:
    """Returns the probability of the abnormal class, `[...]`, float32, from logits `[..., 2]`."""
    return logits.float().softmax(dim=-1)[..., 1]


def prototypes(text_embeddings: Tensor) -> Tensor:
    """Returns the pair of text prototypes, `[..., 2, D]`, L2-normalised: normal, and the mean of the abnormal ones.

    Args:
        text_embeddings: `[..., 1 + K, D]`, not normalised, the normal one first.

    Reference: FAPrompt, Sec. 3.3.
    """
    normal, abnormal = text_embeddings[..., 0, :], text_embeddings[..., 1:, :].mean(-2)
    return F.normalize(torch.stack([normal, abnormal], dim=-2), dim=-1)


def mean_of_highest(values: Tensor, count: int) -> Tensor:
    """Returns the mean of the `count` highest values, `[..., N]` to `[...]`. `count` is clamped to 1 to N."""
    count = min(max(count, 1), values.shape[-1])
    return values.topk(count, dim=-1, sorted=False).values.mean(dim=-1)


def mean_of_highest_pixels(maps: Tensor, share: float) -> Tensor:
    """Returns the mean of the highest share of the pixels, at least of one pixel, `[B, H, W]` to `[B]`."""
    pixels = maps.flatten(1)
    return mean_of_highest(pixels, int(share * pixels.shape[1]))


def upsample(maps: Tensor, size: ImageSize, align_corners: bool = False) -> Tensor:
    """Returns patch-level maps `[B, h, w]` at pixel level, `[B, H, W]`, bilinear, differentiable, float32.

    Args:
        maps: `[B, h, w]`.
        size: Side of a square output in pixels, or height and width.
        align_corners: Whether the centres of the corner patches lie on the corner pixels, as in the codes of AnoVL and
            MuSc. Otherwise the centre of each patch stays where it is.
    """
    if not align_corners:
        return upsample_and_smooth(maps, size, sigma=0)
    pixels = height_and_width(size)
    return F.interpolate(maps[:, None].float(), pixels, mode="bilinear", align_corners=True)[:, 0]


def pool_and_upsample(maps: Tensor, size: ImageSize) -> Tensor:
    """Returns patch-level maps averaged over 3 × 3 patches, at pixel level: corners aligned, bilinear, float32.

    Args:
        maps: `[B, h, w]`. The border values are repeated beyond the border.
        size: Side of a square output in pixels, or height and width.

    Returns:
        `[B, H, W]`.

    Reference: AnoVL's official code.
    """
    padded = F.pad(maps[:, None].float(), (1, 1, 1, 1), mode="replicate")
    return upsample(F.avg_pool2d(padded, 3, stride=1)[:, 0], size, align_corners=True)


def upsample_and_smooth(maps: Tensor, size: ImageSize, sigma: float) -> Tensor:
    """Returns patch-level maps at pixel level: bilinear upsampling, then a Gaussian filter.

    Both steps are linear and separable. Together they are one matrix product per axis: `A M A^T`.

    Args:
        maps: `[B, h, w]`.
        size: Side of a square output in pixels, or height and width.
        sigma: Standard deviation of the Gaussian in output pixels, cut at 4 sigma, borders mirrored with the edge
            repeated (SciPy's `gaussian_filter` with its defaults); 0 does not filter.

    Returns:
        `[B, H, W]`, float32.

    Raises:
        UserError: `sigma` is negative, or so wide that its filter would not fit into memory.
    """
    if not 0 <= sigma <= WIDEST_SIGMA:
        raise UserError(f"the sigma of a map must be from 0 to {WIDEST_SIGMA} px, got {sigma}: set map_sigma.")
    sides = zip(maps.shape[1:], height_and_width(size), strict=True)
    maps = maps.float()
    rows, columns = (_upsample_and_smooth_matrix(*side, sigma, maps.device, maps.dtype) for side in sides)
    with torch.autocast(maps.device.type, enabled=False):
        return rows @ maps @ columns.T


def blur(maps: Tensor, window: int, sigma: float) -> Tensor:
    """Returns maps `[B, h, w]` after a Gaussian filter of a fixed window, float32.

    Borders are mirrored without the edge.

    Args:
        maps: `[B, h, w]`.
        window: Odd side of the window, in cells of the map; 1 changes nothing.
        sigma: Standard deviation, in cells.

    Reference: AA-CLIP's official code.
    """
    rows, columns = (_blur_matrix(length, window, sigma, maps.device) for length in maps.shape[1:])
    with torch.autocast(maps.device.type, enabled=False):
        return rows @ maps.float() @ columns.T


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a cached tensor is also used in training
def _blur_matrix(length: int, window: int, sigma: float, device: torch.device) -> Tensor:
    """Returns the `[length, length]` matrix of one axis, float32, computed in float64 and cached per device."""
    offsets = torch.arange(window) - window // 2
    weights = torch.exp(-(offsets.double() ** 2) / (2 * sigma**2))
    period = max(2 * (length - 1), 1)
    index = (torch.arange(length)[:, None] + offsets) % period
    index = torch.minimum(index, period - index)  # mirrored, also if the map is narrower than the filter
    matrix = torch.zeros(length, length, dtype=torch.float64)
    matrix.scatter_add_(1, index, (weights / weights.sum()).expand_as(index))
    return matrix.float().to(device)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a cached tensor is also used in training
def _upsample_and_smooth_matrix(
    length: int, size: int, sigma: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Returns the `[size, length]` matrix of one axis, computed in float64, cast to its type and cached per device."""
    eye = torch.eye(length, dtype=torch.float64)[None]
    upsample = F.interpolate(eye, size=size, mode="linear", align_corners=False)[0].T  # [size, length]
    if sigma > 0:
        radius = int(4 * sigma + 0.5)
        offsets = torch.arange(-radius, radius + 1)
        weights = torch.exp(-(offsets.double() ** 2) / (2 * sigma**2))
        weights /= weights.sum()
        index = (torch.arange(size)[:, None] + offsets) % (2 * size)  # [size, 2 * radius + 1]
        index = torch.minimum(index, 2 * size - 1 - index)  # mirrored, edge repeated
        smooth = torch.zeros(size, size, dtype=torch.float64)
        smooth.scatter_add_(1, index, weights.expand_as(index))
        upsample = smooth @ upsample
    return upsample.to(device, dtype)
