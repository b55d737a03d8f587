"""MuSc's equations as plain loops in float64, written from the facts of the official code."""

import math

import numpy as np


def normalise(patches: np.ndarray) -> np.ndarray:
    """Patches `[N, C]` of one image, of mean 0 and variance 1 over all of them."""
    mean = sum(float(value) for value in patches.flat) / patches.size
    variance = sum((float(value) - mean) ** 2 for value in patches.flat) / patches.size
    return np.array([[(value - mean) / math.sqrt(variance + 1e-5) for value in patch] for patch in patches])


def aggregate(patches: np.ndarray, grid: tuple[int, int], scale: int) -> np.ndarray:
    """LNAMD: the mean of a window around each patch, divided by the whole window at the borders too."""
    h, w = grid
    reach = scale // 2
    out = np.zeros_like(patches)
    for y in range(h):
        for x in range(w):
            for near_y in range(max(y - reach, 0), min(y + reach + 1, h)):
                for near_x in range(max(x - reach, 0), min(x + reach + 1, w)):
                    out[y * w + x] += patches[near_y * w + near_x] / scale**2
    return out


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / math.sqrt(sum(float(value) ** 2 for value in vector))


def nearest(query: np.ndarray, reference: np.ndarray) -> list[float]:
    """Distance of each patch of `[N, C]` to the nearest of `[M, C]`."""
    return [min(math.sqrt(sum((a - b) ** 2 for a, b in zip(p, r, strict=True))) for r in reference) for p in query]


def lowest_mean(distances: list[float], interval: float) -> float:
    kept = max(1, int(interval * len(distances)))
    return sum(sorted(distances)[:kept]) / kept


def mutual_maps(
    layers: list[np.ndarray],
    grid: tuple[int, int],
    scales: tuple[int, ...],
    interval: float,
    references: list[list[int]],
) -> np.ndarray:
    """MSM: tokens `[I, 1 + N, C]` per layer, and the references of each image, to scores `[I, N]`."""
    count, patches = len(layers[0]), grid[0] * grid[1]
    total = np.zeros((count, patches))
    for tokens in layers:
        for scale in scales:
            pooled = [aggregate(normalise(image[1:]), grid, scale) for image in tokens.astype(np.float64)]
            features = [np.array([unit(patch) for patch in image]) for image in pooled]
            for i in range(count):
                rows = [nearest(features[i], features[j]) for j in references[i]]
                for p in range(patches):
                    total[i, p] += lowest_mean([row[p] for row in rows], interval)
    return total / (len(layers) * len(scales))


def constrain(scores: list[float], embeddings: np.ndarray, windows: tuple[int, ...]) -> list[float]:
    """RsCIN: scores of all images, and their L2-normalised embeddings."""
    low, high = min(scores), max(scores)
    scaled = [(score - low) / (high - low) for score in scores]
    out = []
    for image in range(len(scores)):
        cosines = [float(np.dot(embeddings[image], other)) for other in embeddings]
        averages = []
        for window in windows:
            kept = sorted(range(len(scores)), key=lambda j: -cosines[j])[:window]
            averages.append(sum(cosines[j] * scaled[j] for j in kept) / sum(cosines[j] for j in kept))
        out.append(sum(averages) / len(averages))
    return out
