"""Scores and maps of random images, recorded with a graph, to detect an engine that gives other numbers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np

from afclip_runtime.errors import UserError

if TYPE_CHECKING:
    from afclip_runtime.engines.base import Engine

Score = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

IMAGES = 3
POINTS = 8  # recorded points per side of a map, evenly spaced
SEED = 20


class SelfTest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Scores and values of maps of a model for random images.

    Attributes:
        scores: Score per image.
        maps: Per image, the values of its map at `POINTS` times `POINTS` pixels, row by row.
        tolerance: Maximum absolute difference of an engine's scores and values.
    """

    scores: tuple[float, ...]
    maps: tuple[tuple[float, ...], ...]
    tolerance: Annotated[float, msgspec.Meta(gt=0)]

    def __post_init__(self) -> None:
        if not self.scores or len(self.scores) != len(self.maps) or {len(m) for m in self.maps} != {POINTS**2}:
            raise ValueError(f"needs one score and {POINTS**2} values of a map per image")

    def difference(self, engine: "Engine", images: int | None = None) -> float:
        """Returns the largest absolute difference between an engine's numbers and the recorded ones; nan if one is nan.

        Args:
            engine: Engine that scores the random images in one batch.
            images: Number of images, from the first on. By default all.
        """
        count = len(self.scores) if images is None else images
        scores, maps = engine.score(drawn(len(self.scores), engine.frame.shape, SEED)[:count])
        pairs = [(scores, self.scores[:count]), (_values(maps), self.maps[:count])]
        return float(np.max([np.abs(got - np.array(want)).max() for got, want in pairs]))  # nan stays nan

    def check(self, engine: "Engine", images: int | None = None) -> float:
        """Returns the difference, and raises if it exceeds the tolerance.

        Args:
            engine: See `difference`.
            images: See `difference`.

        Raises:
            UserError: The difference exceeds the tolerance.
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
    """Records the self-test of a model, which scores the random images.

    Args:
        score: Function of the model that returns scores and maps of views, as `Engine.score`.
        shape: Height and width of the frame, in pixels.
        tolerance: See `SelfTest`.
    """
    scores, maps = score(drawn(IMAGES, shape, SEED))
    rows = tuple(tuple(map(float, row)) for row in _values(maps))
    return SelfTest(tuple(map(float, scores)), rows, tolerance)


def drawn(count: int, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Returns random images `[B, H, W, 3]`, uint8: coarse blocks with fine noise, equal in all versions of NumPy.

    Args:
        count: B, number of images.
        shape: Height and width, in pixels.
        seed: Seed of the generator.
    """
    height, width = shape
    rows, columns = -(-height // 8), -(-width // 8)
    stream = np.random.PCG64(seed)  # raw words are stable between versions; distributions may change
    blots = _bytes(stream, (count, rows, columns, 3)).repeat(8, 1).repeat(8, 2)[:, :height, :width]
    noise = _bytes(stream, (count, height, width, 3)) % 64
    return (blots * 0.75).astype(np.uint8) + noise


def _bytes(stream: np.random.PCG64, shape: tuple[int, ...]) -> np.ndarray:
    """Returns random bytes of a shape."""
    count = int(np.prod(shape))
    words = stream.random_raw(-(-count // 8)).astype("<u8")
    return words.view(np.uint8)[:count].reshape(shape)


def _values(maps: np.ndarray) -> np.ndarray:
    """Returns the recorded values of maps `[B, H, W]`, as `[B, POINTS * POINTS]`."""
    rows, columns = (np.linspace(0, side - 1, POINTS).round().astype(int) for side in maps.shape[1:])
    return maps[:, rows[:, None], columns].reshape(len(maps), -1)
