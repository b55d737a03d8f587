"""The model for measurements of deployments: AF-CLIP on ViT-B/16 at 224 pixels, all weights random.

    python -m experiments.deployment.model DIR     # DIR/clip.safetensors, DIR/head.safetensors

The weights lie in a file, float16 as OpenAI's, so that what is measured reads them.
"""

import argparse
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from afclip_lightning.engine import factory
from afclip_lightning.heads.card import Card
from afclip_lightning.heads.pack import pack
from afclip_runtime.files import atomic_path

LAYERS = [3, 6, 9, 12]


def write_model(folder: Path) -> Path:
    """Writes the backbone's weights and a head, and returns the head's path."""
    folder.mkdir(parents=True, exist_ok=True)
    head, weights = folder / "head.safetensors", folder / "clip.safetensors"
    if head.exists():
        return head
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-16", pretrained=None)
    with atomic_path(weights) as temporary:
        save_file({name: value.half().contiguous() for name, value in clip.state_dict().items()}, temporary)
    backbone = {"model": "ViT-B-16", "weights": str(weights), "image_size": 224, "activation": "quick_gelu"}
    model = {"class_path": "AFCLIP", "init_args": {"backbone": backbone, "layers": LAYERS}}
    method = factory.build(model)
    checkpoint = {"state_dict": method.state_dict(), method.CHECKPOINT_HYPER_PARAMS_KEY: dict(method.hparams)}
    method.on_save_checkpoint(checkpoint)
    checkpoint["model"] = model
    torch.save(checkpoint, folder / "head.ckpt")
    pack(folder / "head.ckpt", head, Card(title="AF-CLIP on ViT-B/16, random weights"))
    (folder / "head.ckpt").unlink()
    return head


def main() -> None:
    """Writes the model into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(write_model(parser.parse_args().folder))


if __name__ == "__main__":
    main()
