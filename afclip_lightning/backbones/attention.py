"""Other walks through a frozen block than its own (the V-V dual path, tokens put beside), and the parts of one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn

QKV = tuple[Tensor, Tensor, Tensor]  # queries, keys, values, [B, heads, T, d] each


class BlockParts(NamedTuple):
    """A frozen block taken apart."""

    normalise: Callable[[Tensor], Tensor]  # before the attention
    project: Callable[[Tensor], QKV]  # [B, T, C] to queries, keys, values as the block compares them
    output: Callable[[Tensor], Tensor]  # of the attention, to what is added to the stream
    feed: Callable[[Tensor], Tensor]  # the block's other half, to what is added to the stream


def has_dual_path(block: nn.Module) -> bool:
    """Returns whether `dual_block` can run the block: one of open_clip's, of timm's, or of timm's EVA family."""
    if isinstance(block, ResidualAttentionBlock):
        return True
    if not isinstance(block, (Block, EvaBlock, EvaBlockPostNorm)):
        return False
    kinds = (Attention,) if isinstance(block, Block) else (EvaAttention, AttentionRope)
    return type(block.attn) in kinds and block.attn.gate is None


def run_block(block: nn.Module, tokens: Tensor, rotation: Tensor | None) -> Tensor:
    """Returns tokens `[B, T, C]` after a frozen block.

    Args:
        block: Of a vision tower.
        tokens: `[B, T, C]`.
        rotation: Sines and cosines of the rotary embedding of the last tokens, as timm concatenates them:
            `[h, n, 2 * d]` of all images or `[B, h, n, 2 * d]` of each, h being the heads, or 1 for all of them; `None`
            where the tower has no rotary embedding.
    """
    output: Tensor = block(tokens) if rotation is None else block(tokens, rope=rotation)
    return output


