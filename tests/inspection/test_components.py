"""Connected components: equal to OpenCV's with scipy's maxima, on drawn, noisy and difficult masks."""

import time

import cv2
import numpy as np
import pytest
from scipy import ndimage

from afclip_runtime.inspection.components import find_components

Row = tuple[float, ...]


def found(mask: np.ndarray, anomaly_map: np.ndarray) -> list[Row]:
    return list(map(tuple, np.column_stack(find_components(mask, anomaly_map)).tolist()))


def wanted(mask: np.ndarray, anomaly_map: np.ndarray) -> list[Row]:
    count, labels, facts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    highest = ndimage.maximum(anomaly_map, labels, np.arange(1, count)) if count > 1 else []
    return [
        (x, y, x + width, y + height, area, score)
        for (x, y, width, height, area), score in zip(facts[1:].tolist(), highest, strict=True)
    ]


def drawn(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)


def fractal(side: int, seed: int) -> np.ndarray:
    octaves = (
        cv2.resize(drawn(2**i, 2**i, seed + i), (side, side), interpolation=cv2.INTER_CUBIC) for i in range(2, 8)
    )
    return np.sum([octave * 0.6**i for i, octave in enumerate(octaves)], axis=0, dtype=np.float32)


def spiral(side: int) -> np.ndarray:
    """Returns one line of 1 pixel that winds inwards, with gaps of 1 pixel."""
    mask = np.zeros((side, side), np.bool_)
    y, x, dy, dx = 0, -1, 0, 1
    steps = [side, *(n for n in range(side - 1, 0, -2) for _ in range(2))]
    for n in steps:
        for _ in range(n):
            y, x = y + dy, x + dx
            mask[y, x] = True
        dy, dx = dx, -dy
    return mask


def zigzag(side: int) -> np.ndarray:
    mask = np.zeros((side, side), np.bool_)
    mask[:, ::2] = True
    mask[0, 1::4] = mask[-1, 3::4] = True
    return mask


def hard() -> dict[str, np.ndarray]:
    row, column = np.indices((96, 96))
    comb = column % 2 == 0
    return {
        "empty": row < 0,
        "full": row >= 0,
        "checkerboard": (row + column) % 2 == 0,
        "diagonals": (row + column) % 4 == 0,
        "rows": row % 2 == 0,
        "columns": comb,
        "dots": comb & (row % 2 == 0),
        "comb from above": comb | (row == 0),
        "comb from below": comb | (row == 95),
        "spiral": spiral(97),
        "zigzag": zigzag(97),
        "last pixel": (row == 95) & (column == 95),
        "border": (row % 95 == 0) | (column % 95 == 0),
    }


@pytest.mark.parametrize("name", hard())
@pytest.mark.parametrize("turns", [0, 1])
def test_masks_that_are_hard(name: str, turns: int) -> None:
    mask = np.rot90(hard()[name], turns)
    anomaly_map = drawn(*mask.shape, 0)
    assert sorted(found(mask, anomaly_map)) == sorted(wanted(mask, anomaly_map))


@pytest.mark.parametrize("share", [0.01, 0.2, 0.4, 0.6, 0.95])
def test_noise_of_all_shapes(share: float) -> None:
    for seed, shape in enumerate([(1, 1), (1, 40), (40, 1), (2, 2), (3, 50), (31, 33), (64, 64), (7, 300)] * 20):
        anomaly_map = drawn(*shape, seed)
        mask = np.random.default_rng(seed).random(shape) < share
        assert sorted(found(mask, anomaly_map)) == sorted(wanted(mask, anomaly_map))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6])
def test_maps_of_fractal_noise(seed: int, share: float) -> None:
    anomaly_map = fractal(512, 10 * seed)
    mask = anomaly_map > np.quantile(anomaly_map, 1 - share)
    assert sorted(found(mask, anomaly_map)) == sorted(wanted(mask, anomaly_map))


def test_components_come_in_the_order_of_their_first_pixels() -> None:
    mask = np.zeros((6, 9), np.bool_)
    mask[3:5, 0:2] = mask[1, 6:8] = mask[2:6, 8] = mask[1, 1] = mask[5, 4] = True
    boxes, areas, highest = find_components(mask, np.arange(54, dtype=np.float32).reshape(6, 9))
    assert boxes.tolist() == [[1, 1, 2, 2], [6, 1, 9, 6], [0, 3, 2, 5], [4, 5, 5, 6]]
    assert areas.tolist() == [1, 6, 4, 1]
    assert highest.tolist() == [10, 53, 37, 49]
    assert highest.dtype == np.float32


HARD_TO_JOIN = {
    "checkerboard": lambda side: np.indices((side, side)).sum(0) % 2 == 0,
    "spiral": spiral,
    "zigzag": zigzag,
    "noise": lambda side: drawn(side, side, 0) > 0.25,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HARD_TO_JOIN)
def test_time_grows_with_the_mask_and_not_with_its_square(name: str) -> None:
    """16 times the pixels may take 100 times as long, because caches are small; quadratic time would be 256 times."""
    taken = []
    for side in (513, 2049):
        mask, anomaly_map = HARD_TO_JOIN[name](side), drawn(side, side, 1)
        times = []
        for _ in range(2):
            start = time.process_time()
            find_components(mask, anomaly_map)
            times.append(time.process_time() - start)
        taken.append(min(times))
    assert taken[1] < 100 * taken[0]
