"""Where backbone weights come from: an open_clip tag, a local file, or an explicit seed."""

import hashlib
import logging
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_checkpoint, load_state_dict
from torch import Tensor, nn

from afclip_lightning.errors import WeightsError

RANDOM = "random"
LOCAL_WAY = (
    "On a machine without internet, download the file elsewhere and give its path as `weights` "
    "(OpenAI's TorchScript archive, .pt, .bin or .safetensors); `weights: random` is for tests only."
)


def is_local_file(weights: str) -> bool:
    """Returns whether `weights` is meant as a path rather than a tag."""
    return Path(weights).suffix in {".pt", ".pth", ".bin", ".safetensors"} or "/" in weights


def is_torchscript(path: Path) -> bool:
    """Returns whether the file is a TorchScript archive, the form in which OpenAI publishes CLIP."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())


def uses_quick_gelu(model: str, config: dict[str, Any], weights: str) -> bool:
    """Returns whether these weights were trained with QuickGELU.

    Args:
        model: Name of the architecture.
        config: Its open_clip configuration.
        weights: Tag, file or `random`.

    Raises:
        WeightsError: A local file of an architecture that exists with both activations: nothing in it tells which.
    """
    if config.get("quick_gelu") or weights == RANDOM:
        return bool(config.get("quick_gelu", False))
    if not is_local_file(weights):
        return bool((open_clip.get_pretrained_cfg(model, weights) or {}).get("quick_gelu", False))
    if is_torchscript(Path(weights)):
        return True
    kinds = {
        bool(open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False))
        for tag in open_clip.list_pretrained_tags_by_model(model)
    }
    if len(kinds) == 2:
        raise WeightsError(
            f"{weights}: {model} exists with QuickGELU (OpenAI's weights) and with GELU, and the file does not tell. "
            "Set `activation: quick_gelu` or `activation: gelu` beside `weights`."
        )
    return kinds == {True}


def find_weights(model: str, weights: str, cache_dir: str | None) -> Path:
    """Returns the file of a tag or a path; the network is used for a tag only, and only if it is not yet cached.

    Raises:
        WeightsError: The file cannot be had; the message names the local-file way.
    """
    if is_local_file(weights):
        if not Path(weights).is_file():
            raise WeightsError(f"Backbone weights {weights} do not exist. {LOCAL_WAY}")
        return Path(weights)
    config = open_clip.get_pretrained_cfg(model, weights)
    if not config:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise WeightsError(f"{model} has no weights tagged {weights!r}; it has: {tags}. {LOCAL_WAY}")
    hub_log = logging.getLogger("huggingface_hub")
    level = hub_log.level
    hub_log.setLevel(logging.CRITICAL)  # it prints every retry
    try:
        return Path(open_clip.download_pretrained(config, cache_dir=cache_dir))
    except Exception as error:  # the hub clients raise errors of many unrelated classes
        raise WeightsError(
            f"Weights {weights!r} of {model} could not be downloaded ({type(error).__name__}). {LOCAL_WAY}"
        ) from error
    finally:
        hub_log.setLevel(level)


def load_weights(clip: nn.Module, path: Path) -> None:
    """Fills a CLIP model from a file: OpenAI's TorchScript archive, a state dict or safetensors.

    Raises:
        WeightsError: The file is damaged or does not fit the model.
    """
    try:
        if is_torchscript(path):
            state = torch.jit.load(str(path), map_location="cpu").state_dict()
            sizes = ("input_resolution", "context_length", "vocab_size")
            clip.load_state_dict({k: v for k, v in state.items() if k not in sizes})
        else:
            load_checkpoint(clip, str(path), strict=True, weights_only=True)
    except Exception as error:  # unpickling errors, missing keys, wrong shapes
        raise WeightsError(f"{path}: not usable as weights of this model: {error}") from error


def load_vision_weights(tower: nn.Module, weights: str) -> None:
    """Fills a vision tower from a local file of its own; only the projection head may be missing there.

    Raises:
        WeightsError: The file does not exist or does not fit the tower.
    """
    path = Path(weights)
    if not path.is_file():
        raise WeightsError(f"Vision weights {path} do not exist.")
    try:
        missing, unexpected = tower.load_state_dict(load_state_dict(str(path)), strict=False)
    except Exception as error:
        raise WeightsError(f"{path}: not usable as weights of the vision tower: {error}") from error
    missing = [key for key in missing if not key.startswith(("head.", "proj"))]
    if missing or unexpected:
        raise WeightsError(
            f"{path}: does not fit the vision tower (missing: {missing[:3]}, unexpected: {list(unexpected)[:3]})"
        )


def fingerprint(state: dict[str, Tensor]) -> str:
    """Returns 16 hexadecimal digits that tell weights apart by content: names, shapes, sums and sampled values.

    Hashing every byte of a large CLIP would take seconds at each start. The sums are over the bit patterns, as
    integers, so that they do not depend on the order of summation.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        flat = tensor.detach().reshape(-1).to("cpu", torch.float32)
        digest.update(f"{name}{tuple(tensor.shape)}{flat.view(torch.int32).sum().item()}".encode())
        digest.update(flat[:: max(1, flat.numel() // 64)].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
