"""Dual-Image CLIP's equations as plain loops in float64; gradients are differences, the optimiser is written out."""

import math
from collections.abc import Callable, Sequence

Vector = Sequence[float]


def dot(a: Vector, b: Vector) -> float:
    total = 0.0
    for x, y in zip(a, b, strict=True):
        total += x * y
    return total


def cosine(a: Vector, b: Vector) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def text_score(token: Vector, normal: Vector, abnormal: Vector, temperature: float) -> float:
    """Eq. (1), (2) and (9): a token of any length."""
    a, b = cosine(token, normal) / temperature, cosine(token, abnormal) / temperature
    return 1 / (1 + math.exp(a - b))


def text_scores(tokens: Sequence[Vector], normal: Vector, abnormal: Vector, temperature: float) -> list[float]:
    """Eq. (3)."""
    return [text_score(token, normal, abnormal, temperature) for token in tokens]


def vv_attention(values: Sequence[Vector]) -> list[list[float]]:
    """Eq. (4): values `[T, d]` of one head."""
    scale = len(values[0]) ** -0.5
    out = []
    for query in values:
        weights = [math.exp(scale * dot(query, key)) for key in values]
        total = sum(weights)
        out.append([sum(w / total * v[i] for w, v in zip(weights, values, strict=True)) for i in range(len(query))])
    return out


def reference_scores(patches: Sequence[Vector], references: Sequence[Sequence[Vector]]) -> list[float]:
    """Eq. (5): the references' patches are one memory."""
    scores = []
    for patch in patches:
        nearest = -1.0
        for reference in references:
            for other in reference:
                nearest = max(nearest, cosine(patch, other))
        scores.append(1 - nearest)
    return scores


def joint_scores(text: Vector, visual: Vector, alpha: float) -> list[float]:
    """Eq. (6) and (13)."""
    return [(1 - alpha) * t + alpha * v for t, v in zip(text, visual, strict=True)]


def adapt(token: Vector, parameters: Vector, residual: float) -> list[float]:
    """Eq. (7) and (8): the rows of W one after the other, then b."""
    dim = len(token)
    length = math.sqrt(dot(token, token))
    out = []
    for row in range(dim):
        change = parameters[dim * dim + row]
        for column in range(dim):
            change += parameters[row * dim + column] * token[column] / length
        out.append(residual * token[row] + (1 - residual) * change)
    return out


def mask_loss(scores: Vector, anomalous: Sequence[bool], over: str) -> float:
    """Eq. (10), over the anomalous patches or, each kind averaged, over all."""
    inside = [-math.log(score) for score, marked in zip(scores, anomalous, strict=True) if marked]
    outside = [-math.log(1 - score) for score, marked in zip(scores, anomalous, strict=True) if not marked]
    loss = sum(inside) / len(inside)
    return loss + sum(outside) / len(outside) if over == "all" and outside else loss


def similarity_loss(adapted: Vector, joint: Vector, kind: str) -> float:
    """Eq. (11)."""
    if kind == "cosine":
        return 1 - cosine(adapted, joint)
    return sum((a - b) ** 2 for a, b in zip(adapted, joint, strict=True)) / len(joint)


def adamw(
    loss: Callable[[Vector], float], start: Vector, steps: int, learning_rate: float, weight_decay: float
) -> list[float]:
    """AdamW with torch's other defaults; gradients are central differences."""
    parameters = list(start)
    first, second = [0.0] * len(parameters), [0.0] * len(parameters)
    for step in range(1, steps + 1):
        gradient = []
        for i in range(len(parameters)):
            up, down = list(parameters), list(parameters)
            up[i] += 1e-5
            down[i] -= 1e-5
            gradient.append((loss(up) - loss(down)) / 2e-5)
        for i, g in enumerate(gradient):
            parameters[i] *= 1 - learning_rate * weight_decay
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g * g
            mean, square = first[i] / (1 - 0.9**step), second[i] / (1 - 0.999**step)
            parameters[i] -= learning_rate * mean / (math.sqrt(square) + 1e-8)
    return parameters


def image_score(class_score: float, patch_scores: Vector, beta: float) -> float:
    """Eq. (12)."""
    return (1 - beta) * class_score + beta * max(patch_scores)
