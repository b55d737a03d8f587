"""Tests of differences: against published worked examples, and against their definitions in plain loops."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from afclip_lightning.metrics.significance import (
    LEVEL,
    bootstrap_difference,
    cliques,
    delong,
    delong_difference,
    fewest_samples,
    holm,
    may_be_best,
    ranking,
    wilcoxon,
)

# Albumin, total protein, K-G score and outcome of 43 patients, the example of DeLong, DeLong and Clarke-Pearson (1988)
# without 6 patients of whom a value is missing, as the SAS/STAT User's Guide lists it ("Comparing Receiver Operating
# Characteristic Curves" of the chapter on PROC LOGISTIC).
PATIENTS = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1
3.7 6.7 6 1   3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0
4.0 6.6 6 0   3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
4.3 6.5 4 1   3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1
2.9 5.7 9 0   2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""
# AUC of C4.5, with m, with cf, with m and cf, on 14 datasets: Demšar (2006), Table 6. On voting the paper ranks cf
# above m and cf, and prints .975 for both.
CLASSIFIERS = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975],
        [0.957, 0.978, 0.946, 0.970],
    ]
)


def patients() -> tuple[np.ndarray, np.ndarray]:
    albumin, protein, score, outcome = np.array(PATIENTS.split(), float).reshape(-1, 4).T
    return np.stack([albumin, 10 - score, protein]), outcome.astype(int)


def components(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the result of `delong`, computed from all pairs of images."""
    areas, rows, columns = [], [], []
    for method in scores:
        wins = [[1.0 if a > b else 0.5 if a == b else 0.0 for b in method[labels == 0]] for a in method[labels == 1]]
        areas.append(np.mean(wins))
        rows.append(np.mean(wins, axis=1))
        columns.append(np.mean(wins, axis=0))
    return np.array(areas), np.cov(rows) / len(rows[0]) + np.cov(columns) / len(columns[0])


