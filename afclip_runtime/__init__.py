"""Inspection of images without torch, for factory PCs and as the base of afclip_lightning.

Nothing here imports torch, Lightning, open_clip or afclip_lightning.
"""

import os
import sys

# Engines send telemetry to their vendors, with an identifier of the machine, unless it is disabled before the import.
# Nothing here uses a network unless the user asks for it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # OpenVINO and nncf work without it

__version__ = "0.2.0"
