"""WinCLIP's rules as plain loops in float64."""

import numpy as np


def harmonic(scores: np.ndarray, grid: tuple[int, int], size: int) -> np.ndarray:
    """Scores `[W]` of windows, row-major, to `[h, w]`: the harmonic mean of the windows over a patch."""
    h, w = grid
    across = w - size + 1
    out = np.zeros(grid)
    for y in range(h):
        for x in range(w):
            over = []
            for top in range(h - size + 1):
                for left in range(across):
                    if top <= y < top + size and left <= x < left + size:
                        over.append(float(scores[top * across + left]))
            out[y, x] = 0.0 if min(over) <= 0 else len(over) / sum(1 / score for score in over)
    return out


def patches_of(grid: tuple[int, int], size: int) -> list[list[int]]:
    """The patches of each window, both row-major."""
    h, w = grid
    return [
        [(top + dy) * w + left + dx for dy in range(size) for dx in range(size)]
        for top in range(h - size + 1)
        for left in range(w - size + 1)
    ]
