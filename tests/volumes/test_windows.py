"""Black and white values: presets, windows by hand, percentiles."""

from collections.abc import Iterator

import numpy as np
import pytest

from afclip_lightning.volumes.windows import PRESETS, Window, check_window, facts_of, window_of
from afclip_runtime.errors import UserError

RANDOM = np.random.default_rng(0)
MR = np.where(RANDOM.random((20, 30, 40)) < 0.6, 0, RANDOM.gamma(4, 100, (20, 30, 40))).astype(np.float32)
CT = RANDOM.normal(-200, 400, (20, 30, 40)).astype(np.float32)


def window(text: str, values: np.ndarray, modality: str = "") -> Window:
    def blocks() -> Iterator[np.ndarray]:
        yield from np.array_split(values, 3)

    return window_of(text, modality, facts_of(blocks()), blocks)


def test_windows_of_ct_are_those_of_radiology() -> None:
    assert (window("brain", CT).low, window("brain", CT).high) == (0, 80)
    assert (window("lung", CT).low, window("lung", CT).high) == (-1350, 150)
    assert (window("40,400", CT).low, window("40,400", CT).high) == (-160, 240)
    assert window("auto", CT, "CT").rule == "soft_tissue window: centre 50, width 400"
    assert window("auto", CT, "MR").rule.startswith("percentiles 0.5 and 99.5")
    assert all(width > 0 for _, width in PRESETS.values())


@pytest.mark.parametrize("values", [MR, CT])
@pytest.mark.parametrize(("text", "shares"), [("percentile", (0.5, 99.5)), ("percentile:5,80", (5, 80))])
def test_percentiles_are_those_of_numpy(values: np.ndarray, text: str, shares: tuple[float, float]) -> None:
    found = window(text, values)
    counted = values[values > 0] if values.min() >= 0 else values.ravel()  # 0 is the background where nothing is below
    wanted = np.percentile(counted, shares)
    spread = np.ptp(values) / 2**16
    # of neighbouring order statistics, numpy takes what is between
    room = [np.abs(np.sort(counted) - value).argsort()[:2] for value in wanted]
    gaps = [abs(np.diff(np.sort(counted)[pair])[0]) for pair in room]
    np.testing.assert_allclose([found.low, found.high], wanted, atol=2 * spread + max(gaps))


def test_grey_values() -> None:
    values = np.array([[-np.inf, -10, 0, 5, 10, 20, np.inf, np.nan]], np.float32)
    found = Window(0, 10, "")
    np.testing.assert_array_equal(found.grey(values, 8), [[0, 0, 0, 128, 255, 255, 255, 0]])
    np.testing.assert_array_equal(found.grey(values, 16), [[0, 0, 0, 32768, 65535, 65535, 65535, 0]])
    assert Window(3, 3, "").grey(np.full((2, 2), 3, np.float32), 8).tolist() == [[0, 0], [0, 0]]


def test_a_volume_of_one_value_has_a_window() -> None:
    for value in (0, 7, -7):
        found = window("percentile", np.full((3, 3, 3), value, np.float32))
        assert np.isfinite([found.low, found.high]).all()


@pytest.mark.parametrize(
    "text", ["dark", "40", "40,0", "40,-5", "a,b", "percentile:5", "percentile:80,20", "nan,4", "percentile:0,101"]
)
def test_invalid_rules(text: str) -> None:
    with pytest.raises(UserError, match="--window"):
        check_window(text)
