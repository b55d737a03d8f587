"""Maps at another size: equal to OpenCV's, for all pairs of sizes of images and frames."""

import cv2
import numpy as np
import pytest
from numpy.testing import assert_allclose

from afclip_runtime.views.resizing import area_mean, resize_map

LARGER = [((224, 224), (448, 448)), ((37, 61), (500, 62)), ((14, 14), (1, 900)), ((3, 3), (100, 100)), ((1, 1), (5, 7))]
SMALLER = [((224, 224), (112, 56)), ((224, 224), (223, 223)), ((99, 203), (17, 101)), ((300, 500), (1, 1))]
MIXED = [
    ((224, 224), (100, 300)),
    ((224, 224), (300, 100)),
    ((40, 30), (20, 30)),
    ((40, 30), (40, 7)),
    ((7, 1), (3, 1)),
]


def drawn(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("size", "wanted"), LARGER + SMALLER + MIXED)
def test_maps_are_those_of_opencv(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    way = cv2.INTER_AREA if (size, wanted) in SMALLER else cv2.INTER_LINEAR
    found = resize_map(drawn(size), *wanted)
    assert (found.shape, found.dtype) == (wanted, np.float32)
    assert_allclose(found, cv2.resize(drawn(size), wanted[::-1], interpolation=way), rtol=0, atol=2e-6)


def test_sizes_at_random() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        size, wanted = (tuple(rng.integers(1, 80, 2).tolist()) for _ in range(2))
        shrinks = wanted[0] < size[0] and wanted[1] < size[1]
        way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        values = drawn(size)
        theirs = cv2.resize(values, wanted[::-1], interpolation=way)
        assert_allclose(
            resize_map(values, *wanted), theirs.reshape(wanted), rtol=0, atol=1e-5
        )  # its places are float32


@pytest.mark.parametrize("wanted", [(50, 90), (7, 9), (5, 70), (30, 40)])
def test_a_constant_stays_constant_and_the_range_is_kept(wanted: tuple[int, int]) -> None:
    assert_allclose(resize_map(np.full((30, 40), 0.7, np.float32), *wanted), np.float32(0.7), rtol=3e-7)
    values = drawn((30, 40))
    found = resize_map(values, *wanted)
    assert values.min() - 1e-6 <= found.min() <= found.max() <= values.max() + 1e-6


def test_the_same_size_is_the_same_map_and_not_its_memory() -> None:
    values = drawn((30, 40))
    found = resize_map(values, 30, 40)
    assert (found == values).all()
    assert not np.shares_memory(found, values)


def test_an_area_mean_keeps_the_mean() -> None:
    values = drawn((301, 503))
    assert_allclose(area_mean(values, 43, 77).mean(), values.mean(), atol=1e-6)
