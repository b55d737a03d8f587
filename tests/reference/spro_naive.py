"""sPRO with loops, from its definition: each defect by itself, at every threshold. Slow on purpose."""

from itertools import pairwise

import numpy as np


def spro(maps: list[np.ndarray], defects: list[list[tuple[np.ndarray, float]]], fpr_limit: float) -> float:
    """Returns the area under (FPR, mean saturated overlap of the defects) up to the limit, divided by the limit.

    Args:
        maps: Scores of each image, `[H, W]`.
        defects: Per image, mask `[H, W]` and saturation in pixels of each defect.
        fpr_limit: Limit in (0, 1].
    """
    normal = []
    for scores, of_image in zip(maps, defects, strict=True):
        for pixel in np.ndindex(scores.shape):
            if not any(mask[pixel] for mask, _ in of_image):
                normal.append(scores[pixel])
    curve = [(0.0, 0.0)]
    for threshold in sorted({score for scores in maps for score in scores.ravel().tolist()}, reverse=True):
        overlaps = []
        for scores, of_image in zip(maps, defects, strict=True):
            for mask, saturation in of_image:
                found = sum(1 for pixel in np.ndindex(scores.shape) if mask[pixel] and scores[pixel] >= threshold)
                overlaps.append(min(found / saturation, 1.0))
        rate = sum(1 for score in normal if score >= threshold) / len(normal)
        curve.append((rate, sum(overlaps) / len(overlaps)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x1 > fpr_limit:
            if x0 < fpr_limit:
                y1 = y0 + (y1 - y0) * (fpr_limit - x0) / (x1 - x0)
            x0, x1 = min(x0, fpr_limit), fpr_limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / fpr_limit
