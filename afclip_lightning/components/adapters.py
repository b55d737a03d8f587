"""Small trainable or fixed parts between the backbone's tokens and the scores."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Mixture = Callable[[Tensor], Tensor]
"""From patches `[B, N, C]` to as many, each a sum of weighted patches: a symmetric map, the same for every channel."""


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a cached tensor is also used in training
def gaussian_window(window: int, sigma: float, device: torch.device | None = None) -> Tensor:
    """Returns a `[window, window]` Gaussian, float32, that sums to 1.

    It is cached per device, so that it is copied once.

    Reference: AF-CLIP, Eq. (5).
    """
    offsets = torch.arange(window, dtype=torch.float64) - window // 2
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    return torch.outer(weights, weights).float().to(device)


def aggregate_patches(patches: Tensor, grid: tuple[int, int], window: int, sigma: float) -> Tensor:
    """Returns patches `[B, N, C]`, each the weighted mean over a window around it.

    A depthwise convolution with one fixed kernel, stride 1, padded with zeros and not renormalised at the borders.

    Args:
        patches: `[B, N, C]`.
        grid: Patch grid `(h, w)`.
        window: Odd side of the window in patches; 1 changes nothing.
        sigma: Standard deviation of the weights in patches.

    Reference: AF-CLIP, Eq. (5) and (6).
    """
    if window == 1:
        return patches
    channels = patches.shape[2]
    planes = patches.unflatten(1, grid).permute(0, 3, 1, 2)  # [B, C, h, w], a view in channels-last order
    kernel = gaussian_window(window, sigma, patches.device).to(patches.dtype).expand(channels, 1, window, window)
    mixed = F.conv2d(planes, kernel, padding=window // 2, groups=channels)
    return mixed.permute(0, 2, 3, 1).flatten(1, 2)


def aggregate_neighbours(tokens: Tensor, grid: tuple[int, int], window: int, sigma: float) -> Tensor:
    """Returns tokens `[B, 1 + N, C]` whose patches are aggregated; the class token stays. See `aggregate_patches`."""
    if window == 1:
        return tokens
    return torch.cat([tokens[:, :1], aggregate_patches(tokens[:, 1:], grid, window, sigma)], dim=1)


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Returns the scaled dot-product attention of queries over keys and values, `[B, T, W]`.

    Args:
        queries: `[B, T, W]`.
        keys: `[B, S, W]`.
        values: `[B, S, W]`.
        heads: Heads, of W / heads channels each.
    """
    q, k, v = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class AttentionAdapter(nn.Module):
    """Self-attention over class and patch tokens: a normalisation, one attention and a projection, without residual.

    It adapts the tokens at several scales (mixtures of neighbouring patches) for little more than the cost of one
    scale.

    Args:
        width: C, channels of a token.
        heads: Attention heads.
        head_width: Channels of a head.

    Reference: AF-CLIP, Eq. (3) and (4); the normalisation, the heads and the output projection are in the official
    code only.
    """

    def __init__(self, width: int, heads: int = 8, head_width: int = 64) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_k = nn.Linear(width, heads * head_width, bias=False)
        self.to_v = nn.Linear(width, heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width)

    def forward(self, tokens: Tensor, mixtures: Sequence[Mixture]) -> list[Tensor]:
        """Returns adapted tokens `[B, 1 + N, C]`, one tensor per mixture of the patches. See `attended`."""
        return [self.to_out(mixed) for mixed in self.attended(tokens, mixtures)]

    def attended(self, tokens: Tensor, mixtures: Sequence[Mixture]) -> Iterator[Tensor]:
        """Yields the attention before its output projection, `[B, 1 + N, heads * head_width]`, per mixture.

        A mixture is linear over tokens and a projection is linear over channels, so their order can be exchanged: the
        tokens are projected once, and the projections are mixed. Only the divisor of the normalisation differs per
        mixture.

        Args:
            tokens: `[B, 1 + N, C]` of the frozen backbone. No gradient flows back to them.
            mixtures: Mixing matrices of the patches. The class token is not mixed.
        """
        tokens = tokens.detach()
        weight = torch.cat([self.to_q.weight, self.to_k.weight, self.to_v.weight])
        # patches alone from here on: a convolution would copy patches that follow a class token in memory
        first, patches = (part - part.mean(-1, keepdim=True) for part in (tokens[:, :1], tokens[:, 1:]))
        projected = [F.linear(part, weight * self.norm.weight) for part in (first, patches)]
        offset = F.linear(self.norm.bias, weight)
        variances = [_mean_square(first, mix(patches)) for mix in mixtures]
        scales = [(variance + self.norm.eps).rsqrt() for variance in variances]
        parts: Sequence[Tensor] = MixedParts.apply(*projected, offset, tuple(mixtures), *scales)
        for queries, keys, values in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            yield attend(queries, keys, values, self.heads)


def _mean_square(first: Tensor, patches: Tensor) -> Tensor:
    """Returns the mean square over the channels of a class token and patches, `[B, 1 + N, 1]`, float32."""
    lengths = [torch.linalg.vector_norm(part.float(), dim=-1, keepdim=True) for part in (first, patches)]
    return torch.cat(lengths, dim=1).square() / patches.shape[-1]


