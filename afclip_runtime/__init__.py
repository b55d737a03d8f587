"""Inspection of images without torch: what a factory PC needs, and what afclip_lightning is built on.

Nothing here imports torch, Lightning, open_clip or afclip_lightning.
"""

import os
import sys

# Engines report to their makers that they run, and mark the machine with an identifier, unless they are told not to
# before they are imported: nothing here goes to a network without being asked
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # OpenVINO and nncf do without it then

__version__ = "0.1.0"
