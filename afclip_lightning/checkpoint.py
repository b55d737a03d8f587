"""Checkpoint files: written in one step, read without unpickling objects."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from afclip_lightning.errors import CheckpointError
from afclip_lightning.files import atomic_path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it; loads with `weights_only=True`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes the checkpoint; on failure the file that was there before is unchanged.

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


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Returns a checkpoint's content, its tensors on the CPU.

    Raises:
        CheckpointError: The file is absent, damaged, holds objects or is not one of ours.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"Checkpoint {path} does not exist.")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling, zip and end-of-file errors
        raise CheckpointError(f"{path}: not a readable checkpoint ({error}).") from error
    if not isinstance(checkpoint, dict) or "feature_spec" not in checkpoint:
        raise CheckpointError(f"{path} has no feature spec: it was not written by afclip_lightning.")
    return checkpoint
