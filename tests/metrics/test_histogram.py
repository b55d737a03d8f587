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


@settings(deadline=None, max_examples=80)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
def test_float64_keys_keep_the_order_and_can_be_read_back(values):
    scores = torch.tensor(values, dtype=torch.float64)
    keys = score_keys(scores)
    assert torch.equal(keys.argsort(stable=True), scores.argsort(stable=True))
    np.testing.assert_array_equal(key_scores(keys.numpy(), wide=True), scores.numpy())


def add(histogram, pixels):
    """Adds pixels in one batch per type: float32 for the values that it can represent, float64 for the others."""
    with np.errstate(over="ignore"):
        fits = [float(np.float32(score)) == score for score, _ in pixels]
    for number, wanted in ((torch.float32, True), (torch.float64, False)):
        part = [pixel for pixel, fit in zip(pixels, fits, strict=True) if fit == wanted]
        scores = torch.tensor([p[0] for p in part], dtype=number)
        histogram.add(scores, torch.tensor([p[1] for p in part], dtype=torch.int32))
    return histogram


def histogram_of(pixels, limit=2**10):
    return add(ScoreHistogram.empty(limit), pixels)


# Scores of one scale, whose bins are fine; of all scales, most of which are taken together; and ties.
pixels_of = st.one_of(
    st.lists(st.tuples(scores, st.integers(0, 3)), min_size=1, max_size=40)
    for scores in (
        floats,
        st.floats(0.5, 0.515625, width=32),
        st.sampled_from([-1.0, -1e-9, 0.0, -0.0, 1e-45, 1e-9, 0.5, 0.500001, 1.0, 1e30]),
        st.integers(-300, 300).map(float),
        st.floats(-1e300, 1e300, allow_subnormal=True),
        st.floats(0.5, 0.5 + 1e-9),
        st.one_of(floats, st.floats(0.5, 0.500001), st.floats(-1e-29, 1e-29), st.sampled_from([-1e-320, 1e-45, 0.0])),
    )
)
limits = st.sampled_from([2**10, 2**14, 2**19])


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(pixels_of, limits)
def test_bins_hold_what_their_thresholds_say(pixels, limit):
    histogram = histogram_of(pixels, limit)
    counts = histogram.score_counts()
    assert histogram.counts.shape[1] <= 2 * limit
    assert (np.diff(counts.lowest) > 0).all()
    edges = [*counts.lowest, np.inf]
    for i, (lowest, threshold) in enumerate(zip(counts.lowest, counts.thresholds, strict=True)):
        above = [area for score, area in pixels if score > threshold]
        assert above == [area for score, area in pixels if score >= lowest]
        assert counts.normal[i:].sum() == sum(area == 0 for area in above)
        assert counts.anomalous[i:].sum() == sum(area > 0 for area in above)
        assert counts.region_weight[i:].sum() == sum(round(REGION / area) for area in above if area)
        if counts.tied[i]:
            assert len({score for score, _ in pixels if lowest <= score < edges[i + 1]}) == 1


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(pixels_of, limits, st.data())
def test_parts_add_to_the_whole(pixels, limit, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(pixels)), max_size=3)))
    order = data.draw(st.permutations(pixels))
    added, merged = ScoreHistogram.empty(limit), ScoreHistogram.empty(limit)
    for start, end in zip([0, *cuts], [*cuts, len(order)], strict=True):
        part = histogram_of(order[start:end], limit)
        merged.merge(part)
        add(added, order[start:end])
    whole = histogram_of(pixels, limit)
    for total in (added, merged):
        for one, other in zip(total.score_counts()[1:], whole.score_counts()[1:], strict=True):
            np.testing.assert_array_equal(one, other)
    whole.to_float64()
    for total in (added, merged):
        total.to_float64()  # where all that came first was tiny it is already
        assert (total.lowest, total.highest) == (whole.lowest, whole.highest)
        assert torch.equal(total.counts, whole.counts)


def test_what_is_far_below_the_largest_is_taken_together_but_for_zero():
    counts = histogram_of([(1.0, 0), (1e-12, 0), (1e-20, 0), (0.0, 0), (-1e-20, 0), (-1e-30, 1)]).score_counts()
    np.testing.assert_array_equal(counts.normal, [1, 1, 2, 1])
    np.testing.assert_array_equal(counts.anomalous, [1, 0, 0, 0])
    np.testing.assert_array_equal(counts.tied, [False, True, False, True])


def test_exact_counts_are_by_distinct_score():
    counts = exact_counts(np.float32([3, 1, 1]), np.float32([2, 1, 2]), np.array([2, 4, 2]))
    np.testing.assert_array_equal(counts.lowest, [1, 2, 3])
    np.testing.assert_array_equal(counts.normal, [2, 0, 1])
    np.testing.assert_array_equal(counts.anomalous, [1, 2, 0])
    np.testing.assert_array_equal(counts.region_weight, [REGION // 4, REGION, 0])


def test_bins_are_as_fine_as_the_range_allows():
    scores = torch.linspace(0.49, 0.51, 100_000)
    histogram = ScoreHistogram.empty()
    histogram.add(scores, torch.zeros(100_000, dtype=torch.int32))
    assert len(histogram.score_counts().thresholds) == len(scores.unique())  # every float32 apart
    histogram.add(torch.zeros(1), torch.zeros(1, dtype=torch.int32))
    assert len(histogram.score_counts().thresholds) < 2000
    assert histogram.counts.nbytes <= 48 * 2**19


def test_a_large_batch_is_counted_in_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    scores, areas = torch.randn(5, 10, 10, generator=generator), torch.randint(0, 3, (5, 10, 10), generator=generator)
    whole, chunked = ScoreHistogram.empty(), ScoreHistogram.empty()
    whole.add(scores, areas.int())
    monkeypatch.setattr("afclip_lightning.metrics.histogram.CHUNK", 77)
    chunked.add(scores, areas.int())
    assert torch.equal(whole.counts, chunked.counts)


def test_other_resolutions_do_not_add():
    with pytest.raises(ValueError, match="2048 bins"):
        histogram_of([(1.0, 1)]).merge(histogram_of([(1.0, 1)], 2048))
