"""Conversion of other libraries' state dicts to the tensor names of open_clip and timm."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]
Rename = tuple[str, str]  # a regular expression for the start of a name, and its replacement


@dataclass(frozen=True)
class Layout:
    """Tensor names of one library for a kind of model.

    Attributes:
        name: Name of the layout, in words.
        mark: A tensor that no other layout has.
        convert: Function that returns the state dict with the names of open_clip (a whole CLIP) or of Meta's DINO (a
            tower, whose names timm understands), without tensors that are not part of the model. It empties its
            argument.
    """

    name: str
    mark: str
    convert: Callable[[State], State]


def _renamed(state: State, renames: Sequence[Rename]) -> State:
    """Returns the tensors with known names under their new names. The first rule that matches applies."""
    renamed = {}
    for name in list(state):
        for old, new in renames:
            match = re.match(old, name)
            if match:
                renamed[match.expand(new) + name[match.end() :]] = state.pop(name)
                break
    return renamed


def _fuse(state: State, fused: str) -> None:
    """Joins query, key and value of each block into one tensor. A missing bias becomes 0.

    Args:
        state: State dict with names that end in `.attn.query.weight` and so on.
        fused: Replacement of `query.` in the new name: `qkv.` or `in_proj_`.
    """
    for name in [name for name in state if ".attn.query." in name]:
        query = state[name]
        names = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        parts = [state.pop(part) if part in state else torch.zeros_like(query) for part in names]
        state[name.replace("query.", fused)] = torch.cat(parts)


_DINOV2: tuple[Rename, ...] = (
    (r"embeddings\.(cls_token|mask_token|register_tokens)", r"\1"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.", r"blocks.\1.attn."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.mlp\.weights_in\.", r"blocks.\1.mlp.w12."),
    (r"encoder\.layer\.(\d+)\.mlp\.weights_out\.", r"blocks.\1.mlp.w3."),
    (r"encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"layernorm\.", "norm."),
)

_DINOV3: tuple[Rename, ...] = (
    (r"embeddings\.(cls_token|mask_token)", r"\1"),
    (r"embeddings\.register_tokens", "storage_tokens"),
    (r"embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"layer\.(\d+)\.attention\.q_proj\.", r"blocks.\1.attn.query."),
    (r"layer\.(\d+)\.attention\.k_proj\.", r"blocks.\1.attn.key."),
    (r"layer\.(\d+)\.attention\.v_proj\.", r"blocks.\1.attn.value."),
    (r"layer\.(\d+)\.attention\.o_proj\.", r"blocks.\1.attn.proj."),
    (r"layer\.(\d+)\.layer_scale(\d)\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"layer\.(\d+)\.mlp\.gate_proj\.", r"blocks.\1.mlp.w1."),
    (r"layer\.(\d+)\.", r"blocks.\1."),
    (r"norm\.", "norm."),
)


def dinov2(state: State) -> State:
    """Returns Hugging Face's `Dinov2Model` (with registers too) with the names of Meta's DINOv2."""
    tower = _renamed(state, _DINOV2)
    _fuse(tower, "qkv.")
    return tower


def dinov3(state: State) -> State:
    """Returns Hugging Face's `DINOv3ViTModel` with the names of Meta's DINOv3."""
    tower = _renamed(state, _DINOV3)
    gated = any(".mlp.w1." in name for name in tower)
    for up in [name for name in tower if ".mlp.up_proj." in name]:
        down = up.replace("up_proj", "down_proj")
        tower[up.replace("up_proj", "w2" if gated else "fc1")] = tower.pop(up)
        tower[down.replace("down_proj", "w3" if gated else "fc2")] = tower.pop(down)
    _fuse(tower, "qkv.")
    return tower


def _clip_renames() -> tuple[Rename, ...]:
    block = (
        ("self_attn.q_proj.", "attn.query."),
        ("self_attn.k_proj.", "attn.key."),
        ("self_attn.v_proj.", "attn.value."),
        ("self_attn.out_proj.", "attn.out_proj."),
        ("layer_norm1.", "ln_1."),
        ("layer_norm2.", "ln_2."),
        ("mlp.fc1.", "mlp.c_fc."),
        ("mlp.fc2.", "mlp.c_proj."),
    )
    towers = (("vision_model", "visual.transformer"), ("text_model", "transformer"))
    blocks = [
        (rf"{theirs}\.encoder\.layers\.(\d+)\.{re.escape(old)}", rf"{ours}.resblocks.\1.{new}")
        for theirs, ours in towers
        for old, new in block
    ]
    return (
        *blocks,
        (r"logit_scale", "logit_scale"),
        (r"visual_projection\.weight", "visual.proj"),
        (r"text_projection\.weight", "text_projection"),
        (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
        (r"vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
        (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
        (r"vision_model\.pre_layrnorm\.", "visual.ln_pre."),
        (r"vision_model\.post_layernorm\.", "visual.ln_post."),
        (r"text_model\.embeddings\.token_embedding\.", "token_embedding."),
        (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
        (r"text_model\.final_layer_norm\.", "ln_final."),
    )


_CLIP = _clip_renames()


def clip(state: State) -> State:
    """Returns Hugging Face's `CLIPModel` with the names of OpenAI's CLIP, which are open_clip's."""
    model = _renamed(state, _CLIP)
    _fuse(model, "in_proj_")
    for name in ("visual.proj", "text_projection"):  # linear layers there, matrices here
        if name in model:
            model[name] = model[name].T.contiguous()
    return model


FOREIGN = (
    Layout("Hugging Face's DINOv2", "embeddings.patch_embeddings.projection.weight", dinov2),
    Layout("Hugging Face's DINOv3", "embeddings.patch_embeddings.weight", dinov3),
    Layout("Hugging Face's CLIP", "vision_model.embeddings.class_embedding", clip),
)
_WRAPPERS = (
    "module.",
    "model.",
    "dinov2.",
    "backbone.",
    "dinov3_vit.",
)  # prefixes of a whole model in some files


def foreign_layout(names: Sequence[str]) -> tuple[Layout, str] | None:
    """Returns the layout of these tensor names and their common prefix. `None` if the layout is not a foreign one."""
    for layout in FOREIGN:
        for prefix in ("", *_WRAPPERS):
            if prefix + layout.mark in names:
                return layout, prefix
    return None


def converted(state: State) -> State:
    """Returns a state dict with the names of open_clip or timm. One without a foreign layout is returned unchanged."""
    found = foreign_layout(list(state))
    if found is None:
        return state
    layout, prefix = found
    # exporters of the same library differ in whether the names of blocks begin with `model.`
    return layout.convert(
        {re.sub(r"^model\.(?=layer\.)", "", name.removeprefix(prefix)): state.pop(name) for name in list(state)}
    )
