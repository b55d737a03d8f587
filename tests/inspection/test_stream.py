"""Whether a stream looks like the calibration: the stated rate of false alarms holds, and other products are told."""

import numpy as np
import pytest

from afclip_runtime.inspection.stream import FEWEST, difference, keep


def drawn(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, n)


@pytest.mark.parametrize(("good", "stream"), [(8, 14), (20, 40), (200, 1000)])
@pytest.mark.parametrize("anomalous", [0.0, 0.5])
def test_false_alarms_keep_to_their_rate(good: int, stream: int, anomalous: float) -> None:
    alarms = 0
    for seed in range(400):
        scores = drawn(stream, 1000 + seed)
        scores[: int(anomalous * stream)] += 100
        alarms += difference(keep(drawn(good, seed)), list(scores)) != ""
    assert alarms <= 9  # of 400 at 1 %: more have a chance of 1 %


@pytest.mark.parametrize("good", [8, 20, 200])
def test_other_products_are_told(good: int) -> None:
    kept = keep(drawn(good, 0))
    low, high = (difference(kept, list(drawn(14, 1, shift))) for shift in (-10, 10))
    assert "14 of 14 scores lie below the median" in low
    assert "only 0 of 14 scores are as low" in high


def test_order_statistics_and_few_images() -> None:
    kept = keep(np.random.default_rng(0).permutation(np.arange(1.0, 21.0)))
    assert kept is not None
    assert (kept.n, kept.median, kept.upper) == (20, 10.0, 16.0)
    assert keep(np.arange(7.0)) is None
    assert difference(None, [-9.0] * 50) == ""
    assert difference(kept, [-9.0] * (FEWEST - 1)) == ""
    assert difference(kept, [15.0] * 50) == ""  # equal scores speak for it
    assert difference(keep(np.ones(50)), [1.0] * 500) == ""
