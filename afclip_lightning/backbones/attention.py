"""Other walks through a frozen block than its own: the V-V dual path, and prompts that begin alike."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn


class _Parts(NamedTuple):
    """A frozen block taken apart."""

    normalise: Callable[[Tensor], Tensor]  # before the attention
    project: Callable[[Tensor], Tensor]  # [B, T, C] to [B, T, 3 * C]: queries, keys, values
    heads: int
    output: Callable[[Tensor], Tensor]  # of the attention, to what is added to the stream
    feed: Callable[[Tensor], Tensor]  # the block's other half, to what is added to the stream


def has_dual_path(block: nn.Module) -> bool:
    """Returns whether `dual_block` can run the block: a plain one of open_clip's or timm's."""
    if isinstance(block, ResidualAttentionBlock):
        return True
    if not isinstance(block, Block) or type(block.attn) is not Attention:
        return False
    extras = (block.attn.q_norm, block.attn.k_norm, block.attn.norm)
    return block.attn.gate is None and all(isinstance(extra, nn.Identity) for extra in extras)


def dual_block(block: nn.Module, original: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both streams `[B, T, C]` after a frozen block; neither input is changed.

    The original stream is the block's own output. The V-V stream adds attention of values to values through the same
    projections, with the values of the *original* stream, and no feed-forward half.

    Args:
        block: One that `has_dual_path`.
        original: The original stream before the block.
        value: The V-V stream before the block; before the first block of the dual path, the original one.

    Reference: KAnoCLIP, Eq. (4) to (8); CLIP Surgery; AnomalyCLIP's and FAPrompt's official codes.
    """
    parts = _timm_parts(block) if isinstance(block, Block) else _open_clip_parts(block)
    projected = parts.project(parts.normalise(original)).unflatten(-1, (3, parts.heads, -1))
    q, k, v = projected.permute(2, 0, 3, 1, 4)  # [B, heads, T, d] each

    def attend(q: Tensor, k: Tensor) -> Tensor:
        return parts.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    value = value + attend(v, v)
    original = original + attend(q, k)
    return original + parts.feed(original), value


def prefixed_block(block: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """Returns the tokens after a frozen causal block of open_clip's, for K prompts that begin with the same P tokens.

    What comes later changes nothing for those, so that they pass once, whatever the number of prompts.

    Args:
        block: A `ResidualAttentionBlock`.
        tokens: `[P + K * T, C]`: the shared tokens, then the rest of each prompt.
        mask: `[T, P + T]`, bool: what the rest of a prompt looks at.
    """
    length, width = mask.shape
    parts = _open_clip_parts(block)
    projected = parts.project(parts.normalise(tokens)).unflatten(-1, (3, parts.heads, -1))
    first = projected[None, : width - length].permute(2, 0, 3, 1, 4)  # [3, 1, heads, P, d]
    rest = projected[width - length :].unflatten(0, (-1, length)).permute(2, 0, 3, 1, 4)  # [3, K, heads, T, d]
    seen = torch.cat([first.expand(-1, rest.shape[1], -1, -1, -1), rest], dim=3)
    of_first = F.scaled_dot_product_attention(first[0], first[1], first[2], is_causal=True)
    of_rest = F.scaled_dot_product_attention(rest[0], seen[1], seen[2], attn_mask=mask)
    attended = [part.transpose(1, 2).flatten(0, 1).flatten(1) for part in (of_first, of_rest)]
    tokens = tokens + parts.output(torch.cat(attended))
    return tokens + parts.feed(tokens)


def _open_clip_parts(block: Any) -> _Parts:
    attention = block.attn
    return _Parts(
        block.ln_1,
        lambda tokens: F.linear(tokens, attention.in_proj_weight, attention.in_proj_bias),
        attention.num_heads,
        lambda tokens: block.ls_1(attention.out_proj(tokens)),
        lambda tokens: block.ls_2(block.mlp(block.ln_2(tokens))),
    )


def _timm_parts(block: Any) -> _Parts:
    return _Parts(
        block.norm1,
        block.attn.qkv,
        block.attn.num_heads,
        lambda tokens: block.ls1(block.attn.proj(tokens)),
        lambda tokens: block.ls2(block.mlp(block.norm2(tokens))),
    )
