"""The training pictures of the real head: reproducible bytes, and pairs that differ only where the target marks it."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("skimage", reason="needs scikit-image: install the extra `real`")

from experiments.real_head import broken, pictures, train, zones
from experiments.tiny_clip import generator as scenes


def test_a_pair_is_a_function_of_its_numbers() -> None:
    one, again, other = pictures.draw(3, 5), pictures.draw(3, 5), pictures.draw(3, 6)
    assert one.source == again.source
    for name in ("normal", "anomalous", "target"):
        assert np.array_equal(getattr(one, name), getattr(again, name))
    assert not np.array_equal(one.normal, other.normal)


@pytest.mark.slow
def test_all_sources_are_drawn_and_each_anomaly_is_seen() -> None:
    pairs = [pictures.draw(1, index) for index in range(24)]
    assert set(Counter(pair.source.split("/")[0] for pair in pairs)) == set(pictures.SOURCES)
    for pair in pairs:
        assert pair.normal.shape == pair.anomalous.shape == (pictures.SIZE, pictures.SIZE, 3)
        assert pair.normal.dtype == pair.target.dtype == np.uint8
        inside = pair.target == pictures.ANOMALOUS
        assert pictures.AREA[0] <= inside.mean() <= pictures.AREA[1]
        difference = np.abs(pair.normal.astype(int) - pair.anomalous).max(2)
        assert difference[inside].mean() > 2 * difference[pair.target == 0].mean()


@pytest.mark.slow
def test_what_is_held_out_never_trains() -> None:
    drawn = {held: {pictures.draw(2, i, held).source.split("/")[1] for i in range(24)} for held in (False, True)}
    assert not drawn[False] & drawn[True]


@pytest.mark.parametrize("kind", broken.BREAKS)
def test_only_what_lies_near_a_fracture_is_called_anomalous(kind: str) -> None:
    n, rng = 120, np.random.default_rng(0)
    axis = np.arange(n) - n / 2
    coverage = (np.hypot(axis[None], axis[:, None]) < 40).astype(np.float32)
    ground = np.full((n, n, 3), 0.9, np.float32)
    image = np.where(coverage[..., None] > 0, np.float32(0.3), ground)
    changed, target = broken.BREAKS[kind](image, ground, coverage, rng)
    assert (target == broken.ANOMALOUS).any()
    assert set(np.unique(target)) <= {0, broken.ANOMALOUS, broken.UNCLEAR}
    assert np.abs(changed - image).max(2)[target == 0].mean() < 0.01
    assert (np.abs(changed - image).max(2) > 0.3).mean() > 0.003


def test_a_zone_changes_part_of_a_texture(tmp_path: Path) -> None:
    image = scenes.draw_scene("clouds", np.random.default_rng(0), 120).image
    shares = []
    for seed in range(8):
        changed = zones.zone(image, np.ones((120, 120), np.float32), np.random.default_rng(seed))
        shares.append((np.abs(changed - image).max(2) > 0.02).mean())
    assert 0.01 < np.median(shares) < 0.6


def test_patches_with_a_few_anomalous_pixels_are_left_out() -> None:
    target = torch.zeros(1, 28, 28, dtype=torch.uint8)
    target[0, :14, :14] = pictures.ANOMALOUS
    target[0, 0, 14:] = pictures.ANOMALOUS
    target[0, 14:, :14] = pictures.UNCLEAR
    assert train.patch_labels(target, (2, 2)).tolist() == [[1, -1, -1, 0]]
