"""The metrics with loops, from their definitions. Slow on purpose. Every distinct score is a threshold."""

import math
import struct
from itertools import pairwise

import numpy as np


def score_key(score: float) -> int:
    """Returns the float32 pattern as a signed number: magnitude bits, negated for a negative score."""
    pattern = struct.unpack("<I", struct.pack("<f", score))[0]
    magnitude = pattern & 0x7FFFFFFF
    return -magnitude if pattern >> 31 else magnitude


def region_list(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """Returns the pixels of each 8-connected region, by flood fill."""
    height, width = mask.shape
    seen, regions = set(), []
    for start in np.ndindex(height, width):
        if not mask[start] or start in seen:
            continue
        seen.add(start)
        region, waiting = [], [start]
        while waiting:
            row, column = waiting.pop()
            region.append((row, column))
            for i in range(max(row - 1, 0), min(row + 2, height)):
                for j in range(max(column - 1, 0), min(column + 2, width)):
                    if mask[i, j] and (i, j) not in seen:
                        seen.add((i, j))
                        waiting.append((i, j))
        regions.append(region)
    return regions


def auroc(scores: list[float], labels: list[int]) -> float:
    """Returns the share of (normal, anomalous) pairs in the right order; ties count one half."""
    total, right = 0, 0.0
    for a, la in zip(scores, labels, strict=True):
        for b, lb in zip(scores, labels, strict=True):
            if la == 1 and lb == 0:
                total += 1
                right += 1.0 if a > b else 0.5 if a == b else 0.0
    return right / total


def _rates(scores: list[float], labels: list[int]) -> list[tuple[float, int, int]]:
    """Returns (threshold, false positives, true positives) from the highest threshold down."""
    rows = []
    for threshold in sorted(set(scores), reverse=True):
        fp = sum(1 for s, label in zip(scores, labels, strict=True) if s >= threshold and label == 0)
        tp = sum(1 for s, label in zip(scores, labels, strict=True) if s >= threshold and label == 1)
        rows.append((threshold, fp, tp))
    return rows


def average_precision(scores: list[float], labels: list[int]) -> float:
    """Returns sum over thresholds of (recall step) x precision."""
    result, before = 0.0, 0
    for _, fp, tp in _rates(scores, labels):
        result += (tp - before) / sum(labels) * tp / (tp + fp)
        before = tp
    return result


def f1_max(scores: list[float], labels: list[int]) -> float:
    """Returns the best harmonic mean of precision and recall."""
    best = 0.0
    for _, fp, tp in _rates(scores, labels):
        if tp:
            precision, recall = tp / (tp + fp), tp / sum(labels)
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


def pro(maps: np.ndarray, masks: np.ndarray, fpr_limit: float) -> float:
    """Returns the area under (FPR, mean overlap of the regions) up to the limit, divided by the limit."""
    regions = [[m[p] for p in region] for m, mask in zip(maps, masks, strict=True) for region in region_list(mask)]
    normal = [m[p] for m, mask in zip(maps, masks, strict=True) for p in np.ndindex(*mask.shape) if not mask[p]]
    area, x0, y0 = 0.0, 0.0, 0.0
    for threshold in sorted({float(s) for s in maps.ravel()}, reverse=True):
        x1 = sum(1 for s in normal if s >= threshold) / len(normal)
        y1 = sum(sum(1 for s in region if s >= threshold) / len(region) for region in regions) / len(regions)
        if x1 > fpr_limit:
            y_limit = y0 + (y1 - y0) * (fpr_limit - x0) / (x1 - x0)
            return (area + (fpr_limit - x0) * (y0 + y_limit) / 2) / fpr_limit
        area += (x1 - x0) * (y0 + y1) / 2
        x0, y0 = x1, y1
    return area / fpr_limit


def aupimo(maps: list[np.ndarray], masks: list[np.ndarray], low: float = 1e-5, high: float = 1e-4) -> dict[int, float]:
    """Returns the recall of each anomalous image, averaged over the logarithm of the shared false-positive rate.

    Every score of a normal image is a threshold, from the highest down; recall just above it and at it count one half.
    """
    normal = [m for m, mask in zip(maps, masks, strict=True) if not mask.any()]
    result = {i: 0.0 for i, mask in enumerate(masks) if mask.any()}
    before = low
    for threshold in sorted({float(s) for m in normal for s in m.ravel()}, reverse=True):
        rate = sum(float((m >= threshold).mean()) for m in normal) / len(normal)
        rate = min(max(rate, low), high)
        for i in result:
            inside = maps[i][masks[i] > 0]
            recall = ((inside > threshold).mean() + (inside >= threshold).mean()) / 2
            result[i] += float(recall) * math.log(rate / before) / math.log(high / low)
        before = rate
        if rate == high:
            break
    return result


def pro_200_thresholds(maps: np.ndarray, masks: np.ndarray, normalisation: str, fpr_limit: float = 0.3) -> float:
    """Returns the area under the kept points of 200 equidistant thresholds (`score > threshold`), FPR rescaled."""
    low, high = maps.min(), maps.max()
    points = []
    for threshold in np.arange(low, high, (high - low) / np.float32(200), dtype=np.float32):
        overlaps, fp, normal = [], 0, 0
        for m, mask in zip(maps, masks, strict=True):
            overlaps += [sum(1 for p in r if m[p] > threshold) / len(r) for r in region_list(mask)]
            fp += sum(1 for p in np.ndindex(*mask.shape) if not mask[p] and m[p] > threshold)
            normal += sum(1 for p in np.ndindex(*mask.shape) if not mask[p])
        if fp / normal < fpr_limit:
            points.append((fp / normal, sum(overlaps) / len(overlaps)))
    start = min(x for x, _ in points) if normalisation == "min_max" else 0.0
    span = max(x for x, _ in points) - start
    points = [((x - start) / span, y) for x, y in reversed(points)]
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))


def pro_mvtec(maps: np.ndarray, masks: np.ndarray, fpr_limit: float) -> float:
    """Returns the area by MVTec's procedure: 100 normal scores by rank as thresholds, strictly above, and (1, 1)."""
    regions = [[m[p] for p in region] for m, mask in zip(maps, masks, strict=True) for region in region_list(mask)]
    normal = sorted(m[p] for m, mask in zip(maps, masks, strict=True) for p in np.ndindex(*mask.shape) if not mask[p])
    points = [(1.0, 1.0)]
    for i in range(100):
        rank = int(i * (len(normal) - 1) / 99)
        overlaps = [sum(1 for s in region if s > normal[rank]) / len(region) for region in regions]
        points.append((1 - (rank + 1) / len(normal), sum(overlaps) / len(overlaps)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(reversed(points)):
        if x0 < fpr_limit < x1:
            x1, y1 = fpr_limit, y0 + (y1 - y0) * (fpr_limit - x0) / (x1 - x0)
        if x1 <= fpr_limit:
            area += (x1 - x0) * (y0 + y1) / 2
    return area / fpr_limit
