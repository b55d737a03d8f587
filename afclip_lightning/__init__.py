"""Zero- and few-shot image anomaly detection on frozen CLIP features."""

import os
from typing import TYPE_CHECKING, Any

from afclip_runtime import __version__

if TYPE_CHECKING:
    from afclip_lightning.inspection.predictor import load

# albumentations looks for a newer version on the network, but nothing here uses the network unless asked
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Returns `load`. It is imported at the first access, because it imports torch."""
    if name == "load":
        from afclip_lightning.inspection.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
