"""Nearest neighbours and patch rarity as plain loops in float64."""

import math

import numpy as np


def half_cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    lengths = math.sqrt(sum(float(x) ** 2 for x in a)) * math.sqrt(sum(float(y) ** 2 for y in b))
    return (1 - dot / lengths) / 2


def nearest(layers: list[np.ndarray], memory: list[np.ndarray]) -> list[float]:
    """Score of each patch `[N, C]` per layer, against `[M, C]` stored ones per layer."""
    scores = []
    for patch in range(len(layers[0])):
        distances = [
            min(half_cosine_distance(patches[patch], other) for other in bank)
            for patches, bank in zip(layers, memory, strict=True)
        ]
        scores.append(sum(distances) / len(distances))
    return scores


def rarity(layers: list[np.ndarray], share: float) -> list[float]:
    """Score of each patch `[N, C]` per layer: the mean distance to the nearest others, the share `share` of them."""
    count = len(layers[0])
    kept = max(1, round(share * (count - 1)))
    scores = []
    for patch in range(count):
        total = 0.0
        for patches in layers:
            distances = [half_cosine_distance(patches[patch], patches[i]) for i in range(count) if i != patch]
            total += sum(sorted(distances)[:kept]) / kept
        scores.append(total / len(layers))
    return scores
