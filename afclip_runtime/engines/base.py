"""What runs a model: torch, ONNX Runtime or OpenVINO. All of them are asked in one way."""

from typing import Any, Final, Protocol

import numpy as np

from afclip_runtime.views.frame import Frame

PRECISION: Final = "precision"  # setting: what the engine computes in, FLOAT32 where it is absent
FLOAT32: Final = "float32"
INT8: Final = "int8"
GRAPH_DIGEST: Final = "graph"  # setting in INT8: what the graph's file is known by


class Engine(Protocol):
    """A model that gives scores and maps of views.

    Attributes:
        name: `torch`, `onnx` or `openvino`.
        frame: What the backbone takes.
        method: Name of the method, for messages.
        backbone: Its backbone in words.
        settings: What scores depend on beside the checkpoint and the way in which images are seen, as plain values; a
            calibration is bound to them.
    """

    name: str

    @property
    def frame(self) -> Frame:
        """What the backbone takes."""

    @property
    def method(self) -> str:
        """Name of the method."""

    @property
    def backbone(self) -> str:
        """The backbone in words."""

    @property
    def settings(self) -> dict[str, Any]:
        """What scores depend on beside the checkpoint and the way in which images are seen."""

    def check_ready(self) -> None:
        """Refuses to score what cannot be scored yet.

        Raises:
            UserError: The method needs few-shot images first.
        """

    def score(self, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores a batch of views.

        Args:
            views: `[B, h, w, 3]`, uint8, RGB, of the frame's shape.

        Returns:
            Scores `[B]` and maps `[B, h, w]`, float32; higher is more anomalous.
        """
