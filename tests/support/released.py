"""Files of trained heads in the formats of other projects: recorded ones, and AF-CLIP's, which is made here."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tests.support import REPOSITORY
from tests.support.recipe import GOLDEN, value

RELEASED = GOLDEN / "released"
SHARED = REPOSITORY.parent / "shared/golden/released"  # where more of them lie beside the checkout
MODULE = "clip.adaptor"


@contextmanager
def named(name: str, *classes: type) -> Iterator[None]:
    """Puts classes into a module of that name while the body pickles. Afterwards the module is gone."""
    module = ModuleType(name)
    before = {place: sys.modules.get(place) for place in (name, name.partition(".")[0])}
    for cls in classes:
        cls.__module__, cls.__qualname__ = name, cls.__name__
        setattr(module, cls.__name__, cls)
    package = ModuleType(name.partition(".")[0])
    package.adaptor = module  # type: ignore[attr-defined]
    sys.modules |= {name.partition(".")[0]: package, name: module}
    try:
        yield
    finally:
        for place, was in before.items():
            del sys.modules[place]
            if was is not None:
                sys.modules[place] = was


def write_afclip(folder: Path, width: int = 64, text_width: int = 64, **changes: Any) -> tuple[Path, Path]:
    """Writes AF-CLIP's two files with the recipe's values, and returns their paths: tokens, adapter.

    Args:
        folder: Where they lie.
        width: Width of the vision tower.
        text_width: Width of the text tower.
        changes: `extra`, a tensor that is not known; `tokens`, how many; `inner`, channels of all heads.
    """

    class CrossAttention(nn.Module):
        def __init__(self, width: int, inner: int) -> None:
            super().__init__()
            self.heads, self.scale = inner // 64, 0.125
            self.to_q = nn.Linear(width, inner, bias=False)
            self.to_k = nn.Linear(width, inner, bias=False)
            self.to_v = nn.Linear(width, inner, bias=False)
            self.to_out = nn.Sequential(nn.Linear(inner, width), nn.Dropout(0.0))

    class BasicTransformerBlock(nn.Module):
        def __init__(self, width: int, inner: int) -> None:
            super().__init__()
            self.attn = CrossAttention(width, inner)
            self.norm = nn.LayerNorm(width)

    class Adaptor(nn.Module):
        def __init__(self, width: int, inner: int) -> None:
            super().__init__()
            self.attention = BasicTransformerBlock(width, inner)

    adapter = Adaptor(width, changes.get("inner", 512))
    for name, parameter in adapter.named_parameters():
        parameter.data.copy_(value(f"afclip.adaptor.{name}", tuple(parameter.shape)))
    if "extra" in changes:
        adapter.register_buffer("extra", changes["extra"])
    prompt = nn.Parameter(value("afclip.state_prompt_embedding", (1, changes.get("tokens", 12), text_width)))
    paths = folder / "recipe_prompt.pt", folder / "recipe_adaptor.pt"
    torch.save(prompt, paths[0])
    with named(MODULE, CrossAttention, BasicTransformerBlock, Adaptor):
        torch.save(adapter, paths[1])
    return paths


def load(name: str) -> dict[str, Any]:
    """Returns the content of a recorded file."""
    content: dict[str, Any] = torch.load(RELEASED / name, map_location="cpu", weights_only=True)
    return content


def changed(name: str, path: Path, changes: Mapping[str, Tensor | None]) -> Path:
    """Writes a recorded file with other tensors, or without those that are `None`, and returns its path."""
    content = load(name)
    state = next(iter(content.values())) if len(content) == 1 else content
    for key, tensor in changes.items():
        if tensor is None:
            del state[key]
        else:
            state[key] = tensor
    torch.save(content, path)
    return path
