"""Builds a model by name and loads its weights: a model of open_clip, or a vision tower of timm without text."""

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import open_clip
import timm
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer
from torch import nn

from afclip_lightning.backbones.sources import RANDOM, TIMM, find_weights, is_local_file
from afclip_lightning.backbones.weights import load_vision_weights, load_weights, uses_quick_gelu
from afclip_runtime.errors import WeightsError

Activation = Literal["auto", "quick_gelu", "gelu"]
TextSource = Literal["own", "random"]
RANDOM_TEXT = {"width": 384, "heads": 6, "layers": 4}


def config_of(model: str) -> tuple[str, dict[str, Any]]:
    """Returns the name and the config of an architecture of open_clip. The name of a JSON file is its stem.

    Raises:
        ValueError: There is no such architecture. The message names similar ones.
    """
    if model.endswith(".json"):
        if not Path(model).is_file():
            raise ValueError(f"model config {model} does not exist")
        open_clip.add_model_config(Path(model))
        model = Path(model).stem
    config = open_clip.get_model_config(model)
    if config is None:
        close = difflib.get_close_matches(model, open_clip.list_models(), n=3)
        raise ValueError(f"open_clip has no model {model!r}" + (f"; did you mean {', '.join(close)}?" if close else ""))
    return model, config


def build_clip(
    name: str, config: dict[str, Any], weights: str, activation: Activation, seed: int, cache_dir: str | None
) -> tuple[Any, bool]:
    """Returns a model of open_clip, and whether its activation is QuickGELU. See `ClipBackbone`.

    Raises:
        WeightsError: The weights are not available or do not fit.
        ValueError: The activation contradicts the config.
    """
    file = None if weights == RANDOM else find_weights(name, weights, cache_dir)
    if activation == "gelu" and config.get("quick_gelu"):
        raise ValueError(f"{name} has QuickGELU in its config, got activation: gelu; use the model without it")
    quick_gelu = uses_quick_gelu(name, config, weights) if activation == "auto" else activation == "quick_gelu"
    with _seeded(seed):
        clip = open_clip.create_model(
            name, pretrained=None, force_quick_gelu=quick_gelu, pretrained_image=False, pretrained_text=False
        )
    if file is not None:
        load_weights(clip, file)
    return clip, quick_gelu


def timm_name(model: str) -> str:
    """Returns `timm:NAME` of `timm:NAME.TAG`. The tag names weights; the architecture does not depend on it.

    Raises:
        ValueError: timm has no such model. The message names similar ones.
    """
    name = model.removeprefix(TIMM).partition(".")[0]
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"timm has no model {name!r}" + (f"; did you mean {', '.join(close)}?" if close else ""))
    return TIMM + name


def build_vision_only(model: str, weights: str, text: TextSource, seed: int, cache_dir: str | None) -> "VisionOnly":
    """Returns a vision tower of timm. See `ClipBackbone`.

    Raises:
        WeightsError: The weights are not available or do not fit.
    """
    with _seeded(seed):
        built = VisionOnly(timm_name(model).removeprefix(TIMM), text == "random")
    if weights != RANDOM:
        if not is_local_file(weights) and ":" not in weights:
            tag = model if "." in model else f"{model}.TAG"
            raise WeightsError(
                f"{model} is a vision tower alone, without weights tagged {weights!r}. Name its own, `weights: {tag}`, "
                "or a local file of them; `weights: random` is for tests only."
            )
        load_vision_weights(built.visual.trunk, weights, cache_dir)
    return built


class VisionOnly(nn.Module):
    """A vision tower of timm (DINOv2, DINOv3, TIPSv2, PE-Spatial, RADIO). Its own space serves as the joint space.

    Attributes:
        visual: The tower.
        text: `None`, or a text tower with random weights.
        embed_dim: D, channels of the joint space.
    """

    def __init__(self, name: str, random_text: bool) -> None:
        super().__init__()
        self.visual = _Tower(name)
        self.embed_dim: int = self.visual.trunk.num_features
        self.text = TextTransformer(output_dim=self.embed_dim, **RANDOM_TEXT) if random_text else None


class _Tower(TimmModel):
    """open_clip's adapter of a timm tower, without projection, pooled by the class token if the tower has one."""

    def __init__(self, name: str) -> None:
        nn.Module.__init__(self)
        trunk: Any = timm.create_model(name, num_classes=0)
        if getattr(trunk, "cls_token", None) is not None and getattr(trunk, "attn_pool", None) is None:
            trunk.reset_classifier(0, global_pool="token")  # timm's default for DINOv3 is the mean of the patches
        self.trunk = trunk
        self.head = nn.Sequential()
        self.image_size = trunk.pretrained_cfg["input_size"][1:]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # open_clip warns on the root logger that no weights were loaded; they are loaded later, or are to be random
        root, level = logging.getLogger(), logging.getLogger().level
        root.setLevel(logging.ERROR)
        try:
            yield
        finally:
            root.setLevel(level)
