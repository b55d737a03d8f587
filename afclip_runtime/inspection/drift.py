"""Drift detection: whether a stream of scores still fits the normal images of the calibration."""

import math
from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import msgspec
import numpy as np

from afclip_runtime.inspection.distributions import beta_binomial

Side = Literal["higher", "lower"]

FALSE_ALARMS = 0.01  # maximum share of streams without drift that ever raise an alarm
FEWEST = 8  # minimum number of normal images
MOST_KEPT = 10_000  # maximum number of normal scores in a calibration; of more, a random sample is kept

RANGE = 0.95  # share of the normal images in the normal range
PARTS = (0.25, 0.5, 0.75)  # cuts of the range, as shares of its images

BLOCK = 10  # images between two checks of the stream
WINDOWS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # lengths of the windows of a check, in blocks
ANOMALOUS = 0.5  # share of the images of a window that may be anomalous
BURST = 20  # number of anomalous images allowed in addition
MISSED = 0.1  # share of the images in the normal range that may be anomalous, or otherwise unusual
MISSED_BURST = 5  # number of such images allowed in addition
RECOVERED = 10  # number of blocks that must be normal again to end a drift
HELD_OUT_WORTH = 0.5  # independent scores that one held-out score is worth; see `Drift`
DOUBT = 0.05  # level of the tests for this; a higher level demands a better fit


