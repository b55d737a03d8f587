"""Distributions for thresholds and drift tests, without scipy: binomial, beta-binomial, generalised Pareto."""

import numpy as np


def binomial_quantile(share: float, n: int, p: float) -> int:
    """Returns a quantile of the binomial distribution, as a number of successes.

    It is the smallest number whose cumulative probability is at least `share`.

    Args:
        share: Probability of the quantile, in (0, 1).
        n: Number of trials, at least 1.
        p: Probability of a success, in (0, 1).
    """
    k = np.arange(n)
    below = np.cumsum(_probabilities(np.log(n - k) - np.log(k + 1) + (np.log(p) - np.log1p(-p))))
    return min(int(np.searchsorted(below, share)), n)


def beta_binomial(n: int, a: float, b: float) -> np.ndarray:
    """Returns the beta-binomial probabilities of 0 … n successes in `n` trials, `[n + 1]`, float64.

    It is the distribution of the number of `n` new scores that are below the a-th smallest of a + b - 1 earlier scores
    of the same distribution. The relative error is about 1e-12, also for small probabilities.

    Args:
        n: Number of trials, at least 0.
        a: First parameter of the beta distribution, positive.
        b: Second parameter of the beta distribution, positive.
    """
    k = np.arange(n)
    return _probabilities(np.log(n - k) - np.log(k + 1) + np.log(k + a) - np.log(n - 1 - k + b))


def pareto_excess(share: np.ndarray, shape: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Returns the value that a share of a generalised Pareto distribution exceeds.

    It is `scale * (share ** -shape - 1) / shape`. For shape 0 this is the limit, `-scale * log(share)`.

    Args:
        share: Share above the value, in [0, 1].
        shape: Shape parameter, broadcastable with `share`.
        scale: Scale parameter, positive, broadcastable with `share`.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log(share)
        return np.asarray(scale * np.where(shape == 0, -log, np.expm1(-shape * log) / shape))


def _probabilities(steps: np.ndarray) -> np.ndarray:
    """Returns the probabilities of 0 … n from the logarithms of the ratios of consecutive probabilities, `[n]`.

    The sum starts at the most likely outcome, so that rounding errors are smallest for the largest probabilities.
    """
    peak = int(np.argmax(np.concatenate([[0.0], np.cumsum(steps)])))
    down, up = -np.cumsum(steps[:peak][::-1])[::-1], np.cumsum(steps[peak:])
    chances = np.exp(np.concatenate([down, [0.0], up]))
    return np.asarray(chances / chances.sum())
