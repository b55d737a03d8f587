"""Prompts through a causal text transformer: a common beginning passes once, and the last block computes only the ends.

In a causal transformer, later tokens do not change earlier ones. Tokens that prompts have in common at their beginning
therefore pass once for all prompts. The last block is used at the end of a prompt only, so the other tokens need just
their keys and values there.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, zip_longest
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afclip_lightning.backbones.attention import open_clip_parts, open_clip_qkv


class PromptPack(NamedTuple):
    """Layout of K prompts in one row of tokens, `[G * P + K * T, C]`: their G beginnings, then the rest of each prompt.

    Attributes:
        sizes: Numbers of consecutive prompts that share a beginning. Their sum is K.
        beginning: P, number of tokens of a beginning. 0 means no common beginning.
        rest: T, number of tokens of a prompt after it.
    """

    sizes: Sequence[int]
    beginning: int
    rest: int

    def pack(self, first: Tensor, rest: Tensor) -> Tensor:
        """Returns the row of beginnings `[G, P, C]` and rests `[K, T, C]`."""
        return torch.cat([first.flatten(0, 1), rest.flatten(0, 1)])

    def unpack(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the beginnings `[G, P, C]` and the rests `[K, T, C]` of a row."""
        groups, prompts = len(self.sizes), sum(self.sizes)
        first, rest = tokens.split([groups * self.beginning, prompts * self.rest])
        return first.unflatten(0, (groups, self.beginning)), rest.unflatten(0, (prompts, self.rest))

    def join(self, first: Tensor, rest: Tensor) -> Tensor:
        """Returns whole prompts `[K, P + T, C]`."""
        if not self.beginning:
            return rest
        copies = [one.expand(size, -1, -1) for one, size in zip(first, self.sizes, strict=True)]
        return torch.cat([copies[0] if len(copies) == 1 else torch.cat(copies), rest], dim=1)


def walk_to_ends(
    blocks: Iterable[nn.Module],
    prompts: Tensor,
    end: Tensor,
    deep_tokens: Sequence[Tensor] = (),
    shared: int = 0,
    sizes: Sequence[int] | None = None,
) -> Tensor:
    """Returns the embedding at the end of each prompt after the last block, `[K, C]`.

    Args:
        blocks: open_clip's `ResidualAttentionBlock`s, with a causal mask.
        prompts: `[K, S, C]`, with the positional embedding.
        end: `[K]`, int64, position of the end-of-text token of each prompt, after the common beginning.
        deep_tokens: See `TextTower`.
        shared: Number of first positions that prompts have in common, deep tokens included.
        sizes: Numbers of consecutive prompts that have them in common. `None` means all prompts.
    """
    if shared <= max((tokens.shape[-2] for tokens in deep_tokens), default=0):
        shared = 0  # the prompts diverge within their deep tokens
    # not `len`, which would fix the batch size of an exported graph
    sizes = (prompts.shape[0],) if sizes is None or not shared else sizes
    pack = PromptPack(sizes, shared, prompts.shape[1] - shared)
    starts = [0, *accumulate(sizes)][:-1]
    tokens = pack.pack(prompts[starts, :shared], prompts[:, shared:])
    mask = torch.ones(pack.rest, prompts.shape[1], dtype=torch.bool, device=tokens.device).tril(shared)
    *earlier, last = blocks
    for block, deep in zip_longest(earlier, deep_tokens[: len(earlier)]):
        tokens = _block(block, tokens, pack, mask)
        if deep is not None:
            tokens = _with_deep_tokens(tokens, deep, pack)
    return _last_block(last, tokens, pack, end)


def _with_deep_tokens(tokens: Tensor, deep: Tensor, pack: PromptPack) -> Tensor:
    """Returns a row with deep tokens `[n, C]` or `[K, n, C]` in the positions 1 to n of every prompt."""
    first, rest = pack.unpack(tokens)
    into = first if pack.beginning else rest
    deep = deep.to(tokens).expand(into.shape[0], -1, -1)
    into = torch.cat([into[:, :1], deep, into[:, 1 + deep.shape[1] :]], dim=1)
    return pack.pack(into, rest) if pack.beginning else pack.pack(first, into)


def _block(block: Any, tokens: Tensor, pack: PromptPack, mask: Tensor) -> Tensor:
    """Returns the row of tokens after a block. `mask`, `[T, P + T]`, is the attention mask of the rest of a prompt."""
    parts, heads = open_clip_parts(block), block.attn.num_heads
    first, rest = pack.unpack(open_clip_qkv(block.attn, parts.normalise(tokens)))
    (q_first, k_first, v_first), (q, k, v) = first.chunk(3, dim=-1), rest.chunk(3, dim=-1)
    of_rest = _attend(q, pack.join(k_first, k), pack.join(v_first, v), heads, mask)
    of_first = _attend(q_first, k_first, v_first, heads) if pack.beginning else q_first
    tokens = tokens + parts.output(pack.pack(of_first, of_rest))
    return tokens + parts.feed(tokens)


def _last_block(block: Any, tokens: Tensor, pack: PromptPack, end: Tensor) -> Tensor:
    """Returns the embeddings at the ends of the prompts after a block, `[K, C]`."""
    parts, attention, width = open_clip_parts(block), block.attn, tokens.shape[-1]
    normed = parts.normalise(tokens)
    at_end, normed_at_end = (_at(pack.unpack(row)[1], end - pack.beginning) for row in (tokens, normed))
    first, rest = pack.unpack(open_clip_qkv(attention, normed, slice(width, None)))
    k, v = pack.join(first, rest).chunk(2, dim=-1)
    q = open_clip_qkv(attention, normed_at_end[:, None], slice(width))
    mask = torch.arange(k.shape[1], device=end.device) <= end[:, None]
    at_end = at_end + parts.output(_attend(q, k, v, attention.num_heads, mask[:, None, None])[:, 0])
    return at_end + parts.feed(at_end)


def _at(prompts: Tensor, position: Tensor) -> Tensor:
    """Returns the token at one position per prompt `[K, T, C]`, `[K, C]`."""
    return prompts[torch.arange(prompts.shape[0], device=prompts.device), position]


def _attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Returns the attention of queries `[B, T, C]` over values `[B, S, C]`, `[B, T, C]`.

    Without a mask it is causal.
    """
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (queries, keys, values))
    taken = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    return taken.transpose(1, 2).flatten(2)
