"""Both streams of the V-V dual path through a block of timm's EVA family, token by token and head by head."""

import math
from typing import Any

from torch import Tensor, stack
from torch.nn.functional import linear

Tokens = list[Tensor]  # [C] each


def rotate(vector: Tensor, sines: Tensor, cosines: Tensor, half: bool) -> Tensor:
    """A head's query or key `[d]`, turned pair by pair: channels 2i and 2i + 1, or i and i + d / 2."""
    turned, d = vector.clone(), len(vector)
    for pair in range(d // 2):
        a, b = (pair, pair + d // 2) if half else (2 * pair, 2 * pair + 1)
        turned[a] = vector[a] * cosines[a] - vector[b] * sines[a]
        turned[b] = vector[b] * cosines[b] + vector[a] * sines[b]
    return turned


def parts(attention: Any, token: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value `[heads * d]` of a token, as they are projected; keys and values may have fewer heads."""
    if attention.qkv is None:
        return attention.q_proj(token), attention.k_proj(token), attention.v_proj(token)
    rows = attention.qkv.weight.chunk(3)
    if getattr(attention, "q_bias", None) is not None:
        q, k, v = (linear(token, weight) for weight in rows)
        return q + attention.q_bias, k, v + attention.v_bias
    biases = (None, None, None) if attention.qkv.bias is None else attention.qkv.bias.chunk(3)
    q, k, v = (linear(token, weight, bias) for weight, bias in zip(rows, biases, strict=True))
    return q, k, v


def mix(queries: Tokens, keys: Tokens, values: Tokens) -> Tokens:
    """Attention of each token: values weighted by softmax(q k / sqrt(d)), all `[d]` of one head."""
    gathered = []
    for query in queries:
        weights = [math.exp(float(query @ key) / math.sqrt(len(query))) for key in keys]
        gathered.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    return gathered  # type: ignore[return-value]


def step(block: Any, original: Tokens, value: Tokens, rotation: Tensor | None) -> tuple[Tokens, Tokens]:
    """Both streams after a block. `rotation` is `[1 or heads, N, 2 * d]`: sines, then cosines, of the last N tokens."""
    attention, post = block.attn, not hasattr(block, "gamma_1")
    d = attention.head_dim
    given = [token if post else block.norm1(token) for token in original]
    projected = [parts(attention, token) for token in given]
    groups = len(projected[0][0]) // len(projected[0][1])
    original_heads, value_heads = [], []
    for head in range(attention.num_heads):
        own, shared = slice(head * d, head * d + d), slice(head // groups * d, head // groups * d + d)
        queries = [attention.q_norm(q[own]) for q, _, _ in projected]
        keys = [attention.k_norm(k[shared]) for _, k, _ in projected]
        values = [v[shared] for _, _, v in projected]
        if rotation is not None:
            table = rotation[head if len(rotation) > 1 else 0]
            first = len(queries) - len(table)
            for place, row in enumerate(table, first):
                sines, cosines = row.chunk(2)
                queries[place] = rotate(queries[place], sines, cosines, attention.rotate_half)
                keys[place] = rotate(keys[place], sines, cosines, attention.rotate_half)
        original_heads.append(mix(queries, keys, values))
        value_heads.append(mix(values, values, values))

    def added(heads: list[Tokens], place: int) -> Tensor:
        out = attention.proj(attention.norm(stack([head[place] for head in heads]).flatten()))
        if post:
            return block.norm1(out)
        return out if block.gamma_1 is None else block.gamma_1 * out

    def fed(token: Tensor) -> Tensor:
        if post:
            return block.norm2(block.mlp(token))
        out = block.mlp(block.norm2(token))
        return out if block.gamma_2 is None else block.gamma_2 * out

    value = [token + added(value_heads, place) for place, token in enumerate(value)]
    original = [token + added(original_heads, place) for place, token in enumerate(original)]
    return [token + fed(token) for token in original], value
