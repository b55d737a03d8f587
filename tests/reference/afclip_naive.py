"""AF-CLIP's equations as plain loops in float64, written from the paper and the facts of the official code."""

import math

import numpy as np


def aggregate(patches: np.ndarray, grid: tuple[int, int], window: int, sigma: float) -> np.ndarray:
    """Eq. (5): patches `[N, C]`; zero padding, weights normalised over the full window."""
    h, w = grid
    reach = window // 2
    out = np.zeros_like(patches)
    total = sum(
        math.exp(-(dy * dy + dx * dx) / (2 * sigma**2))
        for dy in range(-reach, reach + 1)
        for dx in range(-reach, reach + 1)
    )
    for y in range(h):
        for x in range(w):
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    if 0 <= y + dy < h and 0 <= x + dx < w:
                        weight = math.exp(-(dy * dy + dx * dx) / (2 * sigma**2)) / total
                        out[y * w + x] += weight * patches[(y + dy) * w + x + dx]
    return out


def attention(tokens: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    """Eq. (3) and (4): tokens `[T, C]`, weights `[heads * d, C]`; returns the heads' outputs `[T, heads * d]`."""
    count, width = len(tokens), len(q) // heads
    out = np.zeros((count, len(q)))
    for head in range(heads):
        rows = slice(head * width, (head + 1) * width)
        for i in range(count):
            scores = [float(q[rows] @ tokens[i] @ (k[rows] @ tokens[j])) / math.sqrt(width) for j in range(count)]
            weights = [math.exp(score - max(scores)) for score in scores]
            for j in range(count):
                out[i, rows] += weights[j] / sum(weights) * (v[rows] @ tokens[j])
    return out


def focal(probability: list[float], target: list[float], gamma: float) -> float:
    """Eq. (11), mean over the elements."""
    total = 0.0
    for p, t in zip(probability, target, strict=True):
        log_p = max(math.log(p), -100) if p > 0 else -100.0
        log_q = max(math.log(1 - p), -100) if p < 1 else -100.0
        correct = p * t + (1 - p) * (1 - t)
        total += -(t * log_p + (1 - t) * log_q) * (1 - correct) ** gamma
    return total / len(probability)


def alignment(tokens: np.ndarray, target: np.ndarray) -> float:
    """Eq. (14): tokens `[B, N, D]`, target `[B, N]`; all pairs of an image, the means over the batch."""
    cross, alike = [], []
    for image, labels in zip(tokens, target, strict=True):
        for i in range(len(labels)):
            for j in range(len(labels)):
                if {labels[i], labels[j]} <= {0.0, 1.0}:
                    (alike if labels[i] == labels[j] else cross).append(float(image[i] @ image[j]))
    if not cross:
        return 0.0
    return max(0.0, sum(cross) / len(cross) - sum(alike) / len(alike))


def targets(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Bilinear reduction of a mask `[H, W]` by an even factor: the mean of the four central pixels of each cell."""
    h, w = grid
    fy, fx = mask.shape[0] // h, mask.shape[1] // w
    out = np.zeros(grid)
    for y in range(h):
        for x in range(w):
            top, left = y * fy + fy // 2 - 1, x * fx + fx // 2 - 1
            mean = mask[top : top + 2, left : left + 2].mean()
            out[y, x] = mean if mean == 0.5 else float(mean > 0.5)
    return out


def nearest_distance(query: np.ndarray, bank: np.ndarray) -> list[float]:
    """Eq. (17): half the cosine distance of each query `[N, C]` to the nearest row of the bank."""
    result = []
    for a in query:
        best = min(1 - float(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b)) for b in bank)
        result.append(best / 2)
    return result
