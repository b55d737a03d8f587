"""Bidirectional cross-modal interaction: self-attention of patches and of text, and cross-attention between them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afclip_lightning.components.adapters import attend


class Attention(nn.Module):
    """Multi-head attention. Queries, keys and values have no bias; a bias of the keys would have no gradient.

    Args:
        width: Channels of a token.
        heads: Heads, which divide the channels.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Returns the attention of tokens `[B, T, W]` over a context `[B, S, W]`, `[B, T, W]`."""
        return self.take(self.to_q(tokens), context)

    def take(self, queries: Tensor, context: Tensor) -> Tensor:
        """Returns the attention of projected queries `[B, T, W]` over a context `[B, S, W]`, `[B, T, W]`."""
        taken: Tensor = self.to_out(attend(queries, self.to_k(context), self.to_v(context), self.heads))
        return taken

    def of_few(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Returns the result of `forward`.

        It is cheaper for a context `[B, S, W]` of few tokens: the queries are not projected.

        The similarity of a query and a key is `x Wq^T k`, and the output of a value is `Wo v`. Both products are formed
        on the side of the context.
        """
        keys, values = (layer(context).unflatten(-1, (self.heads, -1)) for layer in (self.to_k, self.to_v))
        asked = torch.einsum("bshd,hdw->bhsw", keys, self.to_q.weight.unflatten(0, (self.heads, -1))).flatten(1, 2)
        given = torch.einsum("bshd,whd->bhsw", values, self.to_out.weight.unflatten(1, (self.heads, -1))).flatten(1, 2)
        scores = tokens @ asked.mT * keys.shape[-1] ** -0.5  # [B, T, H * S]
        weights = scores.unflatten(-1, (self.heads, -1)).softmax(-1).flatten(2)
        return weights.to(given) @ given + self.to_out.bias

    def of_many(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Returns the result of `forward`. It is cheaper for few tokens and a long context, which is not projected."""
        queries = self.to_q(tokens).unflatten(-1, (self.heads, -1))  # [B, T, H, d]
        asking = torch.einsum("bthd,hdw->bhtw", queries, self.to_k.weight.unflatten(0, (self.heads, -1))).flatten(1, 2)
        weights = (asking @ context.mT * queries.shape[-1] ** -0.5).softmax(-1)  # [B, H * T, S]
        mixed = (weights.to(context) @ context).unflatten(1, (self.heads, -1))  # [B, H, T, W]
        values = torch.einsum("bhtw,hdw->bthd", mixed, self.to_v.weight.unflatten(0, (self.heads, -1)))
        taken: Tensor = self.to_out(values.flatten(2))
        return taken


class DeformableAttention(nn.Module):
    """Deformable self-attention: patches attend to a few sampling points, whose positions depend on the image.

    The reference points lie on a grid of `stride` patches. A depthwise convolution over the queries predicts the offset
    of each, at most `stride` patches. Keys and values come from the patches, interpolated at the points. Beyond the
    border the border's patches are repeated.

    Args:
        width: Channels of a token.
        heads: Attention heads.
        groups: Groups of channels. Each group has its own points.
        stride: Distance of two reference points, in patches.
        kernel: Odd side of the convolution, in patches.

    Raises:
        ValueError: The groups do not divide the channels.

    Reference: Vision Transformer with Deformable Attention (Xia et al., 2022), Sec. 3.2.
    Differs: no relative position bias; a reference point lies in the middle of the queries that predict its offset.
    """

    def __init__(self, width: int, heads: int, groups: int = 4, stride: int = 4, kernel: int = 5) -> None:
        super().__init__()
        if groups < 1 or width % groups or stride < 1:
            raise ValueError(
                f"groups must divide the channels, and stride be positive; got {groups}, {width}, {stride}"
            )
        self.groups = groups
        self.stride = stride
        channels = width // groups
        self.attention = Attention(width, heads)
        self.around = nn.Conv2d(channels, channels, kernel, stride, padding=kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.to_offset = nn.Linear(channels, 2, bias=False)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Returns the attention of patches `[B, N, W]` of a grid `(h, w)` over the points, `[B, N, W]`."""
        queries = self.attention.to_q(tokens)
        return self.attention.take(queries, self.sample(tokens, self.points(queries, grid), grid))

    def points(self, queries: Tensor, grid: tuple[int, int]) -> Tensor:
        """Returns column and row of each point, counted in patches from 0, `[B, G, M, 2]`, float32.

        Args:
            queries: `[B, N, W]`.
            grid: Patch grid `(h, w)`.
        """
        hidden = self.norm(self.around(self._planes(queries, grid)).movedim(1, -1))  # [B * G, h', w', W / G]
        offset = self.stride * self.to_offset(F.gelu(hidden)).float().tanh()
        rows, columns = (self.stride * torch.arange(n, device=offset.device) for n in offset.shape[1:3])
        points = offset + torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        return points.flatten(1, 2).unflatten(0, (-1, self.groups))

    def sample(self, tokens: Tensor, points: Tensor, grid: tuple[int, int]) -> Tensor:
        """Returns the patches at the points, bilinearly interpolated, `[B, M, W]`, float32.

        Args:
            tokens: `[B, N, W]`.
            points: `[B, G, M, 2]`, see `points`.
            grid: Patch grid `(h, w)`.
        """
        h, w = grid
        columns, rows = (2 * at / max(n - 1, 1) - 1 for at, n in zip(points.unbind(-1), (w, h), strict=True))
        places = torch.stack([columns, rows], dim=-1).flatten(0, 1)[:, None]  # [B * G, 1, M, 2], outermost patches ±1
        planes = self._planes(tokens, grid).float()
        sampled = F.grid_sample(planes, places, padding_mode="border", align_corners=True)  # [B * G, W / G, 1, M]
        return sampled[:, :, 0].unflatten(0, (-1, self.groups)).flatten(1, 2).transpose(1, 2)

    def _planes(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Returns tokens `[B, N, W]` as planes of each group, `[B * G, W / G, h, w]`."""
        return tokens.transpose(1, 2).unflatten(1, (self.groups, -1)).flatten(0, 1).unflatten(2, grid)


def normed_linear(layers: nn.Sequential, tokens: Tensor) -> Tensor:
    """Returns tokens after a normalisation and a linear layer. It is cheaper where the tokens need no gradient.

    Scale and shift of the normalisation are folded into the weights of the linear layer. Their gradients then come from
    the weights' gradient, and no gradient of all tokens is formed.
    """
    parts: Any = layers
    norm, linear = parts
    weight, bias = linear.weight * norm.weight, linear.bias + linear.weight @ norm.bias
    return F.linear(F.layer_norm(tokens, norm.normalized_shape, eps=norm.eps), weight, bias)


class BiCrossAttention(nn.Module):
    """One stage of Bi-CMCI: self-attention of patches and of text, then cross-attention in both directions.

    It works in `width` channels. Each attention follows a normalisation and has a residual. The output projections
    start at zero, so that patches and text pass unchanged at first.

    Args:
        embed_dim: Channels of patches and text.
        width: Channels inside.
        heads: Heads of every attention.
        groups: See `DeformableAttention`.
        stride: See `DeformableAttention`.

    Reference: KAnoCLIP, Sec. 2.4 and Fig. 3. The paper names the four attentions. Their order, sizes and residuals are
    ours.
    """

    def __init__(self, embed_dim: int, width: int = 256, heads: int = 8, groups: int = 4, stride: int = 4) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide the channels, got {heads} and {width}")
        self.patches_in = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, width))
        self.text_in = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, width))
        self.text_self = Attention(width, heads)
        self.patches_self = DeformableAttention(width, heads, groups, stride)
        self.text_to_patches = Attention(width, heads)
        self.patches_to_text = Attention(width, heads)
        self.text_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.patches_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.patches_out = nn.Linear(width, embed_dim, bias=False)
        self.text_out = nn.Linear(width, embed_dim, bias=False)
        nn.init.zeros_(self.patches_out.weight)
        nn.init.zeros_(self.text_out.weight)

    def forward(self, patches: Tensor, text: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Returns patches `[B, N, D]` and text `[B, 2, D]` after the interaction. They are not normalised.

        Args:
            patches: `[B, N, D]`.
            text: `[B, 2, D]`.
            grid: Patch grid `(h, w)`.
        """
        p, t = normed_linear(self.patches_in, patches), self.text_in(text)
        normed = self.text_norms[0](t)
        t = t + self.text_self(normed, normed)
        p = p + self.patches_self(self.patches_norms[0](p), grid)
        p = p + self.text_to_patches.of_few(self.patches_norms[1](p), self.text_norms[1](t))
        t = t + self.patches_to_text.of_many(self.text_norms[2](t), self.patches_norms[2](p))
        return patches + self.patches_out(p), text + self.text_out(t)
