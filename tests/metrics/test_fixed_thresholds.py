from fractions import Fraction
from math import isqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afclip_lightning.metrics.fixed_thresholds import Moments, Rule, mean_plus_sd
from afclip_lightning.metrics.histogram import ScoreHistogram, exact_counts
from afclip_runtime.errors import UserError


def exact(values):
    """The mean and the standard deviation by integer arithmetic, to 40 digits."""
    values = [Fraction(float(value)) for value in values]
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return float(mean), isqrt(int(variance * 10**80)) / 10**40


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=40), st.integers(0, 40))
def test_moments_of_parts_are_those_of_the_whole(values, cut):
    array = np.asarray(values, np.float32)
    mean, sd = exact(array)
    for moments in (Moments.of(array), Moments.of(array[:cut]) + Moments.of(array[cut:])):
        assert moments.count == len(values)
        assert moments.mean == pytest.approx(mean, rel=1e-12, abs=1e-12)
        assert moments.sd == pytest.approx(sd, rel=1e-9, abs=1e-12)


def test_the_stated_rounding_where_the_mean_is_far_from_zero():
    rng = np.random.default_rng(0)
    maps = (1000 + rng.standard_normal((1000, 16, 16))).astype(np.float32)
    mean, sd = exact(maps.reshape(-1))
    moments = Moments.merged(map(Moments.of, maps))
    assert moments.sd == pytest.approx(sd, rel=1e-9)
    assert moments.mean == pytest.approx(mean, rel=1e-14)
    # the sum of squares that one would write first loses all digits here
    naive = (maps**2).sum(dtype=np.float32) / maps.size - maps.mean(dtype=np.float32) ** 2
    assert abs(naive - sd**2) > 1e-3


def test_equal_to_numpy_on_half_precision():
    maps = np.random.default_rng(1).random((5, 30, 40)).astype(np.float16)
    moments = Moments.merged(map(Moments.of, maps))
    assert moments.sd == pytest.approx(maps.astype(float).std(), rel=1e-12)
    assert mean_plus_sd(moments) == pytest.approx(maps.astype(float).mean() + 3 * maps.astype(float).std(), rel=1e-12)
    assert mean_plus_sd(moments, 2) < mean_plus_sd(moments)


def test_merged_in_one_order_is_the_same_bit_for_bit():
    parts = [Moments.of(part) for part in np.random.default_rng(2).random((9, 50))]
    shared = {index: part for rank in range(3) for index, part in list(enumerate(parts))[rank::3]}
    assert Moments.merged(shared[index] for index in sorted(shared)) == Moments.merged(parts)


def test_equal_scores_have_no_spread():
    assert mean_plus_sd(Moments.of(np.full((7, 7), 0.1, np.float32))) == pytest.approx(np.float32(0.1), rel=1e-12)


@pytest.mark.parametrize("scores", [[], [0.5]])
def test_a_rule_without_normal_scores(scores):
    with pytest.raises(UserError, match=f"needs the scores of normal images, and there are {len(scores)}"):
        mean_plus_sd(Moments.of(np.asarray(scores, float)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite(value):
    with pytest.raises(UserError, match="NaN or infinite"):
        Moments.of(np.array([0.5, value]))


def test_factor_that_is_not_finite():
    with pytest.raises(ValueError, match="factor must be finite"):
        mean_plus_sd(Moments.of(np.arange(3)), float("nan"))


def normal_counts(scores):
    return exact_counts(scores, np.zeros(0, scores.dtype))


@pytest.mark.parametrize(("quantile", "expected"), [("q0.99", 99), ("q.9", 90), ("q0.5", 50), ("q0.985", 99)])
def test_a_quantile_lets_at_most_its_share_through(quantile, expected):
    scores = np.random.default_rng(0).permutation(100).astype(np.float32) + 1
    value = Rule.of(quantile).threshold(Moments.of(scores), normal_counts(scores), binned=False)
    assert value == expected
    assert (scores > value).mean() <= 1 - float(quantile[1:]) + 1e-12


def test_a_quantile_of_ties_and_of_bins():
    saturated = np.array([0.5] * 7 + [1.0] * 3, np.float32)
    assert (
        Rule.of("q0.9").threshold(Moments.of(saturated), normal_counts(saturated), binned=False) == 1
    )  # nothing is above
    scores = np.random.default_rng(1).random(5000, np.float32)
    histogram = ScoreHistogram.empty(2**10)
    histogram.add(torch.from_numpy(scores), torch.zeros(5000, dtype=torch.int32))
    value = Rule.of("q0.95").threshold(Moments.of(scores), histogram.score_counts())
    exact = Rule.of("q0.95").threshold(Moments.of(scores), normal_counts(scores), binned=False)
    assert exact <= value <= exact * 1.03
    assert (scores > value).mean() <= 0.05


def test_a_rule_is_read_from_its_text():
    scores = np.arange(10.0)
    assert Rule.of("mean+2.5sd").threshold(Moments.of(scores), normal_counts(scores)) == pytest.approx(
        4.5 + 2.5 * scores.std()
    )
    for text in ("q1", "q1.5", "q0", "mean", "mean+3", "mean-3sd", "3sd", ""):
        with pytest.raises(ValueError, match=r"a rule is mean\+3sd or q0\.99"):
            Rule.of(text)


def test_a_quantile_needs_as_many_scores_as_it_says():
    scores = np.arange(99.0)
    with pytest.raises(UserError, match=r"q0\.99 needs 100 scores of normal images, and there are 99"):
        Rule.of("q0.99").threshold(Moments.of(scores), normal_counts(scores))
    with pytest.raises(UserError, match="needs the scores of normal images, and there are 0"):
        Rule.of("mean+3sd").threshold(Moments(), normal_counts(scores[:0]))
