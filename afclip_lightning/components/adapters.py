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
@torch.inference_mode(False)  # a kept tensor must serve training as well
def gaussian_window(window: int, sigma: float, device: torch.device | None = None) -> Tensor:
    """Returns a `[window, window]` Gaussian that sums to 1, float32, on the device: kept there, it is copied once.

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
    """Returns what queries `[B, T, W]` take from values `[B, S, W]`, `[B, T, W]`: scaled dot-product attention.

    Args:
        queries: `[B, T, W]`.
        keys: `[B, S, W]`.
        values: `[B, S, W]`.
        heads: Heads, of W / heads channels each.
    """
    q, k, v = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class AttentionAdapter(nn.Module):
    """Self-attention over class and patch tokens: normalisation, one attention, a projection back; no residual.

    It takes tokens together with their mixtures, as AF-CLIP's scales are, at little more than the cost of one.

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
        """Returns adapted tokens `[B, 1 + N, C]`, one for each mixture of the patches; see `attended`."""
        return [self.to_out(mixed) for mixed in self.attended(tokens, mixtures)]

    def attended(self, tokens: Tensor, mixtures: Sequence[Mixture]) -> Iterator[Tensor]:
        """Yields what the projection back takes, `[B, 1 + N, heads * head_width]`, for each mixture of the patches.

        A mixture adds up tokens and a projection adds up channels, so that either may come first: the tokens are
        projected once, and the projections are mixed. Only what the normalisation divides by is a mixture's own.

        Args:
            tokens: `[B, 1 + N, C]`, of the frozen backbone: no gradient goes back to them.
            mixtures: Of the patches; the class token stays.
        """
        tokens = tokens.detach()
        weight = torch.cat([self.to_q.weight, self.to_k.weight, self.to_v.weight])
        # apart from here on: a convolution would copy patches that lie behind a class token
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

    Written out since autograd would keep and fill a tensor of all three parts for every slice of one.
    """

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, patches: Tensor, offset: Tensor, mixtures: tuple[Mixture, ...], *scales: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns `[B, 1 + N, W]` three times for each mixture: `offset + scale * mixture`.

        Args:
            ctx: Autograd's.
            first: Projected class tokens `[B, 1, 3 * W]`.
            patches: Projected patches `[B, N, 3 * W]`.
            offset: `[3 * W]`.
            mixtures: Of the patches.
            scales: `[B, 1 + N, 1]`, one for each mixture, constants.
        """
        ctx.mixtures, ctx.scales = mixtures, scales
        parts: list[Tensor] = []
        for mix, scale in zip(mixtures, scales, strict=True):
            for own, mixed, shift in zip(first.chunk(3, -1), mix(patches).chunk(3, -1), offset.chunk(3), strict=True):
                scaled = [torch.addcmul(shift, own, scale[:, :1]), torch.addcmul(shift, mixed, scale[:, 1:])]
                parts.append(torch.cat(scaled, dim=1))  # no `out`: a traced graph has none
        return tuple(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients by class tokens, patches and offset; a mixture is symmetric, so its own adjoint."""
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
    """A bottleneck for the image embedding, into which the patches come through a depthwise convolution.

    The paper's equation has the class token alone, and its figure a depthwise convolution, for which that has no
    plane. With `spatial` the patches pass the same normalisation and down-projection, then the convolution, and their
    mean is added to the class token's bottleneck; without, it is the equation as printed.

    Args:
        width: Channels of an embedding.
        bottleneck: Channels of the bottleneck.
        spatial: Whether the patches take part.
        residual: Whether the embedding itself is added; the up-projection then begins with zeros, so that the adapter
            changes nothing at first. Printed without.

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
            # the mean of a convolution is one of the patches' sums under its nine taps: these alone are projected
            sums = tap_sums(grid, patches.device)  # [9, N]
            normed = F.layer_norm(patches, self.norm.normalized_shape, eps=self.norm.eps)
            seen = sums @ normed * self.norm.weight + sums.sum(1, keepdim=True) * self.norm.bias  # [B, 9, D]
            hidden = hidden + (self.down(seen) * self.depthwise.weight.flatten(1).T).sum(1)
        adapted: Tensor = self.up(hidden.relu())
        return image + adapted if self.residual else adapted


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a kept tensor must serve training as well
def tap_sums(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Returns what the mean of a 3 x 3 convolution, padded with zeros, takes of the patches at each tap, `[9, N]`."""
    rows, columns = (torch.stack([torch.arange(n) < n - 1, torch.ones(n), torch.arange(n) > 0]) for n in grid)
    return (torch.kron(rows, columns) / (grid[0] * grid[1])).to(device)


def unbiased_projection(inputs: int, outputs: int) -> nn.Linear:
    """Returns a linear layer without bias, of Xavier's uniform values, as AA-CLIP's official code begins."""
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.xavier_uniform_(linear.weight)
    return linear


class ResidualAdapter(nn.Module):
    """A linear layer with a leaky rectifier beside tokens, whose length it keeps: a small share of what goes on.

    Args:
        width: Channels of a token.
        weight: Share of the adapted token; the token itself has the rest of 1.

    Reference: AA-CLIP, Sec. 3.2 (arXiv 2503.06661); the official code for the length.
    """

    def __init__(self, width: int, weight: float = 0.1) -> None:
        super().__init__()
        self.weight = weight
        self.linear = unbiased_projection(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns adapted tokens `[..., C]`."""
        adapted = F.leaky_relu(self.linear(tokens))
        with torch.autocast(tokens.device.type, enabled=False):  # a squared length may be beyond half precision
            old, new = (vectors.float().norm(dim=-1, keepdim=True) for vectors in (tokens, adapted))
            scale = self.weight * old / new.clamp(min=1e-12)
        return scale.to(tokens) * adapted + (1 - self.weight) * tokens
