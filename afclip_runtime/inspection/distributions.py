"""Distributions that thresholds and drift tests need, without scipy: binomial, beta-binomial, generalised Pareto."""

import numpy as np


def binomial_quantile(share: float, n: int, p: float) -> int:
    """Returns the smallest number of successes in `n` trials that a share of all outcomes does not exceed.

    Args:
        share: In (0, 1).
        n: Trials, at least 1.
        p: Chance of a success, in (0, 1).
    """
    k = np.arange(n)
    below = np.cumsum(_probabilities(np.log(n - k) - np.log(k + 1) + (np.log(p) - np.log1p(-p))))
    return min(int(np.searchsorted(below, share)), n)


def beta_binomial(n: int, a: float, b: float) -> np.ndarray:
    """Returns the chances of 0 … n successes in `n` trials whose chance of success is Beta(a, b), `[n + 1]`, float64.

    Of `n` further scores so many lie below the a-th smallest of a + b - 1 earlier ones, if all are drawn alike. Small
    chances are exact too, to about 1e-12 of their value.

    Args:
        n: Trials, at least 0.
        a: Positive.
        b: Positive.
    """
    k = np.arange(n)
    return _probabilities(np.log(n - k) - np.log(k + 1) + np.log(k + a) - np.log(n - 1 - k + b))


def pareto_excess(share: np.ndarray, shape: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Returns what a share of a generalised Pareto distribution exceeds: `scale * (share ** -shape - 1) / shape`.

    Where the shape is 0 that is its limit, `-scale * log(share)`.

    Args:
        share: In [0, 1].
        shape: Of a shape that broadcasts with it.
        scale: Likewise; positive.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log(share)
        return np.asarray(scale * np.where(shape == 0, -log, np.expm1(-shape * log) / shape))


def _probabilities(steps: np.ndarray) -> np.ndarray:
    """Returns the probabilities of 0 … n from the logarithms of each one's ratio to the one before, `[n]`.

    They are summed up outwards from the likeliest outcome, so that rounding errors are smallest where it matters most.
    """
    peak = int(np.argmax(np.concatenate([[0.0], np.cumsum(steps)])))
    down, up = -np.cumsum(steps[:peak][::-1])[::-1], np.cumsum(steps[peak:])
    chances = np.exp(np.concatenate([down, [0.0], up]))
    return np.asarray(chances / chances.sum())
