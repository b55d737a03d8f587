"""The common interface of engines, which run a model: torch, ONNX Runtime or OpenVINO."""

from typing import Any, Final, Protocol

import numpy as np

from afclip_runtime.views.frame import Frame

PRECISION: Final = "precision"  # setting: number format of the computation; FLOAT32 if missing
FLOAT32: Final = "float32"
INT8: Final = "int8"
GRAPH_DIGEST: Final = "graph"  # setting in INT8: digest of the graph's file


class Engine(Protocol):
    """A model that returns scores and maps of views.

    Attributes:
        name: `torch`, `onnx` or `openvino`.
        frame: Input frame of the backbone.
        method: Name of the method, for messages.
        backbone: Description of the backbone.
        settings: Settings that scores depend on, apart from the checkpoint and the tiling, as plain values. A
            calibration holds for these settings only.
    """

    name: str

    @property
    def frame(self) -> Frame:
        """Input frame of the backbone."""

    @property
    def method(self) -> str:
        """Name of the method."""

    @property
    def backbone(self) -> str:
        """Description of the backbone."""

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that scores depend on, apart from the checkpoint and the tiling."""

    def check_ready(self) -> None:
        """Checks that the model can score.

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
