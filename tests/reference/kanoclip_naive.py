"""KAnoCLIP's equations as plain loops in float64, written from the paper and from our reconstruction."""

import math

import numpy as np

from tests.reference import faprompt_naive

Parameters = dict[str, np.ndarray]


def knowledge_mean(llm: np.ndarray, vqa: np.ndarray) -> np.ndarray:
    """Eq. (3): embeddings `[N, D]` of a category's sentences and `[M, D]` of an image's, M may be 0."""
    total = np.zeros(llm.shape[1])
    for embedding in (*llm, *vqa):
        total += embedding
    return total / (len(llm) + len(vqa))


def knowledge_loss(knowledge: np.ndarray, normal: np.ndarray, abnormal: np.ndarray, margin: float) -> float:
    """Eq. (2), for one image."""

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        a, b = a / math.sqrt(sum(a * a)), b / math.sqrt(sum(b * b))
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))

    return max(0.0, distance(knowledge, abnormal) - distance(knowledge, normal) + margin)


def linear(tokens: np.ndarray, p: Parameters, name: str) -> np.ndarray:
    """Tokens `[T, I]` to `[T, O]`, with a bias if there is one."""
    return np.stack([p[f"{name}.weight"] @ token + p.get(f"{name}.bias", 0) for token in tokens])


def norm(tokens: np.ndarray, p: Parameters, name: str) -> np.ndarray:
    """Layer normalisation of tokens `[T, C]`."""
    rows = [(token - token.mean()) / math.sqrt(token.var() + 1e-5) for token in tokens]
    return np.stack([row * p[f"{name}.weight"] + p[f"{name}.bias"] for row in rows])


def attention(tokens: np.ndarray, context: np.ndarray, p: Parameters, name: str, heads: int) -> np.ndarray:
    """Eq. (4) with heads: tokens `[T, W]` attend to a context `[S, W]`."""
    q, k, v = linear(tokens, p, f"{name}.to_q"), linear(context, p, f"{name}.to_k"), linear(context, p, f"{name}.to_v")
    size = q.shape[1] // heads
    mixed = np.zeros_like(q)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(q)):
            weights = [math.exp(float(q[i, part] @ k[j, part]) / math.sqrt(size)) for j in range(len(k))]
            for j in range(len(k)):
                mixed[i, part] += weights[j] / sum(weights) * v[j, part]
    return linear(mixed, p, f"{name}.to_out")


def at(plane: np.ndarray, x: float, y: float) -> np.ndarray:
    """Value at column x and row y of a plane `[h, w, C]`, bilinear; outside, the nearest value."""
    x, y = min(max(x, 0), plane.shape[1] - 1), min(max(y, 0), plane.shape[0] - 1)
    left, top = int(x), int(y)
    total = np.zeros(plane.shape[2])
    for row in (top, top + 1):
        for column in (left, left + 1):
            weight = (1 - abs(x - column)) * (1 - abs(y - row))
            if weight > 0:
                total += weight * plane[row, column]
    return total


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def points(queries: np.ndarray, p: Parameters, name: str, groups: int, stride: int) -> list[list[tuple[float, float]]]:
    """Column and row of each point of each group, of queries `[h, w, W]`."""
    h, w, width = queries.shape
    kernel = p[f"{name}.around.weight"]  # [W / G, 1, side, side]
    half, channels = kernel.shape[2] // 2, width // groups
    found = []
    for group in range(groups):
        places = []
        for row in range(0, h, stride):
            for column in range(0, w, stride):
                hidden = p[f"{name}.around.bias"].copy()
                for c in range(channels):
                    for dy in range(-half, half + 1):
                        for dx in range(-half, half + 1):
                            if 0 <= row + dy < h and 0 <= column + dx < w:
                                value = queries[row + dy, column + dx, group * channels + c]
                                hidden[c] += kernel[c, 0, dy + half, dx + half] * value
                hidden = np.array([gelu(x) for x in norm(hidden[None], p, f"{name}.norm")[0]])
                offset = p[f"{name}.to_offset.weight"] @ hidden
                places.append((column + stride * math.tanh(offset[0]), row + stride * math.tanh(offset[1])))
        found.append(places)
    return found


def deformable(
    tokens: np.ndarray, grid: tuple[int, int], p: Parameters, name: str, heads: int, groups: int, stride: int
) -> np.ndarray:
    """Self-attention of patches `[N, W]` over points that depend on them."""
    queries = linear(tokens, p, f"{name}.attention.to_q").reshape(*grid, -1)
    plane = tokens.reshape(*grid, -1)
    channels = plane.shape[2] // groups
    parts = []
    for group, places in enumerate(points(queries, p, name, groups, stride)):
        part = plane[:, :, group * channels : (group + 1) * channels]
        parts.append(np.stack([at(part, x, y) for x, y in places]))
    return attention(tokens, np.concatenate(parts, axis=1), p, f"{name}.attention", heads)


