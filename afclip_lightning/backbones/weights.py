"""Loads weights into a backbone: files of every kind are read, checked and identified by their content."""

import hashlib
import sys
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_checkpoint, load_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from afclip_lightning.backbones.archives import (
    check_archive,
    is_finite,
    is_torchscript,
    load_saved,
    read_torchscript,
    reason,
)
from afclip_lightning.backbones.layouts import converted, foreign_layout
from afclip_lightning.backbones.packages import read_package
from afclip_lightning.backbones.sources import (
    EMBEDDED,
    HUB,
    LOCAL_WAY,
    PIP,
    RANDOM,
    TIMM,
    TOWER_FILES,
    find_hub_file,
    is_local_file,
    listed_config,
    repository_of,
    timm_weights,
)
from afclip_runtime.errors import WeightsError
from afclip_runtime.files import open_regular

FINGERPRINT_PART = 2**22  # values per partial sum


def uses_quick_gelu(model: str, config: dict[str, Any], weights: str) -> bool:
    """Returns whether these weights were trained with QuickGELU.

    Args:
        model: Name of the architecture.
        config: Its open_clip configuration.
        weights: Tag, file, `hf-hub:` name, `embedded` or `random`.

    Raises:
        WeightsError: The architecture exists with both activations, and the file does not tell which one it is for.
    """
    if config.get("quick_gelu") or weights in (RANDOM, EMBEDDED):
        return bool(config.get("quick_gelu", False))
    listed = listed_config(model, weights)
    if listed or not (is_local_file(weights) or weights.startswith(HUB)):
        return bool(listed.get("quick_gelu", False))
    if is_torchscript(Path(weights)):
        return True
    kinds = {
        bool(open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False))
        for tag in open_clip.list_pretrained_tags_by_model(model)
    }
    if len(kinds) == 2:
        raise WeightsError(
            f"{weights}: {model} exists with QuickGELU (OpenAI's weights) and with GELU. The file does not say which. "
            "Set `activation: quick_gelu` or `activation: gelu` beside `weights`."
        )
    return kinds == {True}


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
        elif foreign_layout(tensor_names(path)) is not None:
            clip.load_state_dict(_for_towers(converted(load_state_dict(str(path))), clip))
        else:
            load_checkpoint(clip, str(path), strict=True, weights_only=True)
    check_finite(clip, path)


def tensor_names(path: Path) -> list[str]:
    """Returns the names of the tensors of a file without reading the tensors. Empty if the format does not allow that.

    Raises:
        Exception: The file is damaged. The class varies.
    """
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return list(file.keys())
    if not zipfile.is_zipfile(path):
        return []  # a file in torch's format until 2020
    state = load_saved(path, mmap=True)
    return [name for name in state if isinstance(name, str)] if isinstance(state, dict) else []


def _for_towers(state: dict[str, Tensor], clip: nn.Module) -> dict[str, Tensor]:
    """Returns a state dict with OpenAI's names under the names of a model with its text tower at `text`."""
    return state if hasattr(clip, "token_embedding") else convert_to_custom_text_state_dict(state)


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Checks the file first, and turns all errors of the body into one: the file is not usable as weights of `what`."""
    with open_regular(path, error=WeightsError) as file:
        if zipfile.is_zipfile(file):
            check_archive(file, path, WeightsError)
    try:
        yield
    except Exception as error:  # unpickling errors, missing keys, wrong shapes
        raise WeightsError(f"{path}: not usable as weights of {what}: {reason(error)}. {LOCAL_WAY}") from error


def check_finite(module: nn.Module, source: str | Path) -> None:
    """Rejects weights with NaN or infinity, as every score would be NaN.

    Raises:
        WeightsError: A value is not finite. The message names the source and the tensor.
    """
    for name, tensor in module.state_dict().items():
        if not is_finite(tensor):
            raise WeightsError(f"{source}: {name} holds NaN or infinity. Restore the file, or name other weights.")


def has_cut_vocabulary(path: Path) -> bool:
    """Returns whether the file has a reduced token table, which `expand_vocabulary` must complete.

    It reads the index only.
    """
    if path.suffix != ".safetensors":
        return False
    with safe_open(path, "pt") as file:
        return "token_ids" in file.keys()  # noqa: SIM118 (it is no mapping)


def expand_vocabulary(tensors: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Returns a full state dict, float32, of weights whose token table was reduced to the tokens of their captions.

    Args:
        tensors: A state dict in which `token_embedding.weight` has a row for each of `token_ids` `[V]`, and
            `token_embedding.unknown` is the row of every other token.
        size: Rows of the full table.
    """
    state = {k: v.float() for k, v in tensors.items() if k not in ("token_ids", "token_embedding.unknown")}
    table = tensors["token_embedding.unknown"].float().repeat(size, 1)
    table[tensors["token_ids"].long()] = state["token_embedding.weight"]
    return {**state, "token_embedding.weight": table}


