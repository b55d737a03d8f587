"""Configs and weights of a CLIP of three blocks, and of one with a vision tower of timm."""

import json
from pathlib import Path

import open_clip
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 28, "layers": 3, "width": 64, "head_width": 64, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 2},
}


def small_config(folder: Path, name: str = "small", **changes: object) -> str:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(SMALL | changes))
    return str(path)


def small_clip(seed: int = 0, quick_gelu: bool = False) -> open_clip.model.CLIP:
    torch.manual_seed(seed)
    return open_clip.model.CLIP(
        16, CLIPVisionCfg(**SMALL["vision_cfg"]), CLIPTextCfg(**SMALL["text_cfg"]), quick_gelu=quick_gelu
    ).eval()


def openai_archive(clip: open_clip.model.CLIP, path: Path) -> None:
    """Writes the weights as OpenAI publishes them: a TorchScript archive in half precision with three sizes beside."""

    class Archive(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    def put(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
        head, _, rest = name.partition(".")
        if not rest:
            module.register_buffer(head, tensor)
            return
        if not hasattr(module, head):
            module.add_module(head, Archive())
        put(getattr(module, head), rest, tensor)

    archive = Archive()
    for name, tensor in clip.state_dict().items():
        put(archive, name, tensor.half())
    for name, size in (("input_resolution", 28), ("context_length", 77), ("vocab_size", 49408)):
        archive.register_buffer(name, torch.tensor(size))
    torch.jit.save(torch.jit.script(archive), path)


TIMM = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 56,
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "token",
        "timm_proj": "",
    },
    "text_cfg": SMALL["text_cfg"],
}
