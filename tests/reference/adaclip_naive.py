"""AdaCLIP's fusion of one image's patches as plain loops in float64."""

import math

import numpy as np


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))


def _mean(points: list[np.ndarray]) -> np.ndarray:
    return np.array([sum(float(point[c]) for point in points) / len(points) for c in range(len(points[0]))])


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / math.sqrt(sum(float(x) ** 2 for x in vector))


def _nearest(point: np.ndarray, centres: list[np.ndarray]) -> int:
    distances = [_distance(point, centre) for centre in centres]
    return distances.index(min(distances))


def k_means(points: np.ndarray, clusters: int, rounds: int) -> list[int]:
    """Returns the cluster of each of `[M, C]` points: from the first point on to the farthest, then Lloyd's rounds."""
    centres = [points[0]]
    while len(centres) < clusters:
        away = [min(_distance(point, centre) for centre in centres) for point in points]
        centres.append(points[away.index(max(away))])
    for _ in range(rounds):
        labels = [_nearest(point, centres) for point in points]
        for k in range(clusters):
            members = [point for point, label in zip(points, labels, strict=True) if label == k]
            if members:
                centres[k] = _mean(members)
    return [_nearest(point, centres) for point in points]


def highest_cluster(patches: list[np.ndarray], probability: np.ndarray, clusters: int, rounds: int) -> np.ndarray:
    """Returns the centre of the cluster that is the most anomalous in the mean, `[D]`, at unit length.

    Args:
        patches: `[N, D]` per layer.
        probability: `[N]`.
        clusters: K.
        rounds: Rounds of k-means.
    """
    means = [_mean([layer[n] for layer in patches]) for n in range(len(probability))]
    labels = k_means(np.array(means), clusters, rounds)
    best, best_score = None, -1.0
    for k in range(clusters):
        of_cluster = [n for n, label in enumerate(labels) if label == k]
        if of_cluster:
            score = sum(float(probability[n]) for n in of_cluster) / len(of_cluster)
            if score > best_score:
                best, best_score = of_cluster, score
    assert best is not None
    return _unit(_mean([means[n] for n in best]))


def top_patches(patches: list[np.ndarray], probability: np.ndarray, clusters: int, rounds: int) -> np.ndarray:
    """Returns the mean of the centres of the most anomalous patches' clusters, `[D]`, at unit length."""
    order = sorted(range(len(probability)), key=lambda n: -float(probability[n]))[: 5 * clusters]
    labels = k_means(np.array([np.concatenate([layer[n] for layer in patches]) for n in order]), clusters, rounds)
    centres = []
    for k in range(clusters):
        tokens = [layer[n] for n, label in zip(order, labels, strict=True) if label == k for layer in patches]
        if tokens:
            centres.append(_mean(tokens))
    return _unit(_mean(centres))
