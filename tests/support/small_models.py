"""Models on a CLIP of two blocks, for tests of what is built around a model."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml

SIZE = 28
HEADS: dict[str, dict[str, Any]] = {
    "AFCLIP": {"layers": [1, 2], "adapter_heads": 1},
    "AnomalyCLIP": {"layers": [2], "vv_from": 1, "prompt_depth": 2},
    "APRILGAN": {"layers": [1, 2]},
    "AnoVL": {},
    "CLIP": {},
    "DualImageCLIP": {},
    "FAPrompt": {"layer": 2, "vv_from": 1, "prompt_depth": 2, "n_prior_patches": 2},
    "KAnoCLIP": {"layers": [1, 2], "vv_from": 1, "interaction_width": 32, "knowledge_weight": 0},
    "WinCLIP": {"window_sizes": [2]},
}


def write_head(folder: Path, name: str, **arguments: Any) -> Path:
    """Returns a checkpoint of a head that trained nothing, or the config of one that trains nothing.

    Args:
        folder: Where it is written, and its backbone beside it.
        name: A key of `HEADS`.
        arguments: Beside those of `HEADS`.
    """
    from afclip_lightning.engine.factory import build

    clip = folder / "two-blocks.json"
    tower = {"layers": 2, "width": 64}
    clip.write_text(
        json.dumps(
            {
                "embed_dim": 48,
                "vision_cfg": {"image_size": SIZE, "head_width": 64, "patch_size": 7, **tower},
                "text_cfg": {"context_length": 77, "vocab_size": 49408, "heads": 1, **tower},
            }
        )
    )
    backbone = {"model": str(clip), "weights": "random", "image_size": SIZE}
    model = {"class_path": name, "init_args": {"backbone": backbone, **HEADS[name], **arguments}}
    torch.manual_seed(0)
    method = build(model)
    if not method.trainable_names():
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"model": model}))
        return path
    path = folder / f"{name}.ckpt"
    method.config = model
    checkpoint: dict[str, Any] = {"state_dict": method.state_dict(), method.CHECKPOINT_HYPER_PARAMS_KEY: method.hparams}
    method.on_save_checkpoint(checkpoint)
    checkpoint["method_hyperparameters"] = dict(checkpoint["method_hyperparameters"])
    torch.save(checkpoint, path)
    return path
