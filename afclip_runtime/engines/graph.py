"""Base class of the engines that run a graph written by `export`: ONNX Runtime and OpenVINO."""

import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from afclip_runtime.engines.base import INT8, PRECISION
from afclip_runtime.errors import UserError, shown
from afclip_runtime.views.frame import Frame

IMAGE, SCORE, MAP = "image", "score", "map"  # names of the input and of the outputs


@dataclass(frozen=True)
class GraphFacts:
    """Facts of a graph that its file does not contain.

    Attributes:
        frame: Input frame of the backbone.
        method: Name of the method.
        backbone: Description of the backbone.
        settings: Settings that scores depend on, apart from the checkpoint and the tiling.
    """

    frame: Frame
    method: str
    backbone: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Port:
    """An input or an output of a graph.

    Attributes:
        type: Type of the values, as NumPy's name.
        shape: Length per axis; `None` for any length.
    """

    type: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.type} [{', '.join('any' if side is None else str(side) for side in self.shape)}]"


class GraphEngine(ABC):
    """A graph file that runs on the CPU; see `afclip_runtime.engines.base.Engine`.

    Views must be uint8 and of the frame's shape. This is checked, since OpenVINO would silently round a float image to
    uint8.

    Args:
        path: An ONNX file with the input `image` and the outputs `score` and `map`, for batches of any size.
        facts: Facts that the file does not contain.
        threads: Maximum number of threads per batch. By default all processor cores.

    Raises:
        UserError: The engine's package is not installed, the file is damaged or contains another graph, or `threads` is
            below 1.
    """

    name: str
    package: ClassVar[str]

    def __init__(self, path: Path, facts: GraphFacts, threads: int | None = None) -> None:
        if importlib.util.find_spec(self.package) is None:
            raise UserError(
                f"{self.package} is not installed, and --engine {self.name} runs on it: pip install {self.package}"
            )
        if threads is not None and threads < 1:
            raise UserError(f"--threads must be at least 1, got {threads}.")
        self.path, self.facts, self.threads = path, facts, threads
        try:
            ports = self._open()
        except Exception as error:  # each package has its own classes of errors
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{shown(path)}: {self.package} cannot read the graph ({reason}). Copy the file again, or export again."
            ) from error
        self._check(ports)

    @property
    def frame(self) -> Frame:
        """Input frame of the backbone."""
        return self.facts.frame

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.facts.method

    @property
    def backbone(self) -> str:
        """Description of the backbone."""
        return self.facts.backbone

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that scores depend on, apart from the checkpoint and the tiling.

        In INT8 they include the engine. Two engines may round a value to different steps. Scores then differ by half as
        much as INT8 differs from float32.
        """
        settings = self.facts.settings
        return settings | {"engine": self.name} if settings.get(PRECISION) == INT8 else settings

    def check_ready(self) -> None:
        """Does nothing: few-shot images are part of the graph."""
        return

    def score(self, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores a batch of views.

        Args:
            views: `[B, h, w, 3]`, uint8, RGB, of the frame's shape; B is at least 1.

        Returns:
            Scores `[B]` and maps `[B, h, w]`, float32; higher is more anomalous.

        Raises:
            ValueError: The views are of another type or shape.
        """
        height, width = self.frame.shape
        if views.dtype != np.uint8 or views.ndim != 4 or views.shape[1:] != (height, width, 3) or not len(views):
            raise ValueError(f"views must be [B, {height}, {width}, 3], uint8, got {[*views.shape]}, {views.dtype}")
        return self._run(np.ascontiguousarray(views))

    @abstractmethod
    def _open(self) -> dict[str, Port]:
        """Opens the file. Returns its inputs and outputs by name."""

    @abstractmethod
    def _run(self, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores views of a checked type and shape."""

    def _check(self, ports: dict[str, Port]) -> None:
        """Checks that the inputs and outputs of the graph are those that `export` writes for this frame.

        Raises:
            UserError: An input or output differs. The message names the first.
        """
        height, width = self.frame.shape
        wanted = {
            IMAGE: Port("uint8", (None, height, width, 3)),
            SCORE: Port("float32", (None,)),
            MAP: Port("float32", (None, height, width)),
        }
        for name, port in wanted.items():
            if ports.get(name) != port:
                raise UserError(
                    f"{shown(self.path)}: the graph's {name} is {ports.get(name, 'missing')}, and {port} is needed. "
                    "Export the model again."
                )
