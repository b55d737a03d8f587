"""A graph that `export` wrote, as an engine: what ONNX Runtime and OpenVINO have in common."""

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
    """What is known of a graph that its file does not say.

    Attributes:
        frame: What the backbone takes.
        method: Name of the method.
        backbone: The backbone in words.
        settings: What scores depend on beside the checkpoint and the way in which images are seen.
    """

    frame: Frame
    method: str
    backbone: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Port:
    """An input or an output of a graph.

    Attributes:
        type: Of its values, as NumPy calls it.
        shape: Its sides; `None` for one of any length.
    """

    type: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.type} [{', '.join('any' if side is None else str(side) for side in self.shape)}]"


class GraphEngine(ABC):
    """A graph file that runs on the CPU; see `afclip_runtime.engines.base.Engine`.

    Views are refused unless they are uint8 and of the frame's shape: OpenVINO would round a float image to uint8
    without a word.

    Args:
        path: An ONNX file with the input `image` and the outputs `score` and `map`, for batches of any size.
        facts: What is known of it.
        threads: Most threads that a batch is scored with; all processor cores by default.

    Raises:
        UserError: The engine's package is not installed, or the file is damaged or another graph; or `threads` is
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
        except Exception as error:  # of any kind: each package has its own
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{shown(path)}: {self.package} cannot read the graph ({reason}). Copy the file again, or export again."
            ) from error
        self._check(ports)

    @property
    def frame(self) -> Frame:
        """What the backbone takes."""
        return self.facts.frame

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.facts.method

    @property
    def backbone(self) -> str:
        """The backbone in words."""
        return self.facts.backbone

    @property
    def settings(self) -> dict[str, Any]:
        """What scores depend on beside the checkpoint and the way in which images are seen.

        In INT8 the engine is among them: where two of them round a value to another step, scores differ by half as much
        as INT8 differs from float32.
        """
        settings = self.facts.settings
        return settings | {"engine": self.name} if settings.get(PRECISION) == INT8 else settings

    def check_ready(self) -> None:
        """Does nothing: few-shot images are in the graph, and cannot be missing."""
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
        """Opens the file, and returns its inputs and outputs by name."""

    @abstractmethod
    def _run(self, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores views whose type and shape were checked."""

    def _check(self, ports: dict[str, Port]) -> None:
        """Refuses a graph that is not of the kind that `export` writes for this frame.

        Raises:
            UserError: Names the first input or output that is another.
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
