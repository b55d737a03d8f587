"""Where backbone weights come from: an open_clip tag, a local file, or an explicit seed."""

import hashlib
import logging
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_checkpoint, load_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from afclip_lightning.backbones.archives import check_archive, is_finite, is_torchscript, read_torchscript, reason
from afclip_lightning.backbones.preprocess import CLIP_MEAN, CLIP_STD
from afclip_lightning.errors import WeightsError
from afclip_lightning.files import open_regular

Channels = tuple[float, float, float]
RANDOM = "random"
EMBEDDED = "embedded"
MODELS = Path(__file__).parent / "models"  # configs of our own, and weights that come with the package
LOCAL_WAY = (
    "On a machine without internet, download the file elsewhere and give its path as `weights` "
    "(OpenAI's TorchScript archive, .pt, .bin or .safetensors); `weights: random` is for tests only."
)


def is_local_file(weights: str) -> bool:
    """Returns whether `weights` is meant as a path rather than a tag."""
    return Path(weights).suffix in {".pt", ".pth", ".bin", ".safetensors"} or "/" in weights


def uses_quick_gelu(model: str, config: dict[str, Any], weights: str) -> bool:
    """Returns whether these weights were trained with QuickGELU.

    Args:
        model: Name of the architecture.
        config: Its open_clip configuration.
        weights: Tag, file or `random`.

    Raises:
        WeightsError: A local file of an architecture that exists with both activations: nothing in it tells which.
    """
    if config.get("quick_gelu") or weights in (RANDOM, EMBEDDED):
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


def normalisation_of(model: str, weights: str) -> tuple[Channels, Channels]:
    """Returns the mean and standard deviation of the channels that these weights were trained with.

    A file is taken to be like the listed weights of its architecture, where they all agree; else CLIP's own values.
    """
    tags = [weights] if open_clip.get_pretrained_cfg(model, weights) else open_clip.list_pretrained_tags_by_model(model)
    listed = {
        (tuple(config.get("mean") or CLIP_MEAN), tuple(config.get("std") or CLIP_STD))
        for config in (open_clip.get_pretrained_cfg(model, tag) for tag in tags)
    }
    return listed.pop() if len(listed) == 1 else (CLIP_MEAN, CLIP_STD)


def find_weights(model: str, weights: str, cache_dir: str | None) -> Path:
    """Returns the file of a tag or a path; the network may be used for a tag only.

    Raises:
        WeightsError: The file cannot be had; the message names the local-file way.
    """
    if is_local_file(weights):
        if not Path(weights).is_file():
            raise WeightsError(f"Backbone weights {weights} do not exist. {LOCAL_WAY}")
        return Path(weights)
    if weights == EMBEDDED:
        if not (MODELS / f"{model}.safetensors").is_file():
            there = ", ".join(sorted(path.stem for path in MODELS.glob("*.safetensors")))
            raise WeightsError(f"{model} has no weights in the package; these have: {there}. {LOCAL_WAY}")
        return MODELS / f"{model}.safetensors"
    config = open_clip.get_pretrained_cfg(model, weights)
    if not config:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise WeightsError(f"{model} has no weights tagged {weights!r}; it has: {tags}. {LOCAL_WAY}")
    print(
        f"Weights {weights!r} of {model}: from the cache, else from the network, which may take a while.",
        file=sys.stderr,
    )
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
        WeightsError: The file is damaged, does not fit the model, or has values that are not finite.
    """
    with _reading(path, "this model"):
        if is_torchscript(path):
            with path.open("rb") as file:
                state = read_torchscript(file)
            sizes = ("input_resolution", "context_length", "vocab_size")
            clip.load_state_dict({k: v for k, v in state.items() if k not in sizes})
        elif has_cut_vocabulary(path):
            clip.load_state_dict(
                expand_vocabulary(load_file(path), clip.state_dict()["token_embedding.weight"].shape[0])
            )
        else:
            load_checkpoint(clip, str(path), strict=True, weights_only=True)
    check_finite(clip, path)


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Looks at the file first, and says of all errors of the body that the file is not usable as weights of `what`."""
    with open_regular(path, error=WeightsError) as file:
        if zipfile.is_zipfile(file):
            check_archive(file, path, WeightsError)
    try:
        yield
    except Exception as error:  # unpickling errors, missing keys, wrong shapes
        raise WeightsError(f"{path}: not usable as weights of {what}: {reason(error)}. {LOCAL_WAY}") from error


def check_finite(module: nn.Module, path: Path) -> None:
    """Refuses weights that hold NaN or infinity: every score would be NaN.

    Raises:
        WeightsError: Names the file and the tensor.
    """
    for name, tensor in module.state_dict().items():
        if not is_finite(tensor):
            raise WeightsError(f"{path}: {name} holds NaN or infinity. Restore the file, or name other weights.")


def has_cut_vocabulary(path: Path) -> bool:
    """Returns whether the file holds a token table that `expand_vocabulary` must fill up; reads its index only."""
    if path.suffix != ".safetensors":
        return False
    with safe_open(path, "pt") as file:
        return "token_ids" in file.keys()  # noqa: SIM118 (it is no mapping)


def expand_vocabulary(tensors: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Returns a full state dict, float32, of weights whose token table was cut to the tokens that their captions held.

    Args:
        tensors: A state dict in which `token_embedding.weight` has a row for each of `token_ids` `[V]`, and
            `token_embedding.unknown` is the row of every other token.
        size: Rows of the full table.
    """
    state = {k: v.float() for k, v in tensors.items() if k not in ("token_ids", "token_embedding.unknown")}
    table = tensors["token_embedding.unknown"].float().repeat(size, 1)
    table[tensors["token_ids"].long()] = state["token_embedding.weight"]
    return {**state, "token_embedding.weight": table}


def load_vision_weights(tower: nn.Module, weights: str) -> None:
    """Fills a vision tower from a local file of its own; only the projection head may be missing there.

    Raises:
        WeightsError: The file does not exist or does not fit the tower.
    """
    path = Path(weights)
    if not path.is_file():
        raise WeightsError(f"Vision weights {path} do not exist.")
    with _reading(path, "the vision tower"):
        missing, unexpected = tower.load_state_dict(load_state_dict(str(path)), strict=False)
    missing = [key for key in missing if not key.startswith(("head.", "proj"))]
    if missing or unexpected:
        raise WeightsError(
            f"{path}: does not fit the vision tower (missing: {missing[:3]}, unexpected: {list(unexpected)[:3]})"
        )
    check_finite(tower, path)


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
