"""sPRO against a loop over defects and thresholds: streamed, exact, from image records."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afclip_lightning.metrics import AnomalyMetrics, region_areas
from afclip_lightning.metrics.histogram import REGION
from afclip_lightning.metrics.image_counts import ImageRecord
from afclip_lightning.metrics.image_results import result_of_images
from afclip_lightning.metrics.intervals import Settings, intervals_of
from afclip_lightning.metrics.result import Result
from afclip_lightning.metrics.spro import saturated_weight, spro_result
from afclip_lightning.types import Defect
from tests.reference import metrics_naive, spro_naive

NOTHING = Result({}, {}, {}, 0, 0)
SHAPE = (6, 7)


def scene(seed, images=4, levels=0):
    """Returns maps, and the defects of each image as masks and shares; defects overlap and have several parts."""
    rng = np.random.default_rng(seed)
    maps, defects = [], []
    for image in range(images):
        scores = rng.random(SHAPE, np.float32)
        maps.append((scores * levels).round().astype(np.float32) if levels else scores)
        of_image = []
        for _ in range(0 if image == 0 else rng.integers(1, 4)):
            mask = (rng.random(SHAPE) < 0.25).astype(np.uint8)
            mask[rng.integers(6), rng.integers(7)] = 1
            of_image.append((mask, float(rng.choice([1.0, 0.5, 0.3, 1 / mask.sum()]))))
        defects.append(of_image)
    return maps, defects


def as_defects(of_image):
    return [Defect(torch.from_numpy(mask), (0, 0), share) for mask, share in of_image]


def measured(maps, defects, metric):
    for scores, of_image in zip(maps, defects, strict=True):
        mask = np.any([mask for mask, _ in of_image], axis=0) if of_image else np.zeros(SHAPE, bool)
        weight = saturated_weight(torch.from_numpy(scores), as_defects(of_image))
        metric.update(scores[None], mask[None], region_weight=weight[None])
    return spro_result(NOTHING, metric)


def naive(maps, defects, limit):
    pixels = [[(mask, share * mask.sum()) for mask, share in of_image] for of_image in defects]
    return spro_naive.spro(maps, pixels, limit)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([0, 2, 5]))
def test_exact_scores_give_what_the_definition_says(seed, levels):
    maps, defects = scene(seed, levels=levels)
    found = measured(maps, defects, AnomalyMetrics(exact=True, fpr_limit=0.3))
    assert found.error_bounds == {}
    assert found.metrics["pixel_spro"] == pytest.approx(naive(maps, defects, 0.3), abs=1e-9)
    assert found.metrics["pixel_spro_05"] == pytest.approx(naive(maps, defects, 0.05), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_binned_scores_are_within_the_bound(seed):
    maps, defects = scene(seed)
    fine, coarse = (measured(maps, defects, AnomalyMetrics(bins=bins)) for bins in (2**19, 2**10))
    for key, limit in (("pixel_spro", 0.3), ("pixel_spro_05", 0.05)):
        expected = naive(maps, defects, limit)
        for found in (fine, coarse):
            assert abs(found.metrics[key] - expected) <= found.error_bounds[key] + 1e-9


def test_whole_regions_that_do_not_touch_are_pro():
    rng = np.random.default_rng(3)
    maps = rng.random((3, 8, 8), np.float32)
    parts = np.zeros((3, 8, 8), np.uint8)
    parts[1, 1:4, 1:4], parts[2, 5:, 5:] = 1, 1
    masks = parts.copy()
    masks[1, 6, 1:7] = 1
    second = masks - parts
    defects = [[], [(parts[1], 1.0), (second[1], 1.0)], [(parts[2], 1.0)]]
    metric = AnomalyMetrics(exact=True)
    for scores, mask, of_image in zip(maps, masks, defects, strict=True):
        metric.update(
            scores[None],
            mask[None],
            region_weight=saturated_weight(torch.from_numpy(scores), as_defects(of_image))[None],
        )
    found = spro_result(NOTHING, metric).metrics
    assert found["pixel_spro"] == pytest.approx(metrics_naive.pro(maps, masks, 0.3), abs=1e-9)


def test_weights_are_of_the_highest_scores():
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.7]])
    half = Defect(torch.ones(1, 3, dtype=torch.uint8), (0, 1), 0.5)  # 1.5 of 3 pixels
    weight = saturated_weight(scores, [half])
    assert weight.dtype == torch.int64
    assert (weight[0] / REGION).tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3])
    whole = Defect(torch.ones(1, 2, dtype=torch.uint8), (0, 2), 1.0)
    assert (saturated_weight(scores, [half, whole])[0] / REGION).tolist() == pytest.approx([0, 0, 5 / 6, 7 / 6])
    assert saturated_weight(scores, []).sum() == 0


def test_a_defect_in_two_parts_is_one():
    maps = [np.float32([[0.9, 0.1, 0.2, 0.95]]), np.float32([[0.3, 0.4, 0.1, 0.0]])]
    parts = np.uint8([[1, 0, 0, 1]])
    one = measured_row(maps, [[(parts, 0.5)], []])
    two = measured_row(maps, [[(np.uint8([[1, 0, 0, 0]]), 1.0), (np.uint8([[0, 0, 0, 1]]), 1.0)], []])
    assert one == two == 1.0
    maps[0][0, 0] = 0.0  # one part is missed: half of the defect is enough
    assert measured_row(maps, [[(parts, 0.5)], []]) == 1.0
    assert measured_row(maps, [[(np.uint8([[1, 0, 0, 0]]), 1.0), (np.uint8([[0, 0, 0, 1]]), 1.0)], []]) < 0.6


def measured_row(maps, defects):
    metric = AnomalyMetrics(exact=True)
    for scores, of_image in zip(maps, defects, strict=True):
        mask = np.any([mask for mask, _ in of_image], axis=0) if of_image else np.zeros(scores.shape, bool)
        weight = saturated_weight(torch.from_numpy(scores), as_defects(of_image))
        metric.update(scores[None], mask[None], region_weight=weight[None])
    return spro_result(NOTHING, metric).metrics["pixel_spro"]


def test_batches_processes_and_order_make_no_difference():
    maps, defects = scene(7, images=6)
    whole = measured(maps, defects, AnomalyMetrics())
    first, second = AnomalyMetrics(), AnomalyMetrics()
    measured(maps[:2], defects[:2], first)
    measured(maps[:1:-1], defects[:1:-1], second)
    first.merge_state(second)
    assert spro_result(NOTHING, first) == whole


def test_nothing_without_defects_or_with_an_unknown_mask():
    maps, defects = scene(1)
    assert measured(maps[:1], defects[:1], AnomalyMetrics()) == NOTHING
    metric = AnomalyMetrics()
    metric.update(maps[0][None], np.zeros((1, *SHAPE)), label=np.array([1]), mask_known=np.array([False]))
    assert measured(maps, defects, metric) == NOTHING


def records_of(maps, defects):
    for i, (scores, of_image) in enumerate(zip(maps, defects, strict=True)):
        mask = np.any([mask for mask, _ in of_image], axis=0) if of_image else np.zeros(SHAPE, bool)
        weight = saturated_weight(torch.from_numpy(scores), as_defects(of_image))
        areas = torch.from_numpy(region_areas(mask))
        yield ImageRecord.of(f"{i:02}", int(bool(of_image)), float(scores.max()), scores, areas, weight)


def test_what_is_kept_of_images_gives_it_too():
    maps, defects = scene(5, images=6)
    expected = measured(maps, defects, AnomalyMetrics(exact=True)).metrics
    result = result_of_images(list(records_of(maps, defects)))
    for key, value in expected.items():
        assert abs(result.metrics[key] - value) <= result.error_bounds[key] + 1e-9
    assert result.metrics["pixel_pro"] != pytest.approx(result.metrics["pixel_spro"])


def test_intervals():
    maps, defects = zip(*[pair for seed in range(6) for pair in list(zip(*scene(seed), strict=True))[:2]], strict=True)
    records = list(records_of([*maps], [*defects]))
    found = intervals_of({("set", "a"): records}, Settings(100))
    low, high = found.by_row["set", "a"]["pixel_spro"]
    assert low < result_of_images(records).metrics["pixel_spro"] < high
    assert "pixel_spro_05" in found.by_row["set", "mean"]
