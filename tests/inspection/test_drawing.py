"""Overlays: the colours, blends and lines of OpenCV, up to the bounds stated here."""

import cv2
import numpy as np
import pytest

from afclip_runtime.inspection.drawing import COLD, HEAT, TURBO, blend, outline


def smooth(height: int, width: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).normal(size=(7, 9)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def lines_of_opencv(mask: np.ndarray, thickness: int) -> np.ndarray:
    drawn = np.zeros(mask.shape, np.uint8)
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(drawn, contours, -1, 1, thickness)
    return drawn > 0


def test_the_colours_are_turbo() -> None:
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    assert cv2.applyColorMap(ramp, cv2.COLORMAP_TURBO)[:, 0, ::-1].tobytes() == TURBO


def test_blends_are_those_of_opencv_within_one_step() -> None:
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    heat = smooth(200, 300, 0)
    heat = (heat - heat.min()) / np.ptp(heat)
    colours = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    share = HEAT * np.clip((heat - COLD) / (1 - COLD), 0, 1)
    wanted = cv2.blendLinear(np.ascontiguousarray(colours), image, share, 1 - share)
    found = blend(image, heat)
    assert np.abs(found.astype(int) - wanted).max() <= 1
    assert np.array_equal(found[heat < COLD], image[heat < COLD])
    found[:] = 0  # it can be drawn on


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.03, 0.3, 0.8])
def test_thin_lines_are_the_contours_of_opencv(seed: int, share: float) -> None:
    values = smooth(240, 320, seed)
    mask = values > np.quantile(values, 1 - share)
    assert np.array_equal(outline(mask, 1), lines_of_opencv(mask, 1))


@pytest.mark.parametrize("thickness", range(2, 12))
def test_thick_lines_are_as_thick_as_they_say_and_within_those_of_opencv(thickness: int) -> None:
    across = np.zeros((60, 400), np.bool_)
    across[30:, :] = True
    assert outline(across, thickness)[:50, 200].sum() == thickness + (thickness % 2 == 0)
    for seed in range(4):
        mask = smooth(240, 320, seed) > 0.5
        lines, theirs = outline(mask, thickness), lines_of_opencv(mask, thickness)
        assert not (lines & ~theirs).any()
        assert lines.sum() > 0.7 * theirs.sum()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (3, 40), (40, 3), (5, 5)])
@pytest.mark.parametrize("thickness", [1, 2, 3, 10])
def test_small_masks(shape: tuple[int, int], thickness: int) -> None:
    assert not outline(np.zeros(shape, np.bool_), thickness).any()
    full = np.ones(shape, np.bool_)
    assert outline(full, thickness)[lines_of_opencv(full, 1)].all()


def test_holes_have_lines_too() -> None:
    mask = np.ones((9, 9), np.bool_)
    mask[4, 4] = False
    lines = outline(mask, 1)
    assert lines[3, 4]
    assert lines[4, 3]
    assert not lines[4, 4]
    assert not lines[2, 4]
    assert lines[0].all()
