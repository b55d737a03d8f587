"""The head file: trained tensors as safetensors, and in its metadata how the method is built, and a card."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from afclip_lightning.backbones.archives import is_finite, reason
from afclip_lightning.backbones.spec import FeatureSpec
from afclip_lightning.heads.card import Card, card_from
from afclip_runtime.errors import CheckpointError, shown
from afclip_runtime.files import atomic_path, open_regular, parse_json, read_bytes, to_type

SUFFIX = ".safetensors"
ENTRY = "afclip_lightning"  # of the metadata: one, as the order of several would be another with each write
FORMAT = 1
MEMORY = "memory."  # what the names of a memory bank's tensors begin with
HEAD_LIMIT = 2**31  # bytes of a head file
HEADER_LIMIT = 2**24  # bytes of its index and metadata
REMEDY = "Restore the file, name another, or pack the head again."


@dataclass(frozen=True)
class Head:
    """A trained head, which stands alone: what `load_head` makes a method of.

    Attributes:
        tensors: The trained tensors by name, as the method's `state_dict` has them.
        method: Full name of the method's class.
        hyperparameters: Constructor arguments as the method kept them.
        features: The features that it takes; the backbone's content is known by their `weights_hash`.
        model: `class_path` and `init_args`, as the `model` section of a config; without an optimiser.
        card: What it says of itself.
        memory: Tensors of a memory bank that was fitted already, by name; empty for none.
    """

    tensors: Mapping[str, Tensor]
    method: str
    hyperparameters: Mapping[str, Any]
    features: FeatureSpec
    model: Mapping[str, Any]
    card: Card = field(default_factory=Card)
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    def to_checkpoint(self) -> dict[str, Any]:
        """Returns the head as `read_checkpoint` gives a checkpoint."""
        return {
            "state_dict": dict(self.tensors),
            "method": self.method,
            "method_hyperparameters": dict(self.hyperparameters),
            "feature_spec": self.features.to_dict(),
            "model": dict(self.model),
            "card": self.card.to_dict(),
            "memory": dict(self.memory),
        }


class _Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    class_path: str
    init_args: dict[str, Any] = {}


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the metadata holds."""

    format: int
    method: str
    hyperparameters: dict[str, Any]
    features: FeatureSpec
    model: _Model
    card: Card
    digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


def is_head_file(path: str | Path) -> bool:
    """Returns whether a file is a head file or another of safetensors: by its content, whatever it is called."""
    with open_regular(path, error=CheckpointError) as file:
        start = file.read(9)
    return start[8:] == b"{" and start[6:8] == b"\0\0"  # the length of the index, then the index


def write_head_file(path: Path, head: Head) -> None:
    """Writes a head file in one step; the same head gives the same bytes.

    Raises:
        CheckpointError: A tensor is not finite, a name of one is that of a memory bank's, or the card is none.
        UserError: The file cannot be written.
    """
    tensors = {**head.tensors, **{MEMORY + name: tensor for name, tensor in head.memory.items()}}
    if clash := [name for name in head.tensors if name.startswith(MEMORY)]:
        raise CheckpointError(f"{shown(path)}: the trained tensor {clash[0]} is called as those of a memory bank are.")
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    _check_finite(tensors, path)
    entry = {
        "format": FORMAT,
        "method": head.method,
        "hyperparameters": head.hyperparameters,
        "features": head.features.to_dict(),
        "model": {"class_path": head.model["class_path"], "init_args": head.model.get("init_args") or {}},
        "card": card_from(head.card.to_dict(), f"{shown(path)}: the card", CheckpointError).to_dict(),
        "digest": _digest(tensors),
    }
    content = save(tensors, {ENTRY: json.dumps(entry, sort_keys=True, allow_nan=False)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_head_file(path: str | Path) -> Head:
    """Returns a head file's content, its tensors on the CPU.

    Raises:
        CheckpointError: The file is absent, damaged, none of ours, or of a later version; an entry is of another type;
            a tensor is not finite.
    """
    content = read_bytes(path, limit=HEAD_LIMIT, error=CheckpointError)
    entry = _entry(content, path)
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as problem:
        raise CheckpointError(f"{shown(path)}: is damaged ({reason(problem)}). {REMEDY}") from problem
    if _digest(tensors) != entry.digest:
        raise CheckpointError(f"{shown(path)}: is damaged: the checksum of its tensors differs. {REMEDY}")
    _check_finite(tensors, path)
    return Head(
        {name: tensor for name, tensor in tensors.items() if not name.startswith(MEMORY)},
        entry.method,
        entry.hyperparameters,
        entry.features,
        {"class_path": entry.model.class_path, "init_args": entry.model.init_args},
        entry.card,
        {name.removeprefix(MEMORY): tensor for name, tensor in tensors.items() if name.startswith(MEMORY)},
    )


def read_head_card(path: str | Path) -> Card:
    """Returns the card of a head file; only its index is read.

    Raises:
        CheckpointError: See `read_head_file`.
    """
    with open_regular(path, error=CheckpointError) as file:
        return _entry(file.read(8 + HEADER_LIMIT), path).card


def _entry(content: bytes, path: str | Path) -> _Entry:
    """Returns what the metadata of a head file holds; of the content, the beginning is looked at."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 0 < length <= min(HEADER_LIMIT, len(content) - 8):
        raise CheckpointError(f"{shown(path)}: is no head file, or its end is missing. {REMEDY}")
    index = parse_json(content[8 : 8 + length], dict[str, Any], shown(path), remedy=REMEDY, error=CheckpointError)
    metadata = index.get("__metadata__")
    text = metadata.get(ENTRY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise CheckpointError(
            f"{shown(path)} was not written by afclip_lightning: its metadata has no entry {ENTRY!r}. {REMEDY}"
        )
    plain = parse_json(text, dict[str, Any], shown(path), remedy=REMEDY, error=CheckpointError)
    if isinstance(plain.get("format"), int) and plain["format"] > FORMAT:
        raise CheckpointError(
            f"{shown(path)} was written by a later version of afclip_lightning (format {plain['format']}; this one "
            f"reads {FORMAT}). Install that version."
        )
    known = {field.name for field in fields(FeatureSpec)}
    features = plain.get("features")
    if isinstance(features, dict) and (unknown := features.keys() - known):
        raise CheckpointError(
            f"{shown(path)}: features: {', '.join(sorted(unknown))} is not known here: a later version of "
            "afclip_lightning wrote the file. Install that version."
        )
    return to_type(plain, _Entry, shown(path), remedy=REMEDY, error=CheckpointError)


def _check_finite(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise CheckpointError(f"{shown(path)}: {shown(name)} holds NaN or infinity: its training failed. {REMEDY}")


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of tensors by name, type, shape and bytes: safetensors itself keeps no checksum."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
