"""State dicts of other makers, by the names that timm and open_clip give the same tensors."""

import re

import torch
from torch import Tensor

_DINOV2 = (  # Hugging Face's `Dinov2Model` → timm's `VisionTransformer`
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.", r"blocks.\1.attn.\2."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"layernorm\.", "norm."),
)


def dinov2_to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state dict of Hugging Face's `Dinov2Model` with timm's names; what is no part of the tower is left out.

    Query, key and value become one tensor, as timm keeps them. `state` is emptied on the way, to save memory.
    """
    tower: dict[str, Tensor] = {}
    for name in list(state):
        new = next((re.sub(old, to, name) for old, to in _DINOV2 if re.match(old, name)), None)
        if new is not None:
            tower[new] = state.pop(name)
    for name in [name for name in tower if ".attn.query." in name]:
        parts = [tower.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        tower[name.replace(".query.", ".qkv.")] = torch.cat(parts)
    return tower
