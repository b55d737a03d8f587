from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from afclip_lightning.metrics import (
    ScoreHistogram,
    UndefinedMetricError,
    exact_counts,
    pro,
    pro_error_bound,
    region_areas,
)
from tests.reference import metrics_naive as naive

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "metrics.npz")


def exact_of(maps, masks):
    areas = np.stack([region_areas(mask) for mask in masks])
    return exact_counts(maps[areas == 0], maps[areas > 0], areas[areas > 0])


def both_counts(maps, masks, limit=8):
    histogram = ScoreHistogram.empty(limit)
    histogram.add(torch.from_numpy(maps), torch.from_numpy(np.stack([region_areas(mask) for mask in masks])))
    return exact_of(maps, masks), histogram.score_counts()


@settings(deadline=None, max_examples=30)
@given(
    arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.sampled_from([0, 7]))
)
def test_region_areas(mask):
    expected = np.zeros(mask.shape, np.int32)
    for region in naive.region_list(mask):
        for pixel in region:
            expected[pixel] = len(region)
    areas = region_areas(mask)
    assert areas.dtype == np.int32
    np.testing.assert_array_equal(areas, expected)


def test_regions_join_at_corners():
    assert region_areas(np.eye(3, dtype=np.uint8)).max() == 3
    assert region_areas(GOLDEN["metric.masks"][0] * 0).max() == 0
    areas = [region_areas(mask) for mask in GOLDEN["metric.masks"]]
    assert [round(float((1 / a[a > 0]).sum())) for a in areas] == GOLDEN["region_counts"].tolist()


@pytest.mark.parametrize("kind", ["continuous", "ties"])
@pytest.mark.parametrize(("suffix", "limit"), [("", 0.3), ("_limit005", 0.05), ("_limit1", 1.0)])
def test_recorded_values(kind, suffix, limit):
    maps = GOLDEN["metric.maps" if kind == "continuous" else "metric.maps_ties"]
    exact, coarse = both_counts(maps, GOLDEN["metric.masks"], limit=2**19)
    expected = GOLDEN[f"{kind}.pro_exact{suffix}"]
    assert pro(exact, limit) == pytest.approx(expected, abs=1e-9)
    bound = pro_error_bound(coarse, limit)
    assert abs(pro(coarse, limit) - expected) <= bound
    assert bound < (1e-4 if kind == "continuous" else 1e-9)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_equal_to_the_loops_and_within_the_bound(data):
    shape = data.draw(arrays.array_shapes(min_dims=3, max_dims=3, max_side=4))
    masks = data.draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, 1)))
    if masks.all() or not masks.any():
        return
    values = data.draw(st.sampled_from([[-2.0, 0.0, 0.5], [0.49, 0.495, 0.5, 0.505, 0.51], [1.0, 1.001, 1.002, 1.003]]))
    maps = data.draw(arrays.arrays(np.float32, shape, elements=st.sampled_from([float(np.float32(v)) for v in values])))
    limit = data.draw(st.sampled_from([0.05, 0.3, 0.5, 1.0]))
    exact, coarse = both_counts(maps, masks)
    expected = naive.pro(maps, masks, limit)
    assert pro(exact, limit) == pytest.approx(expected, abs=1e-9)
    assert abs(pro(coarse, limit) - expected) <= pro_error_bound(coarse, limit) + 1e-12


def test_a_vertical_step_at_the_limit_does_not_count():
    """Half of the normal pixels are above all anomalous ones, and the limit is this share."""
    maps, masks = np.float32([[[3, 3, 2, 1, 1]]]), np.uint8([[[0, 0, 1, 0, 0]]])
    exact, _ = both_counts(maps, masks)
    assert pro(exact, 0.5) == naive.pro(maps, masks, 0.5) == 0


@pytest.mark.parametrize("seed", range(3))
def test_bound_holds_for_noise(seed):
    rng = np.random.default_rng(seed)
    masks = (rng.random((3, 32, 32)) < 0.05).astype(np.uint8)
    maps = (0.5 + 0.02 * (rng.random(masks.shape) + 0.5 * masks)).astype(np.float32)
    exact, coarse = both_counts(maps, masks)
    assert len(coarse.thresholds) < 20
    for limit in (0.05, 0.3, 1.0):
        assert 0 < abs(pro(coarse, limit) - pro(exact, limit)) <= pro_error_bound(coarse, limit)


@pytest.mark.parametrize(
    ("key", "definition"), [("afclip", "legacy_afclip"), ("anomalyclip", "legacy_cflow"), ("faprompt", "legacy_cflow")]
)
def test_200_thresholds_recorded_values(key, definition):
    value = pro(exact_of(GOLDEN["metric.maps"], GOLDEN["metric.masks"]), definition=definition)
    assert value == pytest.approx(GOLDEN[f"continuous.pro_{key}"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("decimals", [1, 2, 7])
def test_other_definitions_equal_to_the_loops(decimals, limit):
    rng = np.random.default_rng(1)
    maps = rng.random((2, 9, 17)).round(decimals).astype(np.float32)
    masks = (rng.random(maps.shape) < 0.3).astype(np.uint8)
    counts = exact_of(maps, masks)
    assert pro(counts, limit, "mvtec") == pytest.approx(naive.pro_mvtec(maps, masks, limit), abs=1e-9)
    if decimals == 1 and limit == 0.05:
        with pytest.raises(ValueError, match="fewer than two different"):
            pro(counts, limit, "legacy_cflow")
        return
    for definition, normalisation in (("legacy_cflow", "min_max"), ("legacy_afclip", "max")):
        expected = naive.pro_200_thresholds(maps, masks, normalisation, limit)
        assert pro(counts, limit, definition) == pytest.approx(expected, abs=1e-9)


def test_100_thresholds_approach_every_threshold():
    counts = exact_of(GOLDEN["metric.maps"], GOLDEN["metric.masks"])
    assert 1e-6 < abs(pro(counts, definition="mvtec") - GOLDEN["continuous.pro_exact"]) < 1e-2


def test_what_a_definition_leaves_undefined_is_refused():
    maps, masks = np.random.default_rng(0).random((1, 4, 4)).astype(np.float32), np.eye(4, dtype=np.uint8)[None]
    with pytest.raises(UndefinedMetricError, match="equal"):
        pro(exact_of(np.zeros_like(maps), masks), definition="legacy_afclip")
    for definition in ("exact", "mvtec", "legacy_cflow"):
        with pytest.raises(UndefinedMetricError, match="both normal"):
            pro(exact_of(maps, masks * 0), definition=definition)
    with pytest.raises(ValueError, match="definition must be one of exact, mvtec, legacy_cflow, legacy_afclip"):
        pro(exact_of(maps, masks), definition="min")
    with pytest.raises(UndefinedMetricError, match="false-positive rates"):
        pro(exact_of(maps, masks), 1e-3, "legacy_afclip")


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.1, float("nan")])
def test_limit_out_of_range(limit):
    exact, _ = both_counts(GOLDEN["metric.maps"], GOLDEN["metric.masks"])
    for function in (pro, pro_error_bound):
        with pytest.raises(ValueError, match="fpr_limit"):
            function(exact, limit)
