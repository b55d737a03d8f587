"""A small head as `fit` writes it, and pictures, for tests of the steps after training."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from afclip_lightning.engine.factory import Backbones, build

BACKBONE: dict[str, Any] = {"model": "tiny-8-112", "weights": "embedded", "image_size": 112}
MODEL_OPTIONS = [f"--model.backbone.{name}={value}" for name, value in BACKBONE.items()]
ARGUMENTS = {f"backbone.{name}": value for name, value in BACKBONE.items()}


AFCLIP: dict[str, Any] = {"layers": [2, 4, 6, 8], "adapter_heads": 2}


def write_head(path: Path, backbones: Backbones, method_name: str = "AFCLIP", arguments: Any = AFCLIP) -> Path:
    """Writes an untrained method with seeded initial values, which is enough for these tests."""
    config = {"class_path": method_name, "init_args": {"backbone": BACKBONE, **arguments}}
    torch.manual_seed(0)
    method = build(config, backbones=backbones)
    method.config = config
    checkpoint: dict[str, Any] = {
        "state_dict": method.state_dict(),
        method.CHECKPOINT_HYPER_PARAMS_KEY: dict(method.hparams),
    }
    method.on_save_checkpoint(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)
    return path


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Returns a smooth pattern `[H, W, 3]`, uint8; another for another seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))


def write_pictures(folder: Path, count: int, height: int = 60, width: int = 80, seed: int = 0) -> list[Path]:
    """Writes pictures as PNG, and returns their paths in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(picture(height, width, seed + i)).save(path)
    return paths
