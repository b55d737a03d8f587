"""Patch logits of one image as plain loops in float64."""

import math

import numpy as np


def _normalised(token: np.ndarray) -> np.ndarray:
    mean = sum(float(v) for v in token) / len(token)
    variance = sum((float(v) - mean) ** 2 for v in token) / len(token)
    return np.array([(float(v) - mean) / math.sqrt(variance + 1e-5) for v in token])


def logits(
    tokens: list[np.ndarray],
    own: np.ndarray,
    deviation: np.ndarray,
    bias: float,
) -> list[float]:
    """Returns the logit of each patch.

    Args:
        tokens: `[1 + N, C]` per layer, the class token first.
        own: `[L, C]`, weights of the normalised tokens.
        deviation: `[L, C]`, of what sets them apart from the image's mean.
        bias: Bias of all patches.
    """
    total = np.full(len(tokens[0]) - 1, bias)
    for layer, first, second in zip(tokens, own, deviation, strict=True):
        patches = [_normalised(token) for token in layer[1:]]
        mean = np.mean(patches, axis=0)
        for n, patch in enumerate(patches):
            total[n] += float(patch @ first) + float((patch - mean) @ second)
    return [float(value) for value in total]