def bi_cross_attention(
    patches: np.ndarray, text: np.ndarray, grid: tuple[int, int], p: Parameters, heads: int, groups: int, stride: int
) -> tuple[np.ndarray, np.ndarray]:
    """BiCA of Eq. (9), for one image: patches `[N, D]` and text `[2, D]`."""
    image = linear(norm(patches, p, "patches_in.0"), p, "patches_in.1")
    words = linear(norm(text, p, "text_in.0"), p, "text_in.1")
    normed = norm(words, p, "text_norms.0")
    words = words + attention(normed, normed, p, "text_self", heads)
    normed = norm(image, p, "patches_norms.0")
    image = image + deformable(normed, grid, p, "patches_self", heads, groups, stride)
    seen, said = norm(image, p, "patches_norms.1"), norm(words, p, "text_norms.1")
    image = image + attention(seen, said, p, "text_to_patches", heads)
    seen, said = norm(image, p, "patches_norms.2"), norm(words, p, "text_norms.2")
    words = words + attention(said, seen, p, "patches_to_text", heads)
    return patches + linear(image, p, "patches_out"), text + linear(words, p, "text_out")


def conv_adapter(
    image: np.ndarray, patches: np.ndarray, grid: tuple[int, int], p: Parameters, residual: bool
) -> np.ndarray:
    """Eq. (11), for one image: embedding `[D]`, patches `[N, D]`; with the figure's convolution if it has weights."""
    hidden = linear(norm(image[None], p, "norm"), p, "down")[0]
    if "depthwise.weight" in p:
        plane = linear(norm(patches, p, "norm"), p, "down").reshape(*grid, -1)
        kernel = p["depthwise.weight"]
        for row in range(grid[0]):
            for column in range(grid[1]):
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        if 0 <= row + dy < grid[0] and 0 <= column + dx < grid[1]:
                            weight = kernel[:, 0, dy + 1, dx + 1]
                            hidden = hidden + weight * plane[row + dy, column + dx] / (grid[0] * grid[1])
    adapted = p["up.weight"] @ np.array([max(0.0, x) for x in hidden])
    return image + adapted if residual else adapted


def upsampled(plane: np.ndarray, size: int) -> np.ndarray:
    """A plane `[h, w, C]` at `[size, size, C]`: bilinear, the centre of each patch keeps its place."""
    h, w = plane.shape[:2]
    out = np.zeros((size, size, plane.shape[2]))
    for row in range(size):
        for column in range(size):
            out[row, column] = at(plane, (column + 0.5) * w / size - 0.5, (row + 0.5) * h / size - 0.5)
    return out


def two_maps(
    stages: list[tuple[np.ndarray, np.ndarray]], grid: tuple[int, int], size: int, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Eq. (9): normal and abnormal map from the outputs of BiCA, patches `[N, D]` and text `[2, D]` per stage."""
    maps = np.zeros((2, size, size))
    for patches, text in stages:
        logits = np.zeros((len(patches), 2))
        for i, patch in enumerate(patches):
            for state in (0, 1):
                length = math.sqrt(sum(patch**2) * sum(text[state] ** 2))
                logits[i, state] = sum(patch * text[state]) / length / temperature
        plane = upsampled(logits.reshape(*grid, 2), size)
        for row in range(size):
            for column in range(size):
                exponents = [math.exp(x) for x in plane[row, column]]
                for state in (0, 1):
                    maps[state, row, column] += exponents[state] / sum(exponents) / len(stages)
    return maps[0], maps[1]


def smoothed(plane: np.ndarray, sigma: float) -> np.ndarray:
    """A plane `[h, w]` after a Gaussian, cut at 4 sigma, mirrored at its borders."""
    radius = int(4 * sigma + 0.5)
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(-radius, radius + 1)]

    def along(line: np.ndarray) -> np.ndarray:
        mirrored = [*line, *line[::-1]]
        return np.array(
            [
                sum(weights[j + radius] * mirrored[(i + j) % len(mirrored)] for j in range(-radius, radius + 1))
                / sum(weights)
                for i in range(len(line))
            ]
        )

    return np.stack([along(column) for column in np.stack([along(row) for row in plane]).T]).T


def final_map(normal: np.ndarray, abnormal: np.ndarray, sigma: float) -> np.ndarray:
    """Eq. (10)."""
    return smoothed(abnormal + 1 - normal, sigma) / 2


def global_score(image: np.ndarray, text: np.ndarray, anomaly_map: np.ndarray, temperature: float) -> float:
    """Eq. (12), halved: adapted embedding `[D]`, text `[2, D]`, map `[H, W]`."""
    return (faprompt_naive.probability(image, text[0], text[1], temperature) + max(anomaly_map.flatten())) / 2


def global_loss(scores: list[float], labels: list[int]) -> float:
    """Eq. (14)."""
    return -sum(math.log(s if label else 1 - s) for s, label in zip(scores, labels, strict=True)) / len(scores)


def local_loss(normal: np.ndarray, abnormal: np.ndarray, masks: np.ndarray) -> float:
    """Eq. (15): maps and masks `[B, H, W]`."""
    focal = faprompt_naive.focal(abnormal.flatten().tolist(), masks.flatten().tolist())
    return focal + faprompt_naive.dice(normal, 1 - masks) + faprompt_naive.dice(abnormal, masks)
