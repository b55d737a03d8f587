"""FAPrompt's equations as plain loops in float64, written from the paper and the facts of the official code."""

import math

import numpy as np


def orthogonality(embeddings: np.ndarray) -> float:
    """Eq. (2): embeddings `[K, D]`, every pair once."""
    total = 0.0
    for i in range(len(embeddings)):
        for j in range(i + 1, len(embeddings)):
            a, b = embeddings[i], embeddings[j]
            total += abs(float(a @ b)) / (np.linalg.norm(a) * np.linalg.norm(b))
    return total


def probability(token: np.ndarray, normal: np.ndarray, abnormal: np.ndarray, temperature: float) -> float:
    """Eq. (3): of the abnormal state, for one token and one embedding per state, none L2-normalised."""
    exponents = []
    for text in (normal, abnormal):
        cosine = float(token @ text) / (np.linalg.norm(token) * np.linalg.norm(text))
        exponents.append(math.exp(cosine / temperature))
    return exponents[1] / sum(exponents)


def prior(priors: np.ndarray, labels: list[int]) -> float:
    """Eq. (5): priors `[B, width]`; nothing for anomalous images."""
    total = 0.0
    for row, label in zip(priors, labels, strict=True):
        if label == 0:
            total += sum(float(v) ** 2 for v in row) / len(row)
    return total


def focal(probabilities: list[float], target: list[int], gamma: float = 2.0, smooth: float = 1e-5) -> float:
    """Eq. (7), first term, with the official code's smoothing."""
    total = 0.0
    for p, t in zip(probabilities, target, strict=True):
        weight = 1 - smooth if t else smooth
        correct = weight * p + (1 - weight) * (1 - p) + smooth
        total -= (1 - correct) ** gamma * math.log(correct)
    return total / len(probabilities)


def dice(maps: np.ndarray, masks: np.ndarray) -> float:
    """Eq. (7), second and third term: `[B, H, W]`, one coefficient per image."""
    losses = []
    for p, g in zip(maps, masks, strict=True):
        overlap = sum(float(p[y, x]) * float(g[y, x]) for y in range(p.shape[0]) for x in range(p.shape[1]))
        losses.append(1 - (2 * overlap + 1) / (float(p.sum()) + float(g.sum()) + 1))
    return sum(losses) / len(losses)