def run_beside(
    block: nn.Module, tokens: Tensor, extra: Tensor, n_prefix: int, rotation: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns tokens `[B, T, C]` and extra ones `[B, n, C]` after a frozen block in which they see each other.

    The extra tokens stand between the prefix and the patches, as registers do: they have no place in the image, and no
    rotation. Attention does not ask where a token stands, so that this is the same as after the patches.

    Args:
        block: Of a vision tower; one with a rotary embedding must be one that `has_dual_path`.
        tokens: `[B, T, C]`.
        extra: `[B, n, C]`.
        n_prefix: Tokens before the patches: the class token and registers.
        rotation: See `run_block`.
    """
    split = [n_prefix, extra.shape[1], tokens.shape[1] - n_prefix]
    joined = torch.cat([tokens[:, :n_prefix], extra, tokens[:, n_prefix:]], dim=1)
    if rotation is None:
        joined = block(joined)
    else:  # timm's own pass rotates all that is not one of the tower's own prefix tokens
        parts = _parts(block, rotation)
        attended = F.scaled_dot_product_attention(*parts.project(parts.normalise(joined)))
        joined = joined + parts.output(attended.transpose(1, 2).flatten(2))
        joined = joined + parts.feed(joined)
    prefix, extra, patches = joined.split(split, dim=1)
    return torch.cat([prefix, patches], dim=1), extra


def value_block(block: nn.Module, tokens: Tensor, over_batch: bool = False) -> Tensor:
    """Returns tokens `[B, T, C]` after a frozen block whose attention compares values with values; it has but one path.

    Args:
        block: One that `has_dual_path`.
        tokens: `[B, T, C]`.
        over_batch: Have a token attend to those in its place of all images of the batch, and not to those of its own
            image: what AA-CLIP's official code comes to, whose axes are the other way round.

    Reference: CLIP Surgery, with the feed-forward half, as in AA-CLIP's official code.
    """
    parts = _parts(block, None)
    values = parts.project(parts.normalise(tokens))[2]  # [B, heads, T, d]
    if over_batch:
        values = values.transpose(0, 2)
    attended = F.scaled_dot_product_attention(values, values, values)
    if over_batch:
        attended = attended.transpose(0, 2)
    tokens = tokens + parts.output(attended.transpose(1, 2).flatten(2))
    return tokens + parts.feed(tokens)


def dual_block(
    block: nn.Module, original: Tensor, value: Tensor, rotation: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns both streams `[B, T, C]` after a frozen block; neither input is changed.

    The original stream is the block's own output. The V-V stream adds attention of values to values through the same
    projections, with the values of the *original* stream, and no feed-forward half.

    In a block with a rotary embedding (RoPE) the values are compared as they are: *neither* is rotated, nor normalised
    as queries and keys are. That is the published definition, softmax(V Vᵀ / √d) V, taken literally: V-V attention
    gathers patches of like content wherever they lie. Rotating both would compare vᵢᵀ R(j - i) vⱼ. Then even equal
    values agree less, or disagree, the further apart they are, by pairs of channels and frequencies that were trained
    for queries and keys; values were never rotated in training, so that their channels form no such pairs. What a block
    does to the result of its attention (normalisation, projection, layer scale) it does to both streams.

    Args:
        block: One that `has_dual_path`, in eval mode: dropout and drop paths are off.
        original: The original stream before the block.
        value: The V-V stream before the block; before the first block of the dual path, the original one.
        rotation: See `run_block`; of the original stream alone.

    Reference: KAnoCLIP, Eq. (4) to (8); CLIP Surgery; AnomalyCLIP's and FAPrompt's official codes; none has RoPE.
    """
    parts = _parts(block, rotation)
    q, k, v = parts.project(parts.normalise(original))

    def attend(q: Tensor, k: Tensor) -> Tensor:
        return parts.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    value = value + attend(v, v)
    original = original + attend(q, k)
    return original + parts.feed(original), value


def _parts(block: Any, rotation: Tensor | None) -> BlockParts:
    if isinstance(block, ResidualAttentionBlock):
        return open_clip_parts(block)
    return _timm_parts(block) if isinstance(block, Block) else _eva_parts(block, rotation)


def open_clip_parts(block: Any) -> BlockParts:
    """Returns a `ResidualAttentionBlock` of open_clip's taken apart."""
    attention = block.attn
    return BlockParts(
        block.ln_1,
        lambda tokens: _split(open_clip_qkv(attention, tokens), attention.num_heads),
        lambda attended: block.ls_1(attention.out_proj(attended)),
        lambda tokens: block.ls_2(block.mlp(block.ln_2(tokens))),
    )


def open_clip_qkv(attention: nn.MultiheadAttention, tokens: Tensor, channels: slice = slice(None)) -> Tensor:
    """Returns queries, keys and values side by side, `[..., 3 * C]`, or some of these channels."""
    return F.linear(tokens, attention.in_proj_weight[channels], attention.in_proj_bias[channels])


def _timm_parts(block: Any) -> BlockParts:
    attention = block.attn

    def project(tokens: Tensor) -> QKV:
        q, k, v = _split(attention.qkv(tokens), attention.num_heads)
        return attention.q_norm(q), attention.k_norm(k), v

    return BlockParts(
        block.norm1,
        project,
        lambda attended: block.ls1(attention.proj(attention.norm(attended))),
        lambda tokens: block.ls2(block.mlp(block.norm2(tokens))),
    )


def _eva_parts(block: Any, rotation: Tensor | None) -> BlockParts:
    attention = block.attn

    def project(tokens: Tensor) -> QKV:
        return _eva_qkv(attention, tokens, rotation)

    def output(attended: Tensor) -> Tensor:
        return attention.proj(attention.norm(attended))

    if isinstance(block, EvaBlockPostNorm):  # both halves are normalised after, not before
        return BlockParts(
            lambda tokens: tokens,
            project,
            lambda attended: block.norm1(output(attended)),
            lambda tokens: block.norm2(block.mlp(tokens)),
        )
    return BlockParts(
        block.norm1,
        project,
        lambda attended: _scaled(output(attended), block.gamma_1),
        lambda tokens: _scaled(block.mlp(block.norm2(tokens)), block.gamma_2),
    )


def _scaled(tokens: Tensor, gamma: Tensor | None) -> Tensor:
    return tokens if gamma is None else gamma * tokens


def _eva_qkv(attention: Any, tokens: Tensor, rotation: Tensor | None) -> QKV:
    """Returns what an attention of the EVA family compares: queries and keys normalised and rotated, values as is."""
    if attention.qkv is None:
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (part(tokens).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for part in projections)
    else:
        apart = getattr(attention, "q_bias", None) is not None  # EVA has no bias of keys, but zeros in their place
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias]) if apart else attention.qkv.bias
        q, k, v = _split(F.linear(tokens, attention.qkv.weight, bias), attention.num_heads)
    q, k = attention.q_norm(q), attention.k_norm(k)
    if rotation is not None:
        q, k = (_rotate(part, rotation, attention.rotate_half).type_as(v) for part in (q, k))
    groups = q.shape[1] // k.shape[1]  # of heads that share their keys and values
    return (q, k, v) if groups == 1 else (q, *(part.repeat_interleave(groups, dim=1) for part in (k, v)))


def _rotate(part: Tensor, rotation: Tensor, half: bool) -> Tensor:
    """Returns `[B, heads, T, d]` with the last tokens rotated; those before them have no place in the image."""
    first = part.shape[2] - rotation.shape[-2]
    return torch.cat([part[:, :, :first], apply_rot_embed_cat(part[:, :, first:], rotation, half=half)], dim=2)


def _split(projected: Tensor, heads: int) -> QKV:
    """Returns queries, keys and values of all heads from those side by side, `[B, T, 3 * C]`."""
    q, k, v = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v
