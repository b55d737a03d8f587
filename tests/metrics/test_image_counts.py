"""The counts per image add up to those of all pixels, also in common groups."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afclip_lightning.metrics import (
    ScoreHistogram,
    auroc,
    auroc_error_bound,
    average_precision,
    average_precision_error_bound,
    exact_counts,
    f1_max,
    f1_max_error_bound,
    pro,
    pro_error_bound,
)
from afclip_lightning.metrics.histogram import REGION as WHOLE_REGION
from afclip_lightning.metrics.image_counts import (
    IMAGE_BINS,
    NORMAL_GROUPS,
    REGION,
    CategoryCounts,
    ImageCounts,
    ImageRecord,
)
from tests.support.image_records import categories, records_of, regions

FUNCTIONS = (
    (auroc, auroc_error_bound),
    (average_precision, average_precision_error_bound),
    (lambda counts: f1_max(counts)[0], f1_max_error_bound),
    (pro, pro_error_bound),
)


@pytest.mark.parametrize("wide", [False, True])
def test_an_image_is_counted_as_a_histogram_counts_it(wide):
    maps, masks, _, _ = categories(images=1, side=48)
    maps, areas = torch.from_numpy(maps[0]), regions(masks[0])
    maps = maps.double() * (1 + 1e-12) if wide else maps
    histogram = ScoreHistogram.empty(IMAGE_BINS)
    histogram.add(maps, areas)
    counts = ImageCounts.of(maps, areas)
    again = counts.histogram()
    assert counts.wide == wide
    assert (again.lowest, again.highest, again.wide, again.limit) == (
        histogram.lowest,
        histogram.highest,
        wide,
        IMAGE_BINS,
    )
    assert torch.equal(again.counts, histogram.counts)
    assert counts.pixels.sum() == 48 * 48
    assert counts.nbytes == 6 * len(counts.bins) + 14 * len(counts.marked)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("shift", [0.0, -0.4, -2.0])  # scores of both signs, and of one
def test_pixels_above_a_threshold_are_those_of_the_map_up_to_half_a_bin(wide, shift):
    maps, masks, _, _ = categories(images=6, side=48)
    maps = maps.astype(float) * (1 + 1e-12) + shift if wide else maps + np.float32(shift)
    rng, off = np.random.default_rng(0), 0
    for scores, mask in zip(maps, masks, strict=True):
        counts = ImageCounts.of(torch.from_numpy(scores), regions(mask))
        of_map = *rng.choice(scores.ravel(), 20).astype(float), scores.max(), scores.min()
        for threshold in (*of_map, *rng.uniform(shift - 0.1, shift + 1.1, 20), 0.0, -0.0, np.inf, -np.inf):
            normal, anomalous, *open_ = counts.above(float(threshold))
            expected = [(scores[mask == label].astype(float) > threshold).sum() for label in (0, 1)]
            assert abs(normal - expected[0]) <= open_[0]
            assert abs(anomalous - expected[1]) <= open_[1]
            off = max(off, *open_)
        assert counts.above(float(scores.max())).tolist() == [0, 0, 0, 0]
        assert counts.above(float(scores.min()) - 1e-6).tolist() == [(mask == 0).sum(), (mask == 1).sum(), 0, 0]
    assert 0 < off <= 12  # of 2,304 pixels; equal values of two decimals share a bin with others


def test_an_image_takes_no_more_than_is_said():
    generator = torch.Generator().manual_seed(0)
    maps, areas = torch.rand(518, 518, generator=generator), torch.zeros(518, 518, dtype=torch.int32)
    areas[100:160, 100:160] = 3600
    assert ImageCounts.of(maps, areas).nbytes <= 2**14 * 6 + 3600 * 14
    assert ImageCounts.of(maps.clamp(0.4, 0.6), areas).nbytes <= 2**14 * 6 + 3600 * 14


@pytest.mark.parametrize("seed", range(4))
def test_the_groups_hold_the_category_within_the_proven_bound(seed):
    maps, masks, labels, scores = categories(seed=seed)
    images = CategoryCounts.of(records_of(maps, masks, labels, scores))
    areas = np.stack([regions(mask).numpy() for mask in masks])
    exact = exact_counts(maps[masks == 0], maps[masks == 1], areas[masks == 1])
    counts = images.pixel_counts()
    assert counts.normal.sum() == (masks == 0).sum()
    assert counts.anomalous.sum() == (masks == 1).sum()
    assert counts.region_weight.sum() / REGION == pytest.approx(exact.region_weight.sum() / WHOLE_REGION, rel=1e-6)
    assert (np.diff(images.lowest) < 0).all()
    for value, bound in FUNCTIONS:
        assert abs(value(counts) - value(exact)) <= bound(counts) + 1e-12
    # no group holds more than its share of the normal pixels, so that few pairs are within one
    assert auroc_error_bound(counts) <= 1 / (2 * NORMAL_GROUPS)


def test_a_group_says_how_many_are_above_it():
    maps, masks, labels, scores = categories()
    images = CategoryCounts.of(records_of(maps, masks, labels, scores))
    for g in range(0, len(images.lowest), 97):
        above = maps >= images.lowest[g]
        for i in range(len(maps)):
            assert images.normal[i, : g + 1].sum() == (above[i] & (masks[i] == 0)).sum()
            assert images.anomalous[i, : g + 1].sum() == (above[i] & (masks[i] == 1)).sum()


def test_a_sample_counts_an_image_as_often_as_it_is_drawn():
    maps, masks, labels, scores = categories()
    images = CategoryCounts.of(records_of(maps, masks, labels, scores))
    times = np.arange(len(maps)) % 3
    counts, at = images.pixel_counts(times), np.repeat(np.arange(len(maps)), times)
    areas = np.stack([regions(mask).numpy() for mask in masks])[at]
    exact = exact_counts(maps[at][masks[at] == 0], maps[at][masks[at] == 1], areas[masks[at] == 1])
    for value, bound in FUNCTIONS:
        assert abs(value(counts) - value(exact)) <= bound(counts) + 1e-12


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(12)))
def test_the_order_of_the_images_makes_no_difference(order):
    records = records_of(*categories())
    one, other = CategoryCounts.of(records), CategoryCounts.of([records[i] for i in order])
    for name in ("names", "labels", "scores", "masked", "lowest", "normal", "anomalous", "region_weight", "tied"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_scores_far_apart_and_in_float64_are_brought_together():
    maps, masks, labels, scores = categories()
    records = records_of(maps, masks, labels, scores)
    odd = torch.from_numpy(maps[0]).double() * (1 + 1e-12)
    records[0] = ImageRecord("00", int(labels[0]), float(scores[0]), ImageCounts.of(odd, regions(masks[0])))
    far = torch.from_numpy(maps[1]) * 1e6 - 1e5
    records[1] = ImageRecord("01", int(labels[1]), float(scores[1]), ImageCounts.of(far, regions(masks[1])))
    images = CategoryCounts.of(records)
    everything = [odd.numpy(), far.double().numpy(), *maps[2:].astype(np.float64)]
    assert images.lowest.dtype == np.float64
    for g in range(0, len(images.lowest), 53):
        for i, scored in enumerate(everything):
            above = scored >= images.lowest[g]
            assert (images.normal + images.anomalous)[i, : g + 1].sum() == above.sum()


def test_ties_are_known_to_be_ties():
    maps = np.float32([[[0.5, 0.25]], [[0.5, 0.75]], [[0.25, 0.25]]])
    masks = np.uint8([[[0, 0]], [[0, 1]], [[0, 0]]])
    images = CategoryCounts.of(records_of(maps, masks, np.array([0, 1, 0]), np.zeros(3)))
    np.testing.assert_array_equal(images.lowest, np.float32([0.75, 0.5, 0.25]))
    assert images.tied.all()
    np.testing.assert_array_equal(images.normal, [[0, 1, 1], [0, 1, 0], [0, 0, 2]])


def test_an_image_without_a_mask_or_a_score_has_none():
    records = records_of(*categories())
    records[3] = ImageRecord("03", 1, None, None)
    images = CategoryCounts.of(records)
    assert images.masked.tolist() == [i != 3 for i in range(12)]
    assert np.isnan(images.scores).tolist() == [i == 3 for i in range(12)]
    assert not images.normal[3].any()
    nothing = CategoryCounts.of([records[3]])
    assert nothing.normal.shape == (1, 0)
    assert not nothing.pixel_counts().normal.size


def test_two_images_of_one_name_are_refused():
    records = records_of(*categories())
    with pytest.raises(ValueError, match="03: two images of a category have this name"):
        CategoryCounts.of([*records, records[3]])
