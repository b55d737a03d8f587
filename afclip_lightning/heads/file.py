"""The head file: trained tensors as safetensors, with the method's arguments and a card in the metadata."""

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
ENTRY = "afclip_lightning"  # the only metadata entry, since the order of several would vary between writes
FORMAT = 1
MEMORY = "memory."  # prefix of the names of a memory bank's tensors
HEAD_LIMIT = 2**31  # size limit of a head file, in bytes
HEADER_LIMIT = 2**24  # size limit of its index and metadata, in bytes
REMEDY = "Restore the file, name another, or pack the head again."


@dataclass(frozen=True)
class Head:
    """A self-contained trained head, from which `load_head` makes a method.

    Attributes:
        tensors: Trained tensors, with the names of the method's `state_dict`.
        method: Full name of the method's class.
        hyperparameters: Constructor arguments as stored by the method.
        features: Features that it needs. Their `weights_hash` identifies the backbone's weights.
        model: `class_path` and `init_args`, like the `model` section of a config, without an optimiser.
        card: Card of the head.
        memory: Tensors of a fitted memory bank by name; empty without a memory bank.
    """

    tensors: Mapping[str, Tensor]
    method: str
    hyperparameters: Mapping[str, Any]
    features: FeatureSpec
    model: Mapping[str, Any]
    card: Card = field(default_factory=Card)
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    def to_checkpoint(self) -> dict[str, Any]:
        """Returns the head in the form of `read_checkpoint`."""
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
    """The contents of the metadata."""

    format: int
    method: str
    hyperparameters: dict[str, Any]
    features: FeatureSpec
    model: _Model
    card: Card
    digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


def is_head_file(path: str | Path) -> bool:
    """Returns whether a file is a head file or another safetensors file, judged by its content and not its name."""
    with open_regular(path, error=CheckpointError) as file:
        start = file.read(9)
    return start[8:] == b"{" and start[6:8] == b"\0\0"  # the length of the index, then the index


def write_head_file(path: Path, head: Head) -> None:
    """Writes a head file, atomically. The same head gives the same bytes.

    Raises:
        CheckpointError: A tensor is not finite or has a name that is reserved for the memory bank, or the card is
            invalid.
        UserError: The file cannot be written.
    """
    tensors = {**head.tensors, **{MEMORY + name: tensor for name, tensor in head.memory.items()}}
    if clash := [name for name in head.tensors if name.startswith(MEMORY)]:
        raise CheckpointError(f"{shown(path)}: the trained tensor {clash[0]} has a name reserved for the memory bank.")
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
        CheckpointError: The file is absent, damaged, of another program or of a later version; an entry has another
            type; or a tensor is not finite.
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
    """Returns the card of a head file. Only its index is read.

    Raises:
        CheckpointError: See `read_head_file`.
    """
    with open_regular(path, error=CheckpointError) as file:
        return _entry(file.read(8 + HEADER_LIMIT), path).card


def _entry(content: bytes, path: str | Path) -> _Entry:
    """Returns the metadata of a head file. The beginning of the content is enough."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 0 < length <= min(HEADER_LIMIT, len(content) - 8):
        raise CheckpointError(f"{shown(path)}: is not a head file, or its end is missing. {REMEDY}")
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
    """Returns the SHA-256 of tensors by name, type, shape and bytes, because safetensors itself has no checksum."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
