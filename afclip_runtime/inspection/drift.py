"""Drift: whether a stream of scores still looks like the normal images that its calibration comes from."""

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import msgspec
import numpy as np

from afclip_runtime.inspection.distributions import beta_binomial

Side = Literal["higher", "lower"]

FALSE_ALARMS = 0.01  # share of streams without drift that ever raise an alarm
FEWEST = 8  # normal images that say anything
MOST_KEPT = 10_000  # scores of normal images in a calibration; of more, so many are drawn

RANGE = 0.95  # share of the normal images that lie in the normal range
PARTS = (0.25, 0.5, 0.75)  # where the range is cut, as shares of it

BLOCK = 10  # images between two looks at the stream
WINDOWS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # blocks that a look goes back
ANOMALOUS = 0.5  # share of the images of a window that may be anomalous
BURST = 20  # and so many more
MISSED = 0.1  # share of the images in the normal range that may be anomalous, or otherwise odd
MISSED_BURST = 5  # and so many more
RECOVERED = 10  # blocks that must look normal again for the drift to be over
DOUBT = 0.05  # level of the tests that say so: the higher, the more normal they must look


@dataclass(frozen=True)
class NormalScores:
    """What a calibration keeps of its normal images' scores.

    Attributes:
        n: How many there are.
        scores: All of them, ascending; of more than `MOST_KEPT`, so many drawn at random. Empty in files of earlier
            versions, which kept the next two instead.
        median: The (n + 1) // 2-th of them from below.
        upper: The ceil(0.8 n)-th.
    """

    n: Annotated[int, msgspec.Meta(ge=FEWEST)]
    scores: tuple[float, ...] = ()
    median: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        if self.scores and len(self.scores) != self.n:
            raise ValueError(f"good.n is {self.n}, and good.scores are {len(self.scores)}")
        if not self.scores and (self.median is None or self.upper is None):
            raise ValueError("good: expected scores, or median and upper")
        if any(low > high for low, high in zip(self.scores, self.scores[1:], strict=False)):
            raise ValueError("good.scores: expected ascending numbers")

    def cuts(self) -> tuple[list[int], list[float]]:
        """Returns the ranks and values of the scores that cut the normal range; the last one is its upper end."""
        if not self.scores:
            assert self.median is not None
            assert self.upper is not None
            return [(self.n + 1) // 2, -(-4 * self.n // 5)], [self.median, self.upper]
        top = math.ceil(RANGE * self.n)
        ranks = [*(max(1, int(part * top)) for part in PARTS), top]
        return ranks, [float(np.float32(self.scores[rank - 1])) for rank in ranks]


def keep(scores: np.ndarray) -> NormalScores | None:
    """Returns what a calibration keeps of normal images' scores `[n]`; `None` if they are too few to compare with."""
    if len(scores) < FEWEST:
        return None
    if len(scores) > MOST_KEPT:
        scores = np.random.default_rng(0).choice(scores, MOST_KEPT, replace=False)
    kept = tuple(float(f"{score:.9g}") for score in np.sort(scores))  # what tells all float32 apart
    return NormalScores(len(kept), kept)


@dataclass(frozen=True)
class Alarm:
    """A drift that was found.

    Attributes:
        side: Whether the scores are higher or lower than those of the normal images.
        image: Number of the image of the stream at which it was found, from 1.
        window: Over how many of the last images.
        said: What was found, in a sentence or two.
    """

    side: Side
    image: int
    window: int
    said: str

    def __str__(self) -> str:
        return f"{self.said} (Found at image {self.image:,}.)"


class Drift:
    """Watches a stream of scores, and tells when the calibration no longer holds.

    Every `BLOCK` images it looks back over windows of 20 to 1,280 images, at three things:

    - *Too few in the normal range*, which ends at the score that 95 % of the normal images do not exceed, even if half
      of the window's images and `BURST` more are anomalous: the scores are higher.
    - *Too few in the lower part of the range*, of the images in it, even if a tenth of them and `MISSED_BURST` more are
      anomalous ones that the model missed: the scores are higher.
    - *Too many in the lower part of the range*, with the same allowance: the scores are lower.

    A further normal image lies below the k-th of n normal ones with a chance that is distributed as Beta(k, n + 1 - k),
    so the number of m that do is beta-binomial, whatever the scores' distribution and however few the normal images.
    Each test has a level of its own; the levels of all tests that will ever be made add up to half of `FALSE_ALARMS`,
    and those of `finish` to the other half. So at most one stream in a hundred *ever* raises an alarm, however long it
    is, if its normal images are drawn independently like those of the calibration and no more of them are anomalous
    than is allowed for.

    After an alarm the drift is over when the last 100 images look normal again (`DOUBT`).

    Args:
        normal: What is kept of the normal images' scores; without it nothing is ever found.

    Attributes:
        images: How many scores were added.
        alarm: The drift that lasts; `None` while the calibration holds.
        alarms: How many there were.

    Reference: Balakrishnan and Ng, Precedence-Type Tests and Applications (2006).
    """

    def __init__(self, normal: NormalScores | None) -> None:
        self.n = normal.n if normal else 0
        self.images = 0
        self.alarm: Alarm | None = None
        self.alarms = 0
        self.ranks, self.values = normal.cuts() if normal else ([], [])
        self.tests = 2 * len(self.ranks) - 1  # of a window
        self.counts = np.zeros((2, len(self.ranks) + 1), np.int64)  # images so far, by part of the range
        self.looks: deque[np.ndarray] = deque([self.counts.copy()], max(WINDOWS) + 1)

    def add(self, score: float) -> Alarm | None:
        """Adds the score of the next image, and returns the drift that lasts, if any."""
        if not self.n:
            return None
        score = float(np.float32(score))
        self.counts[0, bisect_left(self.values, score)] += 1
        self.counts[1, bisect_right(self.values, score)] += 1
        self.images += 1
        if self.images % BLOCK == 0:
            self.looks.append(self.counts.copy())
            self._look()
        return self.alarm

    def finish(self) -> Alarm | None:
        """Looks at all images once more, as those of a run that is over, and returns the drift that lasts, if any.

        Of a whole run no burst needs to be allowed for: at most half of its images may be anomalous, in any order.
        """
        if self.n and self.alarm is None:
            self._sound(_compare(self.ranks, self.n, self.counts, FALSE_ALARMS / 2 / self.tests), self.images)
        return self.alarm

    def _look(self) -> None:
        if self.alarm:
            self._look_again()
            return
        level = _level(self.images // BLOCK) / len(WINDOWS) / self.tests
        for blocks in WINDOWS:
            if blocks < len(self.looks) and self.alarm is None:
                window = self.counts - self.looks[-blocks - 1]
                found = _compare(self.ranks, self.n, window, level, BURST, MISSED_BURST)
                self._sound(found, blocks * BLOCK)

    def _look_again(self) -> None:
        if len(self.looks) > RECOVERED:
            window = self.counts - self.looks[-RECOVERED - 1]
            if _compare(self.ranks, self.n, window, DOUBT / self.tests) is None:
                self.alarm = None
                self.looks = deque([self.counts.copy()], self.looks.maxlen)  # what drifted is looked at no more

    def _sound(self, found: tuple[Side, str] | None, window: int) -> None:
        if found:
            side, counts = found
            self.alarms += 1
            said = (
                f"the calibration no longer holds: scores are {side} than those of its {self.n:,} normal images. "
                f"Of the last {window:,} images {counts}. {REMEDY[side]}"
            )
            self.alarm = Alarm(side, self.images, window, said)


REMEDY: dict[Side, str] = {
    "higher": "Light, camera or product have changed: calibrate for these images. Or most of them are anomalous.",
    "lower": "Light, camera or product have changed: calibrate for these images.",
}


def _level(look: int) -> float:
    """Returns the level of all tests of a look together; those of looks 1, 2, … add up to half of `FALSE_ALARMS`."""
    epoch = look.bit_length()  # looks 2 ** (epoch - 1) … 2 ** epoch - 1 share 1 / (epoch * (epoch + 1)) of it
    return FALSE_ALARMS / 2 / (epoch * (epoch + 1)) / 2 ** (epoch - 1)


def _compare(
    ranks: Sequence[int], n: int, window: np.ndarray, level: float, burst: int = 0, missed: int = 0
) -> tuple[Side, str] | None:
    """Returns on which side a window of a stream differs from the normal images, and what was counted; else `None`.

    Args:
        ranks: Of the normal scores that cut the normal range; the last is its upper end.
        n: Normal scores.
        window: `[2, parts + 1]`, images by part of the range, the part above it last. In the first row a score that
            equals a cut belongs to the part below it, in the second to that above.
        level: Of each test.
        burst: Images that may be anomalous, beside a share of `ANOMALOUS`.
        missed: Images in the range that may be anomalous, beside a share of `MISSED` of them.
    """
    *cuts, top = ranks
    upto, below = (np.cumsum(row).tolist() for row in window)  # scores up to each cut, and scores below it
    images, usual = upto[-1], upto[-2]
    if usual <= _few(images - math.ceil(ANOMALOUS * images) - burst, top, n + 1 - top, level):
        return "higher", f"only {usual} lie in the normal range"
    for part, rank in enumerate(cuts):
        inside = below[-2]  # equal scores speak for the calibration, on either side
        trials, low = inside - math.ceil(MISSED * inside) - missed, min(upto[part], inside)
        if low <= _few(trials, rank, top - rank, level):
            return "higher", (
                f"{inside} lie in the normal range, and only {low} of these in its part that holds "
                f"{rank / top:.0%} of the normal images there"
            )
        inside, low = usual, below[part]
        trials = inside - math.ceil(MISSED * inside) - missed
        if inside - low <= _few(trials, top - rank, rank, level):
            return "lower", (
                f"{inside} lie in the normal range, and {low} of these in its part that holds "
                f"{rank / top:.0%} of the normal images there"
            )
    return None


@lru_cache(2**16)
def _few(trials: int, a: int, b: int, level: float) -> int:
    """Returns the largest number of successes that is too few at a level, if their chance is Beta(a, b); -1 if none."""
    if trials < 1:
        return -1
    return int(np.searchsorted(np.cumsum(beta_binomial(trials, a, b)), level)) - 1