def test_delong_gives_the_published_areas_errors_and_contrasts() -> None:
    scores, labels = patients()
    areas, covariance = delong(scores, labels)
    assert areas.round(4).tolist() == [0.7366, 0.7258, 0.6478]
    assert np.sqrt(covariance.diagonal()).round(4).tolist() == [0.0927, 0.1028, 0.1000]
    albumin = delong_difference(scores[0], scores[1], labels)
    assert np.round(albumin, 4).tolist() == [0.0108, -0.1761, 0.1976, 0.9102]
    protein = delong_difference(scores[2], scores[1], labels)
    assert np.round(protein, 4).tolist() == [-0.0780, -0.2830, 0.1271, 0.4561]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_delong_is_that_of_all_pairs_with_any_ties(normal: int, anomalous: int, values: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation([0] * normal + [1] * anomalous)
    scores = rng.integers(0, values, (3, len(labels))) / 8
    areas, covariance = delong(scores, labels)
    expected_areas, expected = components(scores, labels)
    np.testing.assert_allclose(areas, expected_areas, atol=1e-12)
    np.testing.assert_allclose(covariance, expected, atol=1e-12)


def test_delong_says_what_it_cannot_know() -> None:
    labels = np.array([0, 0, 1, 1])
    perfect, reverse = np.array([0.0, 1, 2, 3]), np.array([3.0, 2, 1, 0])
    assert delong_difference(perfect, 2 * perfect, labels) == (0, 0, 0, 1)
    assert np.isnan(delong_difference(perfect, reverse, labels)[1:]).all()
    with pytest.raises(ValueError, match="needs two normal and two anomalous images, got 3 and 1"):
        delong(np.zeros((2, 4)), np.array([0, 0, 0, 1]))


def test_a_method_that_ranks_alike_does_not_differ() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    scores = rng.random(40) + labels
    same = delong_difference(scores, np.exp(scores), labels)
    assert same == (0, 0, 0, 1)


@settings(max_examples=100, deadline=None)
@given(st.integers(39, 400), st.floats(-1.5, 1.5), st.booleans(), st.integers(0, 2**32 - 1))
def test_the_interval_leaves_0_out_exactly_if_the_p_value_says_so(
    count: int, shift: float, coarse: bool, seed: int
) -> None:
    samples = np.random.default_rng(seed).normal(2 * shift, 1, count)
    samples = samples.round() if coarse else samples
    found = bootstrap_difference(shift, samples)
    assert found.value == shift
    assert (not found.low <= 0 <= found.high) == (found.p_value <= 1 - LEVEL + 1e-12)
    assert 0 < found.p_value <= 1
    assert found.low <= found.high


def test_the_bootstrap_p_value_is_as_defined() -> None:
    samples = np.array([-1.0] * 3 + [0.0] * 2 + [1.0] * 94)
    assert bootstrap_difference(1.0, samples).p_value == 2 * (1 + 5) / 100
    assert bootstrap_difference(0.0, np.zeros(99)) == (0, 0, 0, 1)
    assert fewest_samples() == 39
    with pytest.raises(ValueError, match="needs 39 samples, got 38"):
        bootstrap_difference(0.0, np.zeros(38))


def test_both_tests_hold_their_level() -> None:
    """For two equally good methods, 5 % of simulated sets show a difference."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 30)
    common = rng.normal(0, 1, (400, 60)) + labels
    first, second = common + rng.normal(0, 0.7, (2, 400, 60))
    p_values = [delong_difference(a, b, labels).p_value for a, b in zip(first, second, strict=True)]
    assert 0.03 <= np.mean(np.array(p_values) <= 0.05) <= 0.075  # 4 standard errors of 400 sets are 0.044


def test_the_best_method_is_among_those_that_may_be() -> None:
    """Of 6 methods on 40 images, one is slightly better. It is left out in 5 % of simulated sets, others more often."""
    rng = np.random.default_rng(0)
    truth = np.array([0.05, 0.0, 0.0, 0.0, -0.3, -1.0])
    kept = []
    for _ in range(300):
        images = truth[:, None] + rng.normal(0, 1, 40) + rng.normal(0, 0.5, (6, 40))
        weights = rng.multinomial(40, np.full(40, 1 / 40), 400)
        kept.append(may_be_best(images.mean(axis=1), images @ weights.T / 40))
    share = np.mean(kept, axis=0)
    assert share[0] >= 0.93  # 95 % less 2 standard errors of 300 sets, 1.3 % each
    assert (share[1:4] > 0.8).all()
    assert share[4] < 0.35
    assert share[5] == 0


def test_methods_that_say_the_same_are_both_kept_or_left_out() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 1, (3, 200))
    values = np.array([0.0, 0.0, 9.0])
    assert may_be_best(values, np.stack([samples[0], samples[0], samples[2] + 9])).tolist() == [False, False, True]
    assert may_be_best(np.array([1.0, 1.0]), np.ones((2, 50))).tolist() == [True, True]
    assert may_be_best(np.array([1.0, 0.9]), np.array([[1.0] * 50, [0.9] * 50])).tolist() == [True, False]
    assert may_be_best(np.array([0.3]), samples[:1]).tolist() == [True]


def test_holm_gives_the_published_values() -> None:
    """Demšar (2006), section 3.2.2, of C4.5 against the three others."""
    assert holm([0.016, 0.019, 0.607]).round(3).tolist() == [0.048, 0.048, 0.607]
    assert holm([0.607, 0.016, 0.019]).round(3).tolist() == [0.607, 0.048, 0.048]
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


def test_wilcoxon_gives_the_published_decision_and_the_exact_share_of_signs() -> None:
    """Demšar (2006), section 3.1.3: z = -2.54 with C4.5 and C4.5 with m; the rest from all signs of few differences."""
    differences = CLASSIFIERS[:, 1] - CLASSIFIERS[:, 0]
    assert wilcoxon(differences.round(3)) == pytest.approx(0.0109, abs=3e-4)
    few = np.array([0.1, 0.2, -0.3, 0.4, 0.5, 0.6])
    sums = np.array(list(itertools.product([0, 1], repeat=6))) @ np.arange(1, 7)
    assert wilcoxon(few) == pytest.approx(2 * np.mean(sums >= 18))
    assert wilcoxon(np.zeros(7)) == 1


def test_ranks_and_the_critical_difference_are_the_published_ones() -> None:
    found = ranking(CLASSIFIERS)
    assert found.ranks.round(3).tolist() == [3.143, 2.000, 2.893, 1.964]
    assert found.critical_difference == pytest.approx(1.25, abs=0.005)
    ties = 3 * (2**3 - 2) + (4**3 - 4)  # the paper's 9.28 is without the correction for them
    assert found.p_value == pytest.approx(chi2.sf(9.28 / (1 - ties / (14 * 4 * 15)), 3), rel=2e-3)
    assert cliques(found.ranks, found.critical_difference) == [[3, 1, 2, 0]]
    assert cliques(found.ranks, 1.12) == [[3, 1, 2], [2, 0]]  # as the paper draws it at 90 %


def test_methods_that_are_all_alike_have_one_rank() -> None:
    found = ranking(np.ones((5, 3)))
    assert found.ranks.tolist() == [2, 2, 2]
    assert found.p_value == 1
    assert cliques(np.array([1.0, 2.0, 3.0]), 0.5) == []
    assert cliques(np.array([3.0, 1.0, 2.0]), 1.5) == [[1, 2], [2, 0]]
