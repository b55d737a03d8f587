"""Small trainable or fixed parts between the backbone's tokens and the scores."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Mixture = Callable[[Tensor], Tensor]  # [B, 1 + N, C] to [B, 1 + N, C], each token a sum of weighted tokens


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


def aggregate_neighbours(tokens: Tensor, grid: tuple[int, int], window: int, sigma: float) -> Tensor:
    """Returns tokens whose patches are the weighted mean over a window around them; the class token stays.

    A depthwise convolution with one fixed kernel, stride 1, padded with zeros and not renormalised at the borders.

    Args:
        tokens: `[B, 1 + N, C]`.
        grid: Patch grid `(h, w)`.
        window: Odd side of the window in patches; 1 changes nothing.
        sigma: Standard deviation of the weights in patches.

    Reference: AF-CLIP, Eq. (5) and (6).
    """
    if window == 1:
        return tokens
    channels = tokens.shape[2]
    planes = tokens[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2)  # [B, C, h, w], a view in channels-last order
    kernel = gaussian_window(window, sigma, tokens.device).to(tokens.dtype).expand(channels, 1, window, window)
    mixed = F.conv2d(planes, kernel, padding=window // 2, groups=channels)
    return torch.cat([tokens[:, :1], mixed.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


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
        """Returns adapted tokens `[B, 1 + N, C]`, one for each mixture of the tokens.

        A mixture adds up tokens and a projection adds up channels, so that either may come first: the tokens are
        projected once, and the projections are mixed. Only what the normalisation divides by is a mixture's own.

        Args:
            tokens: `[B, 1 + N, C]`.
            mixtures: Linear maps over the tokens, the same for every channel.
        """
        weight = torch.cat([self.to_q.weight, self.to_k.weight, self.to_v.weight])
        centred = tokens - tokens.mean(-1, keepdim=True)
        projected = F.linear(centred, weight * self.norm.weight)
        offset = F.linear(self.norm.bias, weight)
        adapted = []
        for mix in mixtures:
            scale = (mix(centred).float().square().mean(-1, keepdim=True) + self.norm.eps).rsqrt()
            q, k, v = torch.addcmul(offset, mix(projected), scale).to(projected).chunk(3, dim=-1)
            adapted.append(self.to_out(attend(q, k, v, self.heads)))
        return adapted


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
            planes = self.down(self.norm(patches)).transpose(1, 2).unflatten(2, grid)
            hidden = hidden + self.depthwise(planes).mean(dim=(2, 3))
        adapted: Tensor = self.up(hidden.relu())
        return image + adapted if self.residual else adapted