@dataclass(frozen=True)
class NormalScores:
    """The scores of normal images in a calibration.

    Attributes:
        n: Number of scores.
        scores: All scores, ascending, or a random sample of `MOST_KEPT`. Empty in files of earlier versions, which kept
            `median` and `upper` instead.
        median: The (n + 1) // 2-th smallest score.
        upper: The ceil(0.8 n)-th smallest score.
        held_out: Whether each score is that of a memory without the image, and the model's memory holds all images.
    """

    n: Annotated[int, msgspec.Meta(ge=FEWEST)]
    scores: tuple[float, ...] = ()
    median: float | None = None
    upper: float | None = None
    held_out: bool = False

    def __post_init__(self) -> None:
        if self.scores and len(self.scores) != self.n:
            raise ValueError(f"good.n is {self.n}, and good.scores are {len(self.scores)}")
        if not self.scores and (self.median is None or self.upper is None):
            raise ValueError("good: expected scores, or median and upper")
        if any(low > high for low, high in zip(self.scores, self.scores[1:], strict=False)):
            raise ValueError("good.scores: expected ascending numbers")

    def cuts(self) -> tuple[list[int], list[float]]:
        """Returns the ranks and values of the scores that divide the normal range. The last one is its upper end."""
        if not self.scores:
            assert self.median is not None
            assert self.upper is not None
            return [(self.n + 1) // 2, -(-4 * self.n // 5)], [self.median, self.upper]
        top = math.ceil(RANGE * self.n)
        ranks = [*(max(1, int(part * top)) for part in PARTS), top]
        return ranks, [float(np.float32(self.scores[rank - 1])) for rank in ranks]


def keep(scores: np.ndarray, held_out: bool = False) -> NormalScores | None:
    """Returns the scores to keep in a calibration; `None` if there are too few to compare.

    Args:
        scores: Scores of normal images, `[n]`.
        held_out: See `NormalScores`.
    """
    if len(scores) < FEWEST:
        return None
    if len(scores) > MOST_KEPT:
        scores = np.random.default_rng(0).choice(scores, MOST_KEPT, replace=False)
    kept = tuple(float(f"{score:.9g}") for score in np.sort(scores))  # 9 digits distinguish all float32 values
    return NormalScores(len(kept), kept, held_out=held_out)


@dataclass(frozen=True)
class Alarm:
    """A detected drift.

    Attributes:
        side: Whether the scores are higher or lower than those of the normal images.
        image: Number of the image in the stream at which it was detected, from 1.
        window: Number of last images in the test.
        said: Description in one or two sentences.
    """

    side: Side
    image: int
    window: int
    said: str

    def __str__(self) -> str:
        return f"{self.said} (Found at image {self.image:,}.)"


class Drift:
    """Detects in a stream of scores when the calibration no longer holds.

    Every `BLOCK` images it tests windows of the last 20 to 1,280 images in three ways:

    - *Too few images in the normal range*, even if half of the window's images and `BURST` more are anomalous. The
      range ends at the score that 95 % of the normal images do not exceed. The scores are then higher.
    - *Too few of the images in the range are in its lower part*, even if a tenth of them and `MISSED_BURST` more are
      anomalies that the model missed. The scores are then higher.
    - *Too many of the images in the range are in its lower part*, with the same allowance. The scores are then lower.

    The probability that a new normal image is below the k-th smallest of n normal scores has the distribution Beta(k, n
    + 1 - k). So the number of such images among m is beta-binomial, for any distribution of scores and any number of
    normal images. Each test has its own level. The levels of all tests of an endless stream sum to half of
    `FALSE_ALARMS`, and those of `finish` to the other half. So at most 1 % of streams of any length *ever* raise a
    false alarm. This holds if normal images are drawn independently, as those of the calibration, and no more images
    are anomalous than allowed.

    Held-out scores are tested for higher scores only. The memory that scores new images holds more images than the
    memories of the held-out scores did, so new images score lower without any change. Moreover, held-out scores are not
    independent, because each image is also in the memories of the others. The tests count each of them as
    `HELD_OUT_WORTH` independent scores. This is an approximation, whose rate of false alarms is from simulations.

    After an alarm, the drift ends when the last 100 images are normal again (`DOUBT`).

    Args:
        normal: Normal scores of the calibration. Without them, nothing is ever detected.

    Attributes:
        images: Number of scores added.
        alarm: The current drift; `None` while the calibration holds.
        alarms: Number of alarms so far.

    Reference: Balakrishnan and Ng, Precedence-Type Tests and Applications (2006).
    """

    def __init__(self, normal: NormalScores | None) -> None:
        self.n = normal.n if normal else 0
        self.images = 0
        self.alarm: Alarm | None = None
        self.alarms = 0
        self.held_out = normal is not None and normal.held_out
        self.ranks, self.values = normal.cuts() if normal else ([], [])
        self.tests = len(self.ranks) if self.held_out else 2 * len(self.ranks) - 1  # per window
        self.counts = np.zeros((2, len(self.ranks) + 1), np.int64)  # images so far, by part of the range
        self.looks: deque[np.ndarray] = deque([self.counts.copy()], max(WINDOWS) + 1)

    def add(self, score: float) -> Alarm | None:
        """Adds the score of the next image. Returns the current drift, if any."""
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
        """Tests all images of a finished run once more. Returns the current drift, if any.

        For a whole run no burst is allowed in addition: at most half of its images may be anomalous, in any order.
        """
        if self.n and self.alarm is None:
            self._sound(self._compare(self.counts, FALSE_ALARMS / 2 / self.tests), self.images)
        return self.alarm

    def _look(self) -> None:
        if self.alarm:
            self._look_again()
            return
        level = _level(self.images // BLOCK) / len(WINDOWS) / self.tests
        for blocks in WINDOWS:
            if blocks < len(self.looks) and self.alarm is None:
                window = self.counts - self.looks[-blocks - 1]
                found = self._compare(window, level, BURST, MISSED_BURST)
                self._sound(found, blocks * BLOCK)

    def _look_again(self) -> None:
        if len(self.looks) > RECOVERED:
            window = self.counts - self.looks[-RECOVERED - 1]
            if self._compare(window, DOUBT / self.tests) is None:
                self.alarm = None
                self.looks = deque([self.counts.copy()], self.looks.maxlen)  # images of the drift are not tested again

    def _compare(self, window: np.ndarray, level: float, burst: int = 0, missed: int = 0) -> tuple[Side, str] | None:
        """Returns the side on which a window differs from the normal images, and the counts in words; else `None`.

        Args:
            window: Number of images per part of the range, with the part above it last, `[2, parts + 1]`. A score equal
                to a cut counts in the part below it in the first row, and in the part above it in the second row.
            level: Level of each test.
            burst: Number of images that may be anomalous in addition to the share `ANOMALOUS`.
            missed: Number of images in the range that may be anomalous in addition to the share `MISSED`.
        """
        *cuts, top = self.ranks
        worth = HELD_OUT_WORTH if self.held_out else 1.0
        upto, below = (np.cumsum(row).tolist() for row in window)  # number of scores up to each cut, and below it
        images, usual = upto[-1], upto[-2]
        few = _few(images - math.ceil(ANOMALOUS * images) - burst, worth * top, worth * (self.n + 1 - top), level)
        if usual <= few:
            return "higher", f"only {usual} lie in the normal range"
        for part, rank in enumerate(cuts):
            inside = below[-2]  # equal scores count in favour of the calibration, on either side
            trials, low = inside - math.ceil(MISSED * inside) - missed, min(upto[part], inside)
            if low <= _few(trials, worth * rank, worth * (top - rank), level):
                return "higher", (
                    f"{inside} lie in the normal range, and only {low} of these in its lower part, which contains "
                    f"{rank / top:.0%} of the normal images of the range"
                )
            if self.held_out:
                continue
            inside, low = usual, below[part]
            trials = inside - math.ceil(MISSED * inside) - missed
            if inside - low <= _few(trials, top - rank, rank, level):
                return "lower", (
                    f"{inside} lie in the normal range, and {low} of these in its lower part, which contains only "
                    f"{rank / top:.0%} of the normal images of the range"
                )
        return None

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
    """Returns the total level of the tests of a check; those of checks 1, 2, … sum to half of `FALSE_ALARMS`."""
    epoch = look.bit_length()  # checks 2 ** (epoch - 1) … 2 ** epoch - 1 share 1 / (epoch * (epoch + 1)) of it
    return FALSE_ALARMS / 2 / (epoch * (epoch + 1)) / 2 ** (epoch - 1)


@lru_cache(2**16)
def _few(trials: int, a: float, b: float, level: float) -> int:
    """Returns the largest number of successes that is too few at a level, for beta-binomial counts; -1 if none."""
    if trials < 1:
        return -1
    return int(np.searchsorted(np.cumsum(beta_binomial(trials, a, b)), level)) - 1
