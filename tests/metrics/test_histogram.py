import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afclip_lightning.metrics import ScoreHistogram, exact_counts
from afclip_lightning.metrics.histogram import REGION, key_scores, score_keys
from tests.reference import metrics_naive as naive

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None, max_examples=80)
@given(st.lists(floats, min_size=1, max_size=30))
def test_keys_keep_the_order_and_can_be_read_back(values):
    scores = torch.tensor(values, dtype=torch.float32)
    keys = score_keys(scores)
    assert keys.tolist() == [naive.score_key(v) for v in values]
    assert torch.equal(keys.argsort(stable=True), scores.argsort(stable=True))
    np.testing.assert_array_equal(key_scores(keys.long().numpy()), scores.numpy())


def test_signed_zeros_and_smallest_numbers():
    tiny = 2.0**-149
    assert score_keys(torch.tensor([-tiny, -0.0, 0.0, tiny])).tolist() == [-1, 0, 0, 1]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(floats, st.integers(0, 3)), min_size=1, max_size=40), st.sampled_from([10, 16, 22, 24]))
def test_bins_hold_what_their_thresholds_say(pixels, bits):
    scores, areas = torch.tensor([p[0] for p in pixels]), torch.tensor([p[1] for p in pixels], dtype=torch.int32)
    counts = ScoreHistogram.of(scores, areas, bits).score_counts()
    assert (np.diff(counts.thresholds) > 0).all()
    for i, threshold in enumerate(counts.thresholds):
        above = [area for score, area in pixels if np.float32(score) >= threshold]
        assert counts.normal[i:].sum() == sum(area == 0 for area in above)
        assert counts.anomalous[i:].sum() == sum(area > 0 for area in above)
        assert counts.region_weight[i:].sum() == sum(round(REGION / area) for area in above if area)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(floats, st.integers(0, 9)), max_size=40), st.data())
def test_parts_add_to_the_whole(pixels, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(pixels)), max_size=3)))
    order = data.draw(st.permutations(pixels))
    total = ScoreHistogram(0, torch.zeros(3, 0, dtype=torch.int64))
    for start, end in zip([0, *cuts], [*cuts, len(order)], strict=True):
        part = order[start:end]
        total = total + ScoreHistogram.of(torch.tensor([p[0] for p in part]), torch.tensor([p[1] for p in part]))
    whole = ScoreHistogram.of(torch.tensor([p[0] for p in pixels]), torch.tensor([p[1] for p in pixels]))
    assert total.low == whole.low
    assert torch.equal(total.counts, whole.counts)


def test_exact_counts_are_by_distinct_score():
    counts = exact_counts(np.float32([3, 1, 1]), np.float32([2, 1, 2]), np.array([2, 4, 2]))
    np.testing.assert_array_equal(counts.thresholds, [1, 2, 3])
    np.testing.assert_array_equal(counts.normal, [2, 0, 1])
    np.testing.assert_array_equal(counts.anomalous, [1, 2, 0])
    np.testing.assert_array_equal(counts.region_weight, [REGION // 4, REGION, 0])


def test_a_window_is_no_wider_than_the_scores():
    histogram = ScoreHistogram.of(torch.linspace(0.49, 0.51, 1000), torch.zeros(1000, dtype=torch.int32))
    assert histogram.counts.shape[1] < 1000


def test_other_resolutions_do_not_add():
    scores, areas = torch.ones(1), torch.ones(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="16 bits"):
        ScoreHistogram.of(scores, areas) + ScoreHistogram.of(scores, areas, bits=16)
