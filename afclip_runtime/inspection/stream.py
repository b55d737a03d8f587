"""Whether a stream of images looks like the normal images that its threshold comes from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np

from afclip_runtime.inspection.distributions import beta_binomial_cdf, beta_binomial_sf

LEVEL = 0.005  # of each of the two tests
FEWEST = 8  # images, on either side, that say anything
BLOCK = 20  # images of a stream that `Watch` looks at together
MOST_BELOW = 0.75  # a shift of the median smaller than that is of no account


@dataclass(frozen=True)
class NormalScores:
    """What is kept of normal images' scores: two of their order statistics.

    Attributes:
        n: How many there are.
        median: The (n + 1) // 2-th of them from below.
        upper: The ceil(0.8 n)-th.
    """

    n: Annotated[int, msgspec.Meta(ge=FEWEST)]
    median: float
    upper: float


def _ranks(n: int) -> tuple[int, int]:
    return (n + 1) // 2, -(-4 * n // 5)


def keep(scores: np.ndarray) -> NormalScores | None:
    """Returns what is kept of normal images' scores `[n]`; `None` if they are too few to compare with."""
    if len(scores) < FEWEST:
        return None
    ordered = np.sort(np.asarray(scores, np.float64))
    median, upper = _ranks(len(scores))
    return NormalScores(len(scores), float(ordered[median - 1]), float(ordered[upper - 1]))


def difference(normal: NormalScores | None, scores: Sequence[float]) -> str:
    """Returns in words how a stream's scores differ from those of normal images; empty if nothing speaks against it.

    Two tests, each with a false-alarm rate of at most `LEVEL`, whatever the scores' distribution, for independent
    images of which at most half are anomalous, with scores above those of normal ones:

    - *Too low*: at least `MOST_BELOW` of the scores lie below the median of the normal ones, and more than chance
      allows.
    - *Too high*: too few scores lie at or below four fifths of the normal ones, even if half are anomalous.

    A further normal image lies below the k-th of n normal ones with a chance that is distributed as
    Beta(k, n + 1 - k), so the number of m that do is beta-binomial, which is exact for small n too.

    Args:
        normal: What is kept of the normal images' scores.
        scores: Of the stream.

    Reference: Balakrishnan and Ng, Precedence-Type Tests and Applications (2006).
    """
    if normal is None or len(scores) < FEWEST:
        return ""
    values, m = np.asarray(scores), len(scores)
    median, upper = _ranks(normal.n)
    below, usual = int((values < normal.median).sum()), int((values <= normal.upper).sum())
    if below >= MOST_BELOW * m and beta_binomial_sf(below - 1, m, median, normal.n + 1 - median) < LEVEL:
        return (
            f"{below} of {m} scores lie below the median of the {normal.n} normal images of the calibration. They do "
            'not look like the same product, light or camera, so "normal" says little. Calibrate for these images.'
        )
    if beta_binomial_cdf(usual, -(-m // 2), upper, normal.n + 1 - upper) < LEVEL:
        return (
            f"only {usual} of {m} scores are as low as those of four fifths of the calibration's {normal.n} normal "
            "images. Either most images are anomalous, or they are of another product, light or camera: then calibrate "
            "for these images."
        )
    return ""


class Watch:
    """Compares a stream with normal images as it comes, a block of `BLOCK` different images at a time.

    Blocks do not overlap, so that the rate of false alarms is that of `difference`, once per block.

    Args:
        normal: What is kept of the normal images' scores.

    Attributes:
        note: What the last whole block says; empty if nothing.
    """

    def __init__(self, normal: NormalScores | None) -> None:
        self.normal = normal
        self.note = ""
        self.block: dict[bytes, float] = {}

    def add(self, image: bytes, score: float) -> str:
        """Adds the score of an image that a digest tells from others, and returns the note."""
        self.block[image] = score
        if len(self.block) == BLOCK:
            self.note = difference(self.normal, list(self.block.values()))
            self.block = {}
        return self.note