def load_vision_weights(tower: nn.Module, weights: str, cache_dir: str | None = None) -> None:
    """Loads weights into a vision tower. Only the projection head may be missing.

    Args:
        tower: A tower of timm or open_clip.
        weights: A local file, or a name that starts with `hf-hub:`, `timm:` or `pip:`. See `sources` and `packages`.
        cache_dir: Folder of downloads.

    Raises:
        WeightsError: The weights are not available or do not fit the tower.
    """
    with _fitting(weights):
        state = _timm_names(converted(_vision_state(weights, cache_dir)), tower)
        missing, unexpected = tower.load_state_dict(state, strict=False)
    missing = [key for key in missing if not key.startswith(("head.", "proj"))]
    if missing or unexpected:
        raise WeightsError(
            f"{weights}: does not fit the vision tower (missing: {missing[:3]}, unexpected: {list(unexpected)[:3]})"
        )
    check_finite(tower, weights)


def _vision_state(weights: str, cache_dir: str | None) -> dict[str, Tensor]:
    if weights.startswith(PIP):
        return read_package(weights.removeprefix(PIP))[0]
    if weights.startswith(TIMM):
        return timm_weights(weights, cache_dir)
    path = (
        find_hub_file(repository_of("", weights, TOWER_FILES), cache_dir) if weights.startswith(HUB) else Path(weights)
    )
    if not path.is_file():
        raise WeightsError(f"Vision weights {path} do not exist.")
    with _reading(path, "the vision tower"):
        return load_state_dict(str(path))


def _timm_names(state: dict[str, Tensor], tower: nn.Module) -> dict[str, Tensor]:
    """Returns a state dict with timm's names. timm converts the names of the authors of a tower."""
    known = getattr(sys.modules[type(tower).__module__], "checkpoint_filter_fn", None)
    if known is None or tower.state_dict().keys() == state.keys():
        return state
    return dict(known(state, tower))


@contextmanager
def _fitting(weights: str) -> Iterator[None]:
    """Turns torch's errors on a state dict into one: the weights do not fit the tower."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:  # wrong shapes, no tensors
        raise WeightsError(
            f"{weights}: not usable as weights of the vision tower: {reason(error)}. {LOCAL_WAY}"
        ) from error


def fingerprint(state: dict[str, Tensor], computed: Collection[str] = ()) -> str:
    """Returns a fingerprint of weights, 16 hexadecimal digits, from names, shapes, sums and sampled values.

    Processors differ in the last bits of computed values. Tensors that were initialised at random or resized here,
    rather than loaded, therefore count by their first values only, to two digits. The same recipe has the same
    fingerprint on any machine.

    Hashing every byte of a large CLIP would take seconds at each start. The sums are over the bit patterns as integers,
    so that they do not depend on the order of summation. They are computed in parts: torch widens a tensor to 64 bits
    before a sum, and the token table of a multilingual text tower is 1 to 4 GB.

    Args:
        state: The tensors by name.
        computed: Names of the tensors that were initialised at random or resized.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        flat = tensor.detach().reshape(-1)
        if name in computed:
            digest.update(f"{name}{tuple(tensor.shape)}{[f'{value:.1e}' for value in flat[:4].tolist()]}".encode())
            continue
        parts = (part.to("cpu", torch.float32).view(torch.int32) for part in flat.split(FINGERPRINT_PART))
        digest.update(f"{name}{tuple(tensor.shape)}{sum(int(part.sum()) for part in parts)}".encode())
        samples = flat[:: max(1, flat.numel() // 64)].to("cpu", torch.float32)
        digest.update(samples.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
