"""Tiny networks whose weights depend on their names; the recorded numbers in `golden/` were made with them."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

GOLDEN = Path(__file__).parents[1] / "golden"
EMBED = 48
NOISE, PATTERN = [1.0, 0.9, 0.7], [0.5, 0.6, 0.8]
REFERENCE_NOISE, REFERENCE_PATTERN = [0.9, 0.7], [0.5, 0.6]
SCALES = {  # first match wins
    "_pos": 0.2,
    "_neg": 0.8,
    "visual.class_embedding": 0.5,
    "positional_embedding": 0.3,
    "token_embedding.weight": 0.1,
    "state_prompt_embedding": 0.1,
}
GAINS = {
    "attn.out_proj.weight": 0.4,
    "to_q.weight": 2.0,
    "to_k.weight": 2.0,
    "patch_meta_net.linear1.weight": 3.0,
    "patch_meta_net.linear2.weight": 3.0,
}


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns standard normal values, float64, seeded by the name."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)


def value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Returns the parameter of that name."""
    leaf = name.rsplit(".", 1)[-1]
    offset = 0.0
    if name == "logit_scale":
        offset, scale = math.log(1 / 0.07), 0.0
    elif leaf == "weight" and (".ln_" in f".{name}" or ".norm." in name):
        offset, scale = 1.0, 0.1
    elif leaf.endswith("bias"):
        scale = 0.02
    elif ".compound_prompts_text." in name:
        scale = 0.2
    elif any(name.endswith(key) for key in SCALES):
        scale = next(s for key, s in SCALES.items() if name.endswith(key))
    elif leaf in ("proj", "text_projection"):  # stored [in, out]
        scale = shape[0] ** -0.5
    else:
        gain = next((g for key, g in GAINS.items() if name.endswith(key)), 1.0)
        scale = gain / math.sqrt(math.prod(shape[1:]))
    return torch.tensor(offset + scale * normal(name, shape), dtype=torch.float32)


def images(
    name: str = "input.image", noise: list[float] = NOISE, pattern: list[float] = PATTERN, size: int = 70
) -> torch.Tensor:
    """Returns `[B, 3, size, size]`, already normalised: noise plus a pattern that repeats with the patches."""
    count, amplitude = len(noise), lambda values: np.array(values)[:, None, None, None]
    tile = np.tile(normal(f"{name}.pattern", (count, 3, 14, 14)), (1, 1, size // 14, size // 14))
    array = amplitude(noise) * normal(name, (count, 3, size, size)) + amplitude(pattern) * tile
    return torch.from_numpy(array.astype(np.float32))


def block_shapes(block: str, width: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a transformer block's tensors by their names in open_clip."""
    return {
        f"{block}.attn.in_proj_weight": (3 * width, width),
        f"{block}.attn.in_proj_bias": (3 * width,),
        f"{block}.attn.out_proj.weight": (width, width),
        f"{block}.attn.out_proj.bias": (width,),
        f"{block}.mlp.c_fc.weight": (4 * width, width),
        f"{block}.mlp.c_fc.bias": (4 * width,),
        f"{block}.mlp.c_proj.weight": (width, 4 * width),
        f"{block}.mlp.c_proj.bias": (width,),
        **{f"{block}.{norm}.{leaf}": (width,) for norm in ("ln_1", "ln_2") for leaf in ("weight", "bias")},
    }


def write_clip(folder: Path, width: int) -> tuple[Path, Path]:
    """Writes an open_clip config and the weights of a tiny CLIP, and returns the two paths.

    Vision: patch 14, native grid 3 x 3, 24 blocks. Text: 12 blocks. Heads are `width / 64`, the joint dimension is 48.
    """
    config = {
        "embed_dim": EMBED,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 42, "layers": 24, "width": width, "head_width": 64, "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": width, "heads": width // 64, "layers": 12},
    }
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (10, width),
        "visual.conv1.weight": (width, 3, 14, 14),
        "visual.proj": (width, EMBED),
        "token_embedding.weight": (49408, width),
        "positional_embedding": (77, width),
        "text_projection": (width, EMBED),
        "logit_scale": (),
    }
    for norm in ("visual.ln_pre", "visual.ln_post", "ln_final"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for tower, depth in (("visual.transformer", 24), ("transformer", 12)):
        for index in range(depth):
            block = f"{tower}.resblocks.{index}"
            shapes |= block_shapes(block, width)
    config_path, weights_path = folder / f"golden-{width}.json", folder / f"golden-{width}.safetensors"
    config_path.write_text(json.dumps(config))
    save_file({name: value(name, shape) for name, shape in shapes.items()}, weights_path)
    return config_path, weights_path
