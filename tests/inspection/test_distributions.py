"""Distributions of the runtime: equal to scipy's numbers in the ranges that thresholds and drift tests use."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import special, stats

from afclip_runtime.inspection.distributions import (
    beta_binomial,
    binomial_quantile,
    pareto_excess,
)


@pytest.mark.parametrize("n", [1, 2, 8, 20, 199, 200, 1000, 12_345, 200_000])
def test_binomial_quantiles(n: int) -> None:
    shares = [0.001, 0.05, 0.3, 0.5, 0.95, 0.999]
    for p in (1e-4, 0.01, 0.1, 0.5, 0.7, 0.9, 0.95, 0.99, 0.9999):
        found = [binomial_quantile(share, n, p) for share in shares]
        assert found == stats.binom.ppf(shares, n, p).astype(int).tolist(), p


@pytest.mark.parametrize("normal", [8, 20, 200, 5000])
@pytest.mark.parametrize("n", [1, 8, 14, 40, 1000, 20_000])
def test_beta_binomial(n: int, normal: int) -> None:
    for rank in {1, (normal + 1) // 2, -(-4 * normal // 5), normal}:
        a, b = rank, normal + 1 - rank
        chances = beta_binomial(n, a, b)
        for k in {-1, 0, n // 4, n // 2, 3 * n // 4, n - 1, n}:
            below, above = chances[: k + 1].sum(), chances[k + 1 :].sum()
            assert below + above == pytest.approx(1, abs=1e-12)
            # scipy subtracts logarithms of gamma functions, which leaves it 1e-9 of long streams
            assert_allclose(below, stats.betabinom.cdf(k, n, a, b), rtol=1e-7, atol=1e-10)
            assert_allclose(above, stats.betabinom.sf(k, n, a, b), rtol=1e-7, atol=1e-10)


def test_beta_binomial_by_exact_fractions() -> None:
    """Probabilities of 1e-30 keep their digits: the sum over orders of 60 scores is a whole number."""
    n, a, b = 40, 3, 18
    exact = [Fraction(comb(k + a - 1, k) * comb(n - k + b - 1, n - k), comb(n + a + b - 1, n)) for k in range(n + 1)]
    assert sum(exact) == 1
    chances = beta_binomial(n, a, b)
    for k in range(-1, n + 1):
        assert chances[k + 1 :].sum() == pytest.approx(float(sum(exact[k + 1 :])), rel=1e-12, abs=0)
        assert chances[: k + 1].sum() == pytest.approx(float(sum(exact[: k + 1])), rel=1e-12, abs=0)


def test_no_trials() -> None:
    assert beta_binomial(0, 2, 3).tolist() == [1.0]


def test_pareto_excess() -> None:
    rng = np.random.default_rng(0)
    share, scale = np.concatenate([rng.random(1000), [0.0, 1e-300, 1.0]]), 3.7
    for shape in (-0.5, -0.1, -1e-9, -1e-18, 0.0, 1e-18, 1e-9, 0.2, 0.5):
        found = pareto_excess(share, np.array(shape), np.array(scale))
        assert_allclose(found, -scale * special.boxcox(share, -shape), rtol=1e-15, atol=0)
    shapes = np.array([-0.5, 0.0, 0.5])
    assert_allclose(pareto_excess(np.full(3, 0.01), shapes, np.ones(3)), [1.8, np.log(100), 18])
