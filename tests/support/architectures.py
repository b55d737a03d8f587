"""Architectures that users name, of open_clip and timm, at a tiny depth and width and with weights of a seed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip
import timm
import torch
from torch import nn

from afclip_lightning.backbones import building
from afclip_lightning.backbones.clip import ClipBackbone

DEPTH, WIDTH = 3, 64
TEXT = {"width": 32, "heads": 2, "layers": 2}


@dataclass(frozen=True)
class Architecture:
    """A model, and the changes that make it small.

    Attributes:
        model: As `ClipBackbone` takes it.
        size: Side of the input in pixels: 4 x 4 patches.
        trunk: Arguments of timm's constructor that replace its own, besides the depth.
        wide: Whether the width is as it is, since its stem gives no other.
        has_class_token: Whether there is one.
        pools: Source of the image embedding: the class `token`, the mean of the patches (`avg`), or attention (`map`).
    """

    model: str
    size: int = 64
    trunk: dict[str, Any] = field(default_factory=dict)
    wide: bool = False
    has_class_token: bool = True
    pools: str = "token"


ARCHITECTURES = {
    "OpenAI": Architecture("ViT-L-14-336-quickgelu", 56),
    "LAION": Architecture("ViT-B-16-plus-240"),
    "DataComp": Architecture("ViT-B-32-256", 128),
    "DFN": Architecture("ViT-H-14-378", 56),
    "MetaCLIP": Architecture("ViT-bigG-14-quickgelu", 56),
    "MetaCLIP 2": Architecture("ViT-H-14-worldwide", 56),
    "CLIPA": Architecture("ViT-H-14-CLIPA-336", 56, pools="avg"),
    "SigLIP": Architecture("ViT-SO400M-14-SigLIP-384", 56, has_class_token=False, pools="map"),
    "SigLIP 2": Architecture("ViT-B-16-SigLIP2-512", has_class_token=False, pools="map"),
    "EVA-01": Architecture("EVA01-g-14", 56),
    "EVA-02": Architecture("EVA02-L-14-336", 56),
    "EVA-02, E": Architecture("EVA02-E-14-plus", 56),
    "PE-Core": Architecture("PE-Core-L-14-336", 56, pools="map"),
    "PE-Core, no class token": Architecture("PE-Core-bigG-14-448", 56, has_class_token=False, pools="map"),
    "ViTamin": Architecture("ViTamin-S", wide=True, has_class_token=False, pools="avg"),
    "MobileCLIP": Architecture("MobileCLIP2-B", wide=True),  # the tower of MobileCLIP-B too
    "MobileCLIP, L": Architecture("MobileCLIP2-L-14", 56),
    "DINOv2": Architecture("timm:vit_base_patch14_dinov2", 56),
    "DINOv2 with registers": Architecture("timm:vit_giant_patch14_reg4_dinov2", 56, {"mlp_ratio": 4}),
    "DINOv3": Architecture("timm:vit_large_patch16_dinov3.lvd1689m"),
    "DINOv3, gated": Architecture("timm:vit_huge_plus_patch16_dinov3.lvd1689m"),
    "TIPSv2": Architecture("timm:vit_so400m_patch14_reg1_tipsv2.webli", 56),
    "PE-Spatial": Architecture("timm:vit_pe_spatial_large_patch14_448.fb", 56),
    "PE-Spatial, no class token": Architecture(
        "timm:vit_pe_spatial_gigantic_patch14_448.fb", 56, has_class_token=False, pools="avg"
    ),
    "PE-Lang": Architecture("timm:vit_pe_lang_large_patch14_448.fb", 56),
    "RADIO": Architecture("timm:vit_base_patch16_radio_v3.c_radio"),
    "LingBot-Vision": Architecture("timm:vit_large_patch16_lingbot"),
    "Sapiens 2": Architecture("timm:vit_base_patch16_sapiens2", trunk={"num_heads": 4, "num_kv_heads": [4, 2, 2]}),
    "RoPE of each block": Architecture("timm:vit_small_patch16_rope_mixed_224"),
}


def is_vision_only(name: str) -> bool:
    return ARCHITECTURES[name].model.startswith("timm:")


def is_of_timm(name: str) -> bool:
    return (
        is_vision_only(name) or "timm_model_name" in open_clip.get_model_config(ARCHITECTURES[name].model)["vision_cfg"]
    )


def build_tiny(name: str, folder: Path, **arguments: Any) -> ClipBackbone:
    """Returns a backbone of a key of `ARCHITECTURES`, with random weights that leave nothing at zero or one.

    Args:
        name: The key.
        folder: Where a config is written.
        arguments: Beside the model, the weights and the size.
    """
    one = ARCHITECTURES[name]
    given = {"weights": "random", "image_size": one.size, **arguments}
    with smaller_trunks({**({} if one.wide else {"embed_dim": WIDTH, "num_heads": 4}), **one.trunk}):
        backbone = ClipBackbone(one.model if is_vision_only(name) else _config(one, folder), **given)
    randomise(backbone.vision)
    return backbone


@contextmanager
def smaller_trunks(changes: dict[str, Any]) -> Iterator[None]:
    """Makes timm build its models at the tests' depth with these changes, and ours a small text tower."""
    with (
        mock.patch.object(timm, "create_model", partial(timm.create_model, depth=DEPTH, **changes)),
        mock.patch.dict(building.RANDOM_TEXT, TEXT),
    ):
        yield


def _config(one: Architecture, folder: Path) -> str:
    config = open_clip.get_model_config(one.model)
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" not in vision:
        vision |= {"layers": DEPTH, "width": WIDTH, "head_width": 16}
    text = {key: value for key, value in text.items() if not key.startswith(("hf_tokenizer", "tokenizer"))}
    text |= {**TEXT, "vocab_size": 49408}  # of CLIP's own tokenizer
    text |= {"eos_id": 49407} if "eos_id" in text else {}
    joint = WIDTH if vision.get("timm_proj") == "none" else 48  # where nothing is projected, the width is the space's
    path = folder / f"tiny-{list(ARCHITECTURES.values()).index(one)}.json"  # a name tells open_clip of a tokenizer
    path.write_text(json.dumps(config | {"embed_dim": joint, "vision_cfg": vision, "text_cfg": text}))
    return str(path)


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Fills all parameters, so that layer scales, norms and tokens that are 0 or 1 at first have an effect."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(("weight", "gamma", "gamma_1", "gamma_2")) and parameter.ndim == 1:
            parameter.copy_(0.8 + 0.1 * noise)
        else:
            parameter.copy_(noise * (parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1))
