"""Tiny DINOv2 networks and photos whose values depend on their names; some numbers in `golden/` were made with them."""

import math
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.spec import PosEmbedResize
from afclip_runtime.types import ImageSize
from tests.support.recipe import normal

WIDTH = 32


def value(name: str, shape: tuple[int, ...], final_norm: float = 1.0) -> torch.Tensor:
    """Returns the parameter of a name, whose first part names the network."""
    leaf, z = name.partition(".")[2], normal(name, shape)
    if leaf in ("cls_token", "reg_token"):
        z = z * 0.5
    elif leaf == "pos_embed":
        z = z * 0.3
    elif leaf.endswith("bias"):
        z = z * 0.02
    elif "norm" in leaf or leaf.endswith("gamma"):
        z = (1 + 0.1 * z) * (final_norm if leaf == "norm.weight" else 1)
    else:
        z = z / math.sqrt(math.prod(shape[1:])) * (0.4 if leaf.endswith("attn.proj.weight") else 1)
    return torch.tensor(z, dtype=torch.float32)


def make_backbone(
    folder: Path, prefix: str, depth: int, native: int, size: ImageSize, pos_embed: PosEmbedResize
) -> ClipBackbone:
    """Returns a network of that prefix: `dino` has four registers, and `dinos` a final norm that is eight times wider.

    Args:
        folder: Where its weights are written.
        prefix: Prefix of the names.
        depth: Blocks.
        native: Side of its grid of positions.
        size: Size of the input.
        pos_embed: How positions are resized.
    """
    with_registers = prefix == "dino"
    name = "vit_giant_patch14_reg4_dinov2" if with_registers else "vit_small_patch14_dinov2"
    changes = {"embed_dim": WIDTH, "num_heads": 2, "depth": depth, "img_size": 14 * native, "mlp_ratio": 4}
    if with_registers:  # timm's giant has a gated MLP
        changes |= {"mlp_layer": timm.layers.Mlp, "act_layer": torch.nn.GELU}
    with mock.patch.object(timm, "create_model", partial(timm.create_model, **changes)):
        state = timm.create_model(name).state_dict()
        for key, tensor in state.items():
            if key not in ("cls_token", "pos_embed"):
                state[key] = value(f"{prefix}.{key}", tuple(tensor.shape), 1.0 if with_registers else 8.0)
        state["cls_token"] = value(f"{prefix}.cls_token", (1, 1, WIDTH))
        state["pos_embed"] = value(f"{prefix}.pos_embed", (1, 1 + native**2, WIDTH))
        if with_registers:  # timm has no position of the class token then
            state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
            state["pos_embed"] = state["pos_embed"][:, 1:].contiguous()
        path = folder / f"{prefix}.safetensors"
        save_file(state, path)
        return ClipBackbone(f"timm:{name}", str(path), image_size=size, pos_embed=pos_embed)


def photo(name: str, height: int, width: int, disc: bool = False) -> np.ndarray:
    """Returns the image of that name, `[H, W, 3]`, uint8: noise over coarse cells; with a disc, brighter inside."""
    coarse = normal(f"{name}.coarse", (-(-height // 16), -(-width // 16), 3)).repeat(16, 0).repeat(16, 1)
    noise = 20 * normal(name, (height, width, 3))
    if not disc:
        return np.clip(np.rint(127.5 + 40 * coarse[:height, :width] + noise), 0, 255).astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    inside = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (0.35 * min(height, width)) ** 2
    pixels = 100 + 25 * coarse[:height, :width] + noise + 90 * inside[..., None] * np.array([1, 0.5, -0.5])
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
