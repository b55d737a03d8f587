"""Zero- and few-shot image anomaly detection on frozen CLIP features."""

import os
from typing import TYPE_CHECKING, Any

from afclip_runtime import __version__

if TYPE_CHECKING:
    from afclip_lightning.inspection.predictor import load

# albumentations would look for a newer version of itself on the network: nothing here goes there without being asked
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Returns `load`, which brings torch with it, when it is asked for."""
    if name == "load":
        from afclip_lightning.inspection.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
