"""Presets: their facts are those of the registries that they name."""

import open_clip
import pytest
import timm
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower

from afclip_lightning.backbones.presets import PRESETS, Preset, preset
from afclip_lightning.errors import UserError

TIMM = "timm:"


def vision_tower(entry: Preset) -> tuple[torch.nn.Module, int]:
    """The vision tower without memory, and the size that its registry names."""
    with torch.device("meta"):
        if entry.model.startswith(TIMM):
            tower = timm.create_model(entry.model.removeprefix(TIMM), num_classes=0)
            return tower, tower.pretrained_cfg["input_size"][1]
        config = open_clip.get_model_config(entry.model)
        tower = _build_vision_tower(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]))
        return getattr(tower, "trunk", tower), config["vision_cfg"]["image_size"]


@pytest.mark.parametrize("name", PRESETS)
def test_facts_are_those_of_the_registry(name: str) -> None:
    entry = PRESETS[name]
    assert entry.name == name
    tower, native = vision_tower(entry)
    blocks = tower.blocks if hasattr(tower, "blocks") else tower.transformer.resblocks
    assert entry.depth == len(blocks)
    assert entry.native_size == native
    assert list(entry.layers) == sorted(set(entry.layers))
    assert entry.layers[0] >= 1
    assert entry.layers[-1] <= entry.depth
    if entry.vision_weights is None:
        assert open_clip.get_pretrained_cfg(entry.model, entry.weights)
    elif entry.vision_weights.startswith(TIMM):
        assert entry.licence == tower.pretrained_cfg["license"]


def test_an_unknown_preset_is_refused_with_the_nearest_and_the_list() -> None:
    with pytest.raises(
        UserError, match=r"no preset 'dinov3-xl'. Did you mean dinov3-l\? There are: clip-b, .*dinov3-b"
    ):
        preset("dinov3-xl")
