"""MRAD's retrieval with loops, float64."""

import math
from collections.abc import Sequence

import numpy as np


def quantile(values: Sequence[float], share: float) -> float:
    """Returns a quantile, linearly interpolated between the two values that it lies between."""
    ordered, place = sorted(values), share * (len(values) - 1)
    low = math.floor(place + 1e-9)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def retrieve(
    query: np.ndarray, keys: np.ndarray, labels: Sequence[int], hidden: Sequence[int] = (), count: int | None = None
) -> float:
    """Returns the mean label of the keys, weighted by a softmax of a query's similarities `[D]` to keys `[K, D]`.

    Args:
        query: `[D]`.
        keys: `[K, D]`.
        labels: 0 or 1, of each key.
        hidden: Keys that the query does not see.
        count: How many keys it sees, those most like it; all by default.
    """
    seen = [
        (float(query @ key), label) for i, (key, label) in enumerate(zip(keys, labels, strict=True)) if i not in hidden
    ]
    seen = sorted(seen, reverse=True)[:count]
    weights = [math.exp(similarity) for similarity, _ in seen]
    return sum(weight * label for weight, (_, label) in zip(weights, seen, strict=True)) / sum(weights)


def hidden_keys(query: np.ndarray, keys: np.ndarray, share: float) -> list[int]:
    """Returns the keys whose similarity to a query is above the quantile `1 - share`."""
    similarity = [float(query @ key) for key in keys]
    limit = quantile(similarity, 1 - share)
    return [i for i, value in enumerate(similarity) if value > limit]


def region_mean(patches: np.ndarray, cells: np.ndarray, wanted: float) -> np.ndarray:
    """Returns the mean, at unit length, of the patches `[N, C]` whose cell has a wanted value."""
    chosen = [patch for patch, cell in zip(patches, cells.reshape(-1), strict=True) if cell == wanted]
    mean = sum(chosen[1:], chosen[0]) / len(chosen)
    return np.asarray(mean / math.sqrt(sum(float(x) ** 2 for x in mean)))
