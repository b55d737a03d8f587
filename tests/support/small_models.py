"""Models on a CLIP of two blocks, for tests of code around a model."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.support.cases import CASES

SIZE = 28


def write_head(folder: Path, name: str, **arguments: Any) -> Path:
    """Returns a checkpoint of an untrained head, or the config of a method that trains nothing.

    Args:
        folder: Where it is written, and its backbone beside it.
        name: A key of `CASES`.
        arguments: Beside those of its case.
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
    model = {"class_path": name, "init_args": {"backbone": backbone, **CASES[name].head, **arguments}}
    torch.manual_seed(0)
    method = build(model)
    if not method.learnt_names():
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
