"""Checkpoint files. They are written in one step, read without unpickling objects, and checked before use."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from afclip_lightning.backbones.archives import is_finite, read_archive
from afclip_lightning.backbones.spec import FeatureSpec
from afclip_lightning.heads.card import Card
from afclip_lightning.heads.file import SUFFIX, is_head_file, read_head_file
from afclip_runtime.errors import CheckpointError, shown
from afclip_runtime.files import atomic_path, to_type

HEAD_FILE = "head.ckpt"  # in a run's folder: the trained head, for everything except resuming training
PACKED = "head" + SUFFIX  # a head in another format, in place of `head.ckpt`
LAST = Path("checkpoints") / "last.ckpt"  # in a run's folder: the state that training resumes from
REMEDY = "Name another checkpoint, or train the head again."


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file and renames it; loads with `weights_only=True`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes the checkpoint. On failure, the earlier file is unchanged.

        Raises:
            UserError: The disk is full or not writable.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with atomic_path(Path(path)) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns the checkpoint, its tensors on the CPU.

        Raises:
            CheckpointError: The file is absent, damaged or holds objects.
        """
        return read_checkpoint(path)


@dataclass(frozen=True)
class _Model:
    """Class and arguments of a method, as in the `model` section of a config."""

    class_path: str
    init_args: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Content:
    """The entries of our checkpoints, apart from Lightning's own."""

    state_dict: dict[str, Tensor]
    method: str
    method_hyperparameters: dict[str, Any]
    feature_spec: FeatureSpec
    model: _Model | None = None
    card: Card | None = None


def head_in(folder: Path) -> Path:
    """Returns the head of a folder: `head.ckpt`, as a run writes it, or `head.safetensors`.

    Raises:
        CheckpointError: The folder has both, or neither: for example, because its training has not ended.
    """
    ours, packed = folder / HEAD_FILE, folder / PACKED
    if ours.exists() and packed.exists():
        raise CheckpointError(f"{shown(folder)} has two heads, {HEAD_FILE} and {PACKED}: name one of them.")
    if packed.exists():
        return packed
    if not ours.is_file() and (folder / LAST).is_file():
        raise CheckpointError(
            f"{folder} has no {HEAD_FILE}: its training has not ended. Go on with it, or give {folder / LAST} to take "
            "the head as it was then."
        )
    if not ours.is_file():
        raise CheckpointError(
            f"{shown(folder)} has neither {HEAD_FILE} nor {PACKED}: it is not the folder of a run of `fit` or the "
            "output of `adapt`. Check the path."
        )
    return ours


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Returns the content of a checkpoint or of a head file, its tensors on the CPU.

    Raises:
        CheckpointError: The file is absent, damaged, holds objects or is not one of ours; or an entry has another type,
            or a trained tensor is not finite.
    """
    if is_head_file(path):
        return read_head_file(path).to_checkpoint()
    checkpoint = read_archive(path, CheckpointError)
    if not isinstance(checkpoint, dict) or "feature_spec" not in checkpoint:
        raise CheckpointError(
            f"{path} has no feature spec: it was not written by afclip_lightning. {REMEDY} `afclip head import` reads "
            "files of other projects' code."
        )
    for name in ("method", "method_hyperparameters", "feature_spec", "model", "card"):
        if not _is_plain(checkpoint.get(name)):
            raise CheckpointError(f"{path}: {name} holds more than text, numbers, lists and mappings. {REMEDY}")
    if isinstance(checkpoint.get("state_dict"), Tensor):
        raise CheckpointError(f"{path}: state_dict: expected a mapping of names to tensors, got one tensor. {REMEDY}")
    size = Path(path).stat().st_size
    content = to_type(checkpoint, _Content, shown(path), remedy=REMEDY, error=CheckpointError)
    for name, tensor in content.state_dict.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.nbytes > size:
            raise CheckpointError(f"{path}: state_dict: {name} is not a plain tensor. {REMEDY}")
        if not is_finite(tensor):
            raise CheckpointError(f"{path}: state_dict: {name} holds NaN or infinity: its training failed. {REMEDY}")
    return checkpoint


def _is_plain(value: Any) -> bool:
    """Returns whether a value is text, a number, or a list or mapping of these."""
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    return (
        all(map(_is_plain, value)) if isinstance(value, list | tuple) else isinstance(value, str | float | int | None)
    )
