"""Connected components of a mask, with numpy alone: box, area and highest value of each component."""

from typing import NamedTuple

import numpy as np


class Components(NamedTuple):
    """The components of a mask, in the order of their first pixels, row by row.

    Attributes:
        boxes: `[n, 4]`, int64: left, top, right and bottom in pixels. Right and bottom are exclusive.
        areas: `[n]`, int64, in pixels.
        highest: `[n]`, in the map's type: highest value of the map per component.
    """

    boxes: np.ndarray
    areas: np.ndarray
    highest: np.ndarray


def find_components(mask: np.ndarray, anomaly_map: np.ndarray) -> Components:
    """Returns the 8-connected components of a mask.

    Args:
        mask: `[H, W]`, bool.
        anomaly_map: `[H, W]`, finite.
    """
    stride = mask.shape[1] + 1
    starts, ends = _runs(mask)
    if not len(starts):
        return Components(np.zeros((0, 4), np.int64), np.zeros(0, np.int64), anomaly_map[:0, 0])
    labels = _connected(len(starts), *_touching(starts, ends, stride))
    lengths = ends - starts
    highest = np.maximum.reduceat(anomaly_map[mask], np.cumsum(lengths) - lengths)

    order = np.argsort(labels, kind="stable")  # groups the runs of a component, from top to bottom
    first = np.flatnonzero(np.diff(labels[order], prepend=-1))
    last = np.append(first[1:], len(order)) - 1
    rows, left = np.divmod(starts, stride)
    boxes = (
        np.minimum.reduceat(left[order], first),
        rows[order[first]],
        np.maximum.reduceat((left + lengths)[order], first),
        rows[order[last]] + 1,
    )
    return Components(
        np.stack(boxes, axis=1), np.add.reduceat(lengths[order], first), np.maximum.reduceat(highest[order], first)
    )


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns start and end of the runs of marked pixels in rows, as row * (width + 1) + column, `[n]` each."""
    height, width = mask.shape
    changes = np.empty((height, width + 1), np.bool_)
    changes[:, 0], changes[:, -1] = mask[:, 0], mask[:, -1]
    np.not_equal(mask[:, 1:], mask[:, :-1], out=changes[:, 1:-1])
    found = np.flatnonzero(changes)
    return found[::2], found[1::2]


def _touching(starts: np.ndarray, ends: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs of touching runs in neighbouring rows, as indices of the lower and of the upper run."""
    first = np.searchsorted(ends, starts - stride)
    counts = np.searchsorted(starts, ends - stride, side="right") - first
    lower = np.repeat(np.arange(len(starts)), counts)
    upper = np.arange(len(lower)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    return lower, upper


def _connected(count: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns per node of a graph the lowest node that is connected with it, `[count]`.

    In each round, trees are attached to other roots: either all trees with an edge to a higher root, or all trees with
    an edge to a lower root, whichever are more. These are at least half of the trees with an edge, so log2(count)
    rounds are enough.

    Args:
        count: Number of nodes.
        one: First node per edge, `[e]`.
        other: Second node per edge, `[e]`.
    """
    nodes = np.arange(count)
    roots = nodes
    while len(one):
        low, high = np.minimum(one, other), np.maximum(one, other)
        falling, rising = nodes.copy(), nodes.copy()
        falling[high], rising[low] = low, high
        parents = max(falling, rising, key=lambda hung: np.count_nonzero(hung != nodes))
        while not np.array_equal(parents, above := parents[parents]):
            parents = above
        roots, one, other = parents[roots], parents[one], parents[other]
        apart = one != other
        one, other = one[apart], other[apart]
    lowest = nodes.copy()
    lowest[roots[::-1]] = nodes[::-1]  # of several values written to one index, the last one remains
    return lowest[roots]
