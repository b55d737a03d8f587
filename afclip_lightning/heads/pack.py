"""Converts a checkpoint to a head file with a card."""

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import msgspec

import afclip_lightning
from afclip_lightning.backbones.spec import FeatureSpec
from afclip_lightning.engine.checkpoint import read_checkpoint
from afclip_lightning.heads.card import Card, card_from
from afclip_lightning.heads.file import Head, write_head_file
from afclip_lightning.heads.foreign import find_released
from afclip_runtime.errors import CheckpointError, shown
from afclip_runtime.files import to_type


def read_head(path: str | Path) -> Head:
    """Returns the head of a checkpoint or of a head file.

    Raises:
        CheckpointError: The file cannot be read, or does not state how its method is built.
    """
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        if (released := find_released(Path(path))) is None:
            raise
        raise CheckpointError(
            f"{shown(path)} is a head of {released.format.project}: convert it first, `afclip head "
            f"import {shown(path)}`, and name the file that this writes."
        ) from error
    model = checkpoint.get("model")
    if not model:
        raise CheckpointError(f"{shown(path)} does not say how its method is built: train the head again.")
    arguments = {name: value for name, value in (model.get("init_args") or {}).items() if name != "optimizer"}
    return Head(
        checkpoint["state_dict"],
        checkpoint["method"],
        checkpoint["method_hyperparameters"],
        to_type(checkpoint["feature_spec"], FeatureSpec, shown(path), error=CheckpointError),
        {"class_path": model["class_path"], "init_args": arguments},
        card_from(checkpoint.get("card") or {}, shown(path), CheckpointError),
        checkpoint.get("memory") or {},
    )


def pack(checkpoint: str | Path, out: Path, card: Card | None = None) -> Head:
    """Writes a checkpoint as a head file, and returns the head.

    Args:
        checkpoint: Checkpoint of `fit`, or a head file that gets another card.
        out: The head file.
        card: Card of the head; the checkpoint's own by default. A missing version or date is filled in.

    Raises:
        CheckpointError: The checkpoint cannot be read, or does not state how its method is built.
        UserError: The file cannot be written.
    """
    head = read_head(checkpoint)
    head = replace(head, card=dated(head.card if card is None else card))
    write_head_file(out, head)
    return head


def dated(card: Card) -> Card:
    """Returns a card whose missing version and date are filled in: afclip_lightning's version, today in UTC."""
    today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    version = card.version or afclip_lightning.__version__
    return msgspec.structs.replace(card, version=version, date=card.date or today)