class MixedParts(torch.autograd.Function):
    """Mixtures of projected tokens, each scaled and offset, in three parts: queries, keys and values.

    The backward pass is written by hand. Autograd would allocate a tensor of all three parts for the gradient of each.
    """

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, patches: Tensor, offset: Tensor, mixtures: tuple[Mixture, ...], *scales: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns queries, keys and values, `[B, 1 + N, W]` each, per mixture: `offset + scale * mixture`.

        Args:
            ctx: Autograd's.
            first: Projected class tokens `[B, 1, 3 * W]`.
            patches: Projected patches `[B, N, 3 * W]`.
            offset: `[3 * W]`.
            mixtures: Mixing matrices of the patches.
            scales: `[B, 1 + N, 1]` per mixture, constants.
        """
        ctx.mixtures, ctx.scales = mixtures, scales
        parts: list[Tensor] = []
        for mix, scale in zip(mixtures, scales, strict=True):
            for own, mixed, shift in zip(first.chunk(3, -1), mix(patches).chunk(3, -1), offset.chunk(3), strict=True):
                scaled = [torch.addcmul(shift, own, scale[:, :1]), torch.addcmul(shift, mixed, scale[:, 1:])]
                parts.append(torch.cat(scaled, dim=1))  # no `out`: a traced graph does not support it
        return tuple(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of class tokens, patches and offset.

        A mixing matrix is symmetric, so it is its own adjoint.
        """
        by_first = by_patches = by_offset = None
        for i, (mix, scale) in enumerate(zip(ctx.mixtures, ctx.scales, strict=True)):
            parts = gradients[3 * i : 3 * i + 3]
            first = torch.cat([part[:, :1] for part in parts], dim=-1) * scale[:, :1]
            rest, width = parts[0][:, 1:], parts[0].shape[-1]
            patches = rest.new_empty(*rest.shape[:2], 3 * width)
            for part, place in zip(parts, patches.chunk(3, dim=-1), strict=True):
                torch.mul(part[:, 1:], scale[:, 1:], out=place)
            mixed, sums = mix(patches), torch.cat([part.sum((0, 1)) for part in parts])
            if by_first is None or by_patches is None or by_offset is None:
                by_first, by_patches, by_offset = first, mixed, sums
            else:
                by_first += first
                by_patches += mixed
                by_offset += sums
        return by_first, by_patches, by_offset, None, *[None] * len(ctx.scales)


class ConvAdapter(nn.Module):
    """A bottleneck adapter of the image embedding, to which the patches contribute through a depthwise convolution.

    The paper's equation takes the class token alone. Its figure shows a depthwise convolution, which a single token
    has no plane for. With `spatial`, the patches pass the same normalisation and down-projection, then the
    convolution, and their mean is added to the class token's bottleneck. Without, the adapter is the printed equation.

    Args:
        width: Channels of an embedding.
        bottleneck: Channels of the bottleneck.
        spatial: Whether the patches take part.
        residual: Whether the embedding itself is added. The up-projection then starts at zero, so that the adapter
            changes nothing at first. The printed equation has no residual.

    Reference: KAnoCLIP, Eq. (11) and Fig. 4.
    """

    def __init__(self, width: int, bottleneck: int = 192, spatial: bool = True, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck, bias=False)
        self.depthwise = (
            nn.Conv2d(bottleneck, bottleneck, 3, padding=1, groups=bottleneck, bias=False) if spatial else None
        )
        self.up = nn.Linear(bottleneck, width, bias=False)
        if residual:
            nn.init.zeros_(self.up.weight)

    def forward(self, image: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Returns adapted image embeddings `[B, D]`.

        Args:
            image: `[B, D]`.
            patches: `[B, N, D]`.
            grid: Patch grid `(h, w)`.
        """
        hidden = self.down(self.norm(image))
        if self.depthwise is not None:
            # the mean of a convolution needs only the sums of the patches under its nine taps: only these are projected
            sums = tap_sums(grid, patches.device)  # [9, N]
            normed = F.layer_norm(patches, self.norm.normalized_shape, eps=self.norm.eps)
            seen = sums @ normed * self.norm.weight + sums.sum(1, keepdim=True) * self.norm.bias  # [B, 9, D]
            hidden = hidden + (self.down(seen) * self.depthwise.weight.flatten(1).T).sum(1)
        adapted: Tensor = self.up(hidden.relu())
        return image + adapted if self.residual else adapted


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a cached tensor is also used in training
def tap_sums(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Returns the weight of each patch, per tap, in the mean of a zero-padded 3 x 3 convolution, `[9, N]`."""
    rows, columns = (torch.stack([torch.arange(n) < n - 1, torch.ones(n), torch.arange(n) > 0]) for n in grid)
    return (torch.kron(rows, columns) / (grid[0] * grid[1])).to(device)


def unbiased_projection(inputs: int, outputs: int) -> nn.Linear:
    """Returns a linear layer without bias, initialised with Xavier's uniform rule as in AA-CLIP's official code."""
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.xavier_uniform_(linear.weight)
    return linear


class ResidualAdapter(nn.Module):
    """A residual adapter: a linear layer and a leaky ReLU, mixed into the tokens with a small weight.

    It keeps their norm.

    Args:
        width: Channels of a token.
        weight: Weight of the adapted token, from 0 to 1. The original token has weight `1 - weight`.

    Reference: AA-CLIP, Sec. 3.2 (arXiv 2503.06661). The norm is kept as in the official code.
    """

    def __init__(self, width: int, weight: float = 0.1) -> None:
        super().__init__()
        self.weight = weight
        self.linear = unbiased_projection(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns adapted tokens `[..., C]`."""
        adapted = F.leaky_relu(self.linear(tokens))
        with torch.autocast(tokens.device.type, enabled=False):  # a squared length may overflow half precision
            old, new = (vectors.float().norm(dim=-1, keepdim=True) for vectors in (tokens, adapted))
            scale = self.weight * old / new.clamp(min=1e-12)
        return scale.to(tokens) * adapted + (1 - self.weight) * tokens
