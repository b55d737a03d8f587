"""AUPIMO: against recorded numbers of anomalib and a plain loop, and its error bound."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from afclip_lightning.metrics import UndefinedMetricError
from afclip_lightning.metrics.aupimo import aupimo, tail_shares
from afclip_lightning.metrics.image_counts import CategoryCounts
from afclip_lightning.metrics.resampling import metrics_of
from tests.reference.metrics_naive import aupimo as naive
from tests.support.image_records import records_of

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "aupimo.npz")


def counted(maps: np.ndarray, masks: np.ndarray) -> CategoryCounts:
    return CategoryCounts.of(records_of(maps, masks, masks.any((1, 2)), maps.max((1, 2))))


def drawn(seed: int, sizes: tuple[int, ...] = (130,) * 12) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns maps and masks of squares; every second has an anomalous square, found more easily in each."""
    rng = np.random.default_rng(seed)
    masks = [np.zeros((side, side), np.uint8) for side in sizes]
    for mask in masks[1::2]:
        mask[20:40, 30:60] = 1
    maps = [rng.normal(size=mask.shape) + mask * (1 + 0.6 * i) for i, mask in enumerate(masks)]
    return [part.astype(np.float32) for part in maps], masks


def test_recorded_values_of_anomalib() -> None:
    maps, masks = (GOLDEN["levels"] / 1024).astype(np.float32), GOLDEN["masks"]
    assert list(naive(list(maps), list(masks)).values()) == pytest.approx(GOLDEN["aupimo"], abs=1e-6)
    result = aupimo(counted(maps, masks))
    found = np.array(list(result.images.values()))
    assert (np.abs(found - GOLDEN["aupimo"]) <= np.array(list(result.error_bounds.values())) + 1e-6).all()
    assert abs(result.mean - GOLDEN["aupimo"].mean()) <= result.error_bound + 1e-6
    assert 0.5 < found.max() < 0.6
    assert 0 < result.error_bound < 1e-3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("decimals", [1, 7])
def test_within_its_bound_of_the_loop(seed: int, decimals: int) -> None:
    """With and without ties; images of different sizes, which have equal weight in the shared rate."""
    maps, masks = drawn(seed, (120, 120, 150, 100) * 3)
    maps = [part.round(decimals) for part in maps]
    result = aupimo(CategoryCounts.of(records_of(maps, masks, [m.any() for m in masks], [m.max() for m in maps])))
    expected = naive(maps, masks)
    assert list(result.images) == [f"{i:02}" for i in sorted(expected)]
    for (name, value), truth in zip(result.images.items(), expected.values(), strict=True):
        assert abs(value - truth) <= result.error_bounds[name] + 1e-12
    assert abs(result.mean - np.mean(list(expected.values()))) <= result.error_bound + 1e-12
    assert 0 < result.mean < 1
    assert result.error_bound < (1e-2 if decimals == 1 else 2e-3)


def test_an_image_found_above_all_normal_pixels_has_1_and_one_below_them_0() -> None:
    maps, masks = (np.stack(part) for part in drawn(0))
    maps[1][masks[1] > 0], maps[3][masks[3] > 0] = 100, -100
    result = aupimo(counted(maps, masks))
    assert (result.images["01"], result.images["03"]) == (pytest.approx(1), pytest.approx(0))


def test_a_mask_that_resizing_emptied_has_no_value() -> None:
    maps, masks = (np.stack(part) for part in drawn(0))
    records = records_of(maps, masks, masks.any((1, 2)), maps.max((1, 2)))
    lost = records_of(maps[1:2], masks[1:2] * 0, [1], [9.0], ["01"])
    result = aupimo(CategoryCounts.of([*records[:1], *lost, *records[2:]]))
    assert list(result.images) == ["03", "05", "07", "09", "11"]
    whole = aupimo(CategoryCounts.of(records))
    assert result.images["05"] == pytest.approx(whole.images["05"], abs=2 * whole.error_bounds["05"] + 1e-3)


def test_a_sample_weighs_the_rates_of_normal_images() -> None:
    maps, masks = (np.stack(part) for part in drawn(1))
    records = records_of(maps, masks, masks.any((1, 2)), maps.max((1, 2)))
    images = CategoryCounts.of(records)
    weights = np.stack([np.ones(12), 2.0 * (np.arange(12) % 4 == 0) + (np.arange(12) % 2)])
    shares = tail_shares(images, weights)
    assert shares.sum(axis=1) == pytest.approx(1)
    again = [
        replace(record, name=f"{record.name}-{copy}")
        for record, times in zip(records, weights[1], strict=True)
        for copy in range(int(times))
    ]
    found = {name.partition("-")[0]: value for name, value in aupimo(CategoryCounts.of(again)).images.items()}
    recall = images.anomalous[1::2] / images.anomalous[1::2].sum(axis=1, keepdims=True)
    values = (recall.cumsum(axis=1) - recall / 2) @ shares[1]
    assert values == pytest.approx(list(found.values()), abs=5e-3)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (range(1, 12, 2), "undefined with 0 pixels of normal images: a rate of 1e-05 takes 100,000"),
        (range(6), "undefined with 50,700 pixels of normal images"),
        (range(0, 12, 2), "undefined without anomalous pixels"),
    ],
)
def test_where_it_is_undefined(images: range, reason: str) -> None:
    maps, masks = (np.stack(part)[list(images)] for part in drawn(0))
    with pytest.raises(UndefinedMetricError, match=reason):
        aupimo(counted(maps, masks))


def test_a_mask_that_is_not_known_leaves_it_undefined() -> None:
    maps, masks = (np.stack(part) for part in drawn(0))
    first, *others = records_of(maps, masks, masks.any((1, 2)), maps.max((1, 2)))
    with pytest.raises(UndefinedMetricError, match="undefined unless all masks are known"):
        aupimo(CategoryCounts.of([replace(first, counts=None), *others]))


def test_samples_have_the_aupimo_of_their_images() -> None:
    maps, masks = (np.stack(part) for part in drawn(2))
    images = counted(maps, masks)
    weights = np.ones((4, 12))
    weights[1, 1::4], weights[2, ::2], weights[3, 1::2] = 3, 0, 0
    found = metrics_of(images, weights)["pixel_aupimo"]
    result = aupimo(images)
    assert found[0] == pytest.approx(result.mean, abs=1e-12)
    assert found[1] == pytest.approx(np.average(list(result.images.values()), weights=[3, 1] * 3), abs=1e-12)
    assert np.isnan(found[2:]).all()
    few = counted(maps[:6], masks[:6])
    assert "pixel_aupimo" not in metrics_of(few, np.ones((1, 6)))
