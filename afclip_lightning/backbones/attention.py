"""Alternative passes through a frozen block (the V-V dual path, extra tokens), and the parts of a block."""

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
    """The parts of a frozen block."""

    normalise: Callable[[Tensor], Tensor]  # normalisation before the attention
    project: Callable[[Tensor], QKV]  # [B, T, C] to queries, keys, values as the block compares them
    output: Callable[[Tensor], Tensor]  # from the result of the attention to the first residual
    feed: Callable[[Tensor], Tensor]  # the block's other half: from the stream to the second residual


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
        block: Block of a vision tower.
        tokens: `[B, T, C]`.
        rotation: Sines and cosines of the rotary embedding of the last tokens, as timm concatenates them:
            `[h, n, 2 * d]` for all images or `[B, h, n, 2 * d]` per image. h is the number of heads, or 1 for all
            heads. `None` if the tower has no rotary embedding.
    """
    output: Tensor = block(tokens) if rotation is None else block(tokens, rope=rotation)
    return output


def run_beside(
    block: nn.Module, tokens: Tensor, extra: Tensor, n_prefix: int, rotation: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns tokens `[B, T, C]` and extra tokens `[B, n, C]` after a frozen block in which they attend to each other.

    The extra tokens stand between the prefix and the patches, as registers do. They have no position in the image and
    no rotation. Attention does not depend on the order of tokens, so the result is the same as after the patches.

    Args:
        block: Block of a vision tower. With a rotary embedding, it must be one that `has_dual_path`.
        tokens: `[B, T, C]`.
        extra: `[B, n, C]`.
        n_prefix: Number of tokens before the patches: the class token and registers.
        rotation: See `run_block`.
    """
    split = [n_prefix, extra.shape[1], tokens.shape[1] - n_prefix]
    joined = torch.cat([tokens[:, :n_prefix], extra, tokens[:, n_prefix:]], dim=1)
    if rotation is None:
        joined = block(joined)
    else:  # timm's own pass rotates all tokens but the tower's own prefix tokens
        parts = _parts(block, rotation)
        attended = F.scaled_dot_product_attention(*parts.project(parts.normalise(joined)))
        joined = joined + parts.output(attended.transpose(1, 2).flatten(2))
        joined = joined + parts.feed(joined)
    prefix, extra, patches = joined.split(split, dim=1)
    return torch.cat([prefix, patches], dim=1), extra


def value_block(block: nn.Module, tokens: Tensor, over_batch: bool = False) -> Tensor:
    """Returns tokens `[B, T, C]` after a frozen block with V-V attention, in a single path.

    Args:
        block: A block that `has_dual_path`.
        tokens: `[B, T, C]`.
        over_batch: Whether a token attends to the tokens at its position of all images of the batch instead of the
            tokens of its image. AA-CLIP's official code does so, because its axes are swapped.

    Reference: CLIP Surgery, with the feed-forward layer, as in AA-CLIP's official code.
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

    The original stream is the block's own output. The V-V stream adds attention of values to values, with the same
    projections and the values of the *original* stream, and has no feed-forward layer.

    In a block with a rotary embedding (RoPE), values are compared unchanged: they are *neither* rotated nor normalised
    as queries and keys are. This is the published definition, softmax(V Vᵀ / √d) V, taken literally: V-V attention
    gathers patches of similar content wherever they lie. With rotation it would compare vᵢᵀ R(j - i) vⱼ. Equal values
    would then agree less with distance, by pairs of channels and frequencies that were trained for queries and keys.
    Values were never rotated in training, so their channels form no such pairs. Normalisation, projection and layer
    scale after the attention apply to both streams.

    Args:
        block: A block that `has_dual_path`, in eval mode, without dropout and drop path.
        original: The original stream before the block.
        value: The V-V stream before the block. Before the first block of the dual path, it is the original stream.
        rotation: See `run_block`. It applies to the original stream only.

    Reference: KAnoCLIP, Eq. (4) to (8); CLIP Surgery; the official codes of AnomalyCLIP and FAPrompt. None has RoPE.
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
    """Returns the parts of open_clip's `ResidualAttentionBlock`."""
    attention = block.attn
    return BlockParts(
        block.ln_1,
        lambda tokens: _split(open_clip_qkv(attention, tokens), attention.num_heads),
        lambda attended: block.ls_1(attention.out_proj(attended)),
        lambda tokens: block.ls_2(block.mlp(block.ln_2(tokens))),
    )


def open_clip_qkv(attention: nn.MultiheadAttention, tokens: Tensor, channels: slice = slice(None)) -> Tensor:
    """Returns concatenated queries, keys and values, `[..., 3 * C]`, or some of these channels."""
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
    """Returns the inputs of attention in the EVA family: normalised, rotated queries and keys, and unchanged values."""
    if attention.qkv is None:
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (part(tokens).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for part in projections)
    else:
        apart = getattr(attention, "q_bias", None) is not None  # EVA has zeros in place of a bias of the keys
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias]) if apart else attention.qkv.bias
        q, k, v = _split(F.linear(tokens, attention.qkv.weight, bias), attention.num_heads)
    q, k = attention.q_norm(q), attention.k_norm(k)
    if rotation is not None:
        q, k = (_rotate(part, rotation, attention.rotate_half).type_as(v) for part in (q, k))
    groups = q.shape[1] // k.shape[1]  # groups of heads that share keys and values
    return (q, k, v) if groups == 1 else (q, *(part.repeat_interleave(groups, dim=1) for part in (k, v)))


def _rotate(part: Tensor, rotation: Tensor, half: bool) -> Tensor:
    """Returns `[B, heads, T, d]` with the last tokens rotated. The tokens before them have no position in the image."""
    first = part.shape[2] - rotation.shape[-2]
    return torch.cat([part[:, :, :first], apply_rot_embed_cat(part[:, :, first:], rotation, half=half)], dim=2)


def _split(projected: Tensor, heads: int) -> QKV:
    """Returns queries, keys and values per head from the concatenation `[B, T, 3 * C]`."""
    q, k, v = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v
