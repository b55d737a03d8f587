"""Scores and maps of drawn images, recorded with a graph: an engine that gives other numbers is found out."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np

from afclip_runtime.errors import UserError

if TYPE_CHECKING:
    from afclip_runtime.engines.base import Engine

Score = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

IMAGES = 3
POINTS = 8  # along either side of a map, evenly spread, whose values are recorded
SEED = 20


class SelfTest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Scores and values of maps that a model gives of drawn images.

    Attributes:
        scores: Of each image.
        maps: Of each image, the values of its map at `POINTS` times `POINTS` pixels, row by row.
        tolerance: By how much an engine's scores and values may differ at most, absolute.
    """

    scores: tuple[float, ...]
    maps: tuple[tuple[float, ...], ...]
    tolerance: Annotated[float, msgspec.Meta(gt=0)]

    def __post_init__(self) -> None:
        if not self.scores or len(self.scores) != len(self.maps) or {len(m) for m in self.maps} != {POINTS**2}:
            raise ValueError(f"needs one score and {POINTS**2} values of a map per image")

    def difference(self, engine: "Engine", images: int | None = None) -> float:
        """Returns the largest absolute difference between an engine's numbers and those recorded; nan if one is nan.

        Args:
            engine: Scores the drawn images, in one batch.
            images: How many of them, from the first on; all by default.
        """
        count = len(self.scores) if images is None else images
        scores, maps = engine.score(drawn(len(self.scores), engine.frame.shape, SEED)[:count])
        pairs = [(scores, self.scores[:count]), (_values(maps), self.maps[:count])]
        return float(np.max([np.abs(got - np.array(want)).max() for got, want in pairs]))  # nan comes through

    def check(self, engine: "Engine", images: int | None = None) -> float:
        """Returns the difference, and refuses an engine that differs by more than the tolerance.

        Args:
            engine: See `difference`.
            images: Likewise.

        Raises:
            UserError: It does.
        """
        found = self.difference(engine, images)
        if not found <= self.tolerance:  # nan too
            raise UserError(
                f"the engine {engine.name} differs on this machine from the exported model by {found:.1e} in a score "
                f"or a map, more than {self.tolerance:.0e}: thresholds would not hold. Choose another --engine, or "
                "another version of its package."
            )
        return found


def record(score: Score, shape: tuple[int, int], tolerance: float) -> SelfTest:
    """Returns the self-test of a model: it scores the drawn images.

    Args:
        score: The model: scores and maps of views, as an engine gives them.
        shape: Height and width of the frame, in pixels.
        tolerance: See `SelfTest`.
    """
    scores, maps = score(drawn(IMAGES, shape, SEED))
    rows = tuple(tuple(map(float, row)) for row in _values(maps))
    return SelfTest(tuple(map(float, scores)), rows, tolerance)


def drawn(count: int, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Returns drawn images `[B, H, W, 3]`, uint8: coarse blots with fine noise; the same with every version of NumPy.

    Args:
        count: How many.
        shape: Height and width, in pixels.
        seed: Each gives other images.
    """
    height, width = shape
    rows, columns = -(-height // 8), -(-width // 8)
    stream = np.random.PCG64(seed)  # its raw words are the same for ever; the distributions of a Generator need not be
    blots = _bytes(stream, (count, rows, columns, 3)).repeat(8, 1).repeat(8, 2)[:, :height, :width]
    noise = _bytes(stream, (count, height, width, 3)) % 64
    return (blots * 0.75).astype(np.uint8) + noise


def _bytes(stream: np.random.PCG64, shape: tuple[int, ...]) -> np.ndarray:
    """Returns drawn bytes of a shape."""
    count = int(np.prod(shape))
    words = stream.random_raw(-(-count // 8)).astype("<u8")
    return words.view(np.uint8)[:count].reshape(shape)


def _values(maps: np.ndarray) -> np.ndarray:
    """Returns the values of maps `[B, H, W]` that are recorded, `[B, POINTS * POINTS]`."""
    rows, columns = (np.linspace(0, side - 1, POINTS).round().astype(int) for side in maps.shape[1:])
    return maps[:, rows[:, None], columns].reshape(len(maps), -1)
