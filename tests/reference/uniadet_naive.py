"""UniADet's scores of one image as plain loops in float64."""

import math

import numpy as np


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(float(x) ** 2 for x in a)) / math.sqrt(sum(float(y) ** 2 for y in b))


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def score(
    tokens: list[np.ndarray],
    pixel_vectors: np.ndarray,
    image_vectors: np.ndarray | None,
    temperature: float,
    top: int,
) -> tuple[float, list[float]]:
    """Returns the image score and the probability of each patch.

    Args:
        tokens: `[1 + N, C]` per layer, the class token first.
        pixel_vectors: `[L, 2, C]`, normal and anomalous.
        image_vectors: The same of the class token; `None` where the patches give the score.
        temperature: Divides cosines.
        top: How many patches the score is the mean of.
    """

    def logit(token: np.ndarray, pair: np.ndarray) -> float:
        return (_cosine(token, pair[1]) - _cosine(token, pair[0])) / temperature

    count = len(tokens[0]) - 1
    logits = [
        [logit(layer[1 + n], pair) for layer, pair in zip(tokens, pixel_vectors, strict=True)] for n in range(count)
    ]
    patches = [sum(map(_sigmoid, each)) / len(each) for each in logits]
    if image_vectors is not None:
        images = [_sigmoid(logit(layer[0], pair)) for layer, pair in zip(tokens, image_vectors, strict=True)]
        return sum(images) / len(images), patches
    means = [sum(each) / len(each) for each in logits]
    return _sigmoid(sum(sorted(means)[-top:]) / top), patches
