"""A ready model for tests: the small head as a head file with its own thresholds, in place of the package's."""

from pathlib import Path

import pytest

from afclip_lightning.engine.factory import Backbones
from afclip_lightning.heads import ready
from afclip_lightning.heads.card import Card
from afclip_lightning.heads.pack import pack
from afclip_runtime.thresholds import DefaultThreshold, DefaultThresholds
from tests.support.small_head import write_head

NAME = "toy"
THRESHOLD, PIXEL_THRESHOLD = 0.2, 0.45
CARD = Card(
    title="A small head for tests",
    thresholds=DefaultThresholds(
        "By hand, for tests.", DefaultThreshold(THRESHOLD, 0.05), DefaultThreshold(PIXEL_THRESHOLD, 0.05)
    ),
    licence="Apache-2.0",
)


def write_ready(folder: Path, backbones: Backbones, name: str = NAME) -> Path:
    """Writes the head file of a ready model, and returns its path."""
    pack(write_head(folder / "head.ckpt", backbones), folder / f"{name}.safetensors", CARD)
    (folder / "head.ckpt").unlink()
    return folder / f"{name}.safetensors"


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the folder of the ready models."""
    monkeypatch.setattr(ready, "MODELS", folder)
