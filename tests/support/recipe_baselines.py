"""Tiny networks and inputs of the recorded numbers of the baselines: a recipe other than that of `recipe.py`."""

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.spec import PosEmbedResize
from afclip_lightning.types import Batch, Sample
from tests.support.recipe import block_shapes, normal

Network = Literal["B16", "L14", "L14-A"]
WIDTH = 64
TEXT_WIDTHS = {"L14-A": 48}  # if it differs; AdaCLIP's code needs the width of the embedding
NETWORKS = {  # patch, native size, size that is run, blocks, embedding
    "B16": (16, 80, 80, 12, 40),
    "L14": (14, 42, 70, 24, 48),
    "L14-A": (14, 42, 70, 24, 48),
}


def value(name: str, shape: tuple[int, ...], scale: float | None = None) -> torch.Tensor:
    """Returns the tensor of that name; a scale overrides the rule."""
    z = normal(name, shape)
    leaf = name.rsplit(".", 1)[-1]
    if scale is not None:
        z = z * scale
    elif name == "logit_scale":
        z = z * 0 + math.log(1 / 0.07)
    elif leaf.endswith("bias"):
        z = z * 0.02
    elif ".ln_" in f".{name}":
        z = 1 + 0.1 * z
    elif name in ("visual.class_embedding", "visual.positional_embedding", "token_embedding.weight"):
        z = z * 0.5
    elif name == "positional_embedding":
        z = z * 0.2
    elif name in ("visual.proj", "text_projection"):  # [in, out]
        z = z / math.sqrt(shape[0])
    else:  # [out, in] or [out, in, kh, kw]
        z = z / math.sqrt(math.prod(shape[1:]))
    return torch.tensor(z, dtype=torch.float32)


def write_clip(folder: Path, network: Network) -> tuple[Path, Path]:
    """Writes an open_clip config and weights, and returns the two paths."""
    patch, native, _, depth, embed = NETWORKS[network]
    text_width = TEXT_WIDTHS.get(network, WIDTH)
    config = {
        "embed_dim": embed,
        "vision_cfg": {"image_size": native, "layers": depth, "width": WIDTH, "head_width": 16, "patch_size": patch},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": text_width, "heads": 4, "layers": 4},
    }
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": (1 + (native // patch) ** 2, WIDTH),
        "visual.conv1.weight": (WIDTH, 3, patch, patch),
        "visual.proj": (WIDTH, embed),
        "token_embedding.weight": (49408, text_width),
        "positional_embedding": (77, text_width),
        "text_projection": (text_width, embed),
        "logit_scale": (),
    }
    norms = {"visual.ln_pre": WIDTH, "visual.ln_post": WIDTH, "ln_final": text_width}
    for tower, blocks, width in (("visual.transformer", depth, WIDTH), ("transformer", 4, text_width)):
        for index in range(blocks):
            block = f"{tower}.resblocks.{index}"
            shapes |= block_shapes(block, width)
    for norm, width in norms.items():
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    config_path, weights_path = folder / f"baseline-{network}.json", folder / f"baseline-{network}.safetensors"
    config_path.write_text(json.dumps(config))
    save_file({name: value(name, shape) for name, shape in shapes.items()}, weights_path)
    return config_path, weights_path


def make_backbone(folder: Path, network: Network, pos_embed: PosEmbedResize = "bicubic_antialias") -> ClipBackbone:
    """Returns the backbone with the recipe's weights, plain GELU, at the recorded size."""
    config, weights = write_clip(folder, network)
    size = NETWORKS[network][2]
    return ClipBackbone(str(config), str(weights), image_size=size, pos_embed=pos_embed, activation="gelu")


@lru_cache(maxsize=32)
def image(index: int, size: int) -> torch.Tensor:
    """Returns the network input `[3, size, size]` of that number; few-shot references count from 100."""
    return value(f"image.{index}", (3, size, size), scale=1.0)


def mask(index: int, size: int) -> torch.Tensor:
    """Returns the mask `[size, size]`, uint8, of that image."""
    rows = ((0.2, 0.6, 0.3, 0.8), None, (0.5, 0.9, 0.1, 0.4), (0.1, 0.3, 0.5, 0.9))[index % 4]
    drawn = torch.zeros(size, size, dtype=torch.uint8)
    if rows is not None:
        top, bottom, left, right = (round(size * fraction) for fraction in rows)
        drawn[top:bottom, left:right] = 1
    return drawn


def batch_of(categories: Sequence[str], size: int, dataset: str = "golden") -> Batch:
    """Returns the first inputs with their masks, one per category that is named."""
    masks = torch.stack([mask(i, size) for i in range(len(categories))])
    return Batch(
        image=torch.stack([image(i, size) for i in range(len(categories))]),
        mask=masks,
        label=masks.amax((1, 2)).long(),
        mask_known=torch.ones(len(categories), dtype=torch.bool),
        samples=[Sample(dataset, name, "test", Path(f"{i}.png"), 0) for i, name in enumerate(categories)],
    )
