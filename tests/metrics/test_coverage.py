"""95 % intervals contain the true value in about 95 % of sets of enough images; the experiment names exceptions."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from afclip_lightning.metrics.resampling import metrics_of

SCRIPT = Path(__file__).parents[2] / "experiments/metrics/coverage.py"
SPEC = importlib.util.spec_from_file_location("coverage_of_intervals", SCRIPT)
coverage = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = coverage  # dataclasses look their module up
SPEC.loader.exec_module(coverage)


@pytest.mark.parametrize("pixels", [False, True])
def test_the_truth_is_what_many_images_give(pixels):
    images = coverage.draw(np.random.default_rng(0), 600, 900, pixels)
    truth = coverage.true_values("image", 0.6)
    if pixels:
        share = 0.6 * coverage.REGION**2 / coverage.SIDE**2
        truth |= coverage.true_values("pixel", share, float(np.hypot(1, coverage.SHARED)))
    for key, values in metrics_of(images, np.ones((1, 1500))).items():
        assert values[0] == pytest.approx(truth[key], abs=0.03), key


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    found = coverage.coverage(40, 40, sets=300, replicates=400)["image_auroc"]
    # of 300 sets, three standard errors of a share of 95 % are 3.8 %
    for held in found.held.values():
        assert held == pytest.approx(0.95, abs=0.038)
    assert found.mean == pytest.approx(found.truth, abs=0.01)


def test_the_table_says_how_far_values_are_from_the_truth():
    share = coverage.Share(0.9, 0.912, {"bca": 0.951, "percentile": 0.9}, {"bca": 0.1, "percentile": 0.1})
    lines = coverage.table({(5, 20): {"image_auroc": share}}).splitlines()
    assert lines == [
        "| normal + anomalous | I-AUROC |",
        "|---|---:|",
        "| 5 + 20 | 95.1 (90.0) |",
        "| mean − truth | +1.2 |",
    ]
