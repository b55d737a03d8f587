"""Methods of this package by name, for methods that contain other methods."""

import sys
from collections.abc import Mapping
from typing import Any

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.discovery import descendants, import_submodules
from afclip_lightning.discovery.sections import prepare
from afclip_lightning.methods.base import AnomalyMethod


def zero_shot(name: str, backbone: ClipBackbone, arguments: Mapping[str, Any], beside: str) -> AnomalyMethod:
    """Returns a zero-shot method of this package, to be combined with something else.

    Args:
        name: Name of its class.
        backbone: The frozen CLIP.
        arguments: Arguments of its constructor.
        beside: Name of what it is combined with, for messages.

    Raises:
        ValueError: There is no method of this name, or it needs more than an image.
        UserError: The method rejects an argument.
    """
    package = sys.modules[__name__.rpartition(".")[0]]
    import_submodules(package)
    ours = (cls for cls in descendants(AnomalyMethod) if cls.__module__.startswith(package.__name__))
    known = {cls.__name__: cls for cls in ours if not cls.__abstractmethods__ and not cls.holds_head}
    if name not in known:
        raise ValueError(f"there is no head {name!r}; there are {', '.join(sorted(known))}")
    head: AnomalyMethod = prepare(known[name], arguments, later=["backbone"])(backbone=backbone)
    if head.needs_references or head.needs_test_set or head.k_shot > 0 or head.adapts:
        raise ValueError(
            f"{name} with these settings cannot score an image alone, so it cannot be combined with {beside}"
        )
    return head
