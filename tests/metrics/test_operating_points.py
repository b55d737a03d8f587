"""Rates at a fixed threshold, against counting scores one by one."""

import numpy as np
import pytest
import torch

from afclip_lightning.metrics import f1_max
from afclip_lightning.metrics.histogram import ScoreHistogram, exact_counts
from afclip_lightning.metrics.operating_points import operating_point
from afclip_runtime.thresholds import is_anomalous


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random(900, np.float32).round(2), (rng.random(300, np.float32) + 0.3).round(2).astype(np.float32)


def naive_f1(normal: np.ndarray, anomalous: np.ndarray, threshold: float) -> float:
    fp = sum(is_anomalous(float(score), threshold) for score in normal)
    tp = sum(is_anomalous(float(score), threshold) for score in anomalous)
    return 2 * tp / (2 * tp + fp + len(anomalous) - tp)


@pytest.mark.parametrize("threshold", [-1.0, 0.3, float(np.float32(0.3)), 0.55, 1.0, 2.0])
def test_equal_to_counting(threshold: float) -> None:
    normal, anomalous = drawn(0)
    counts = exact_counts(normal, anomalous)
    best, best_threshold = f1_max(counts)
    point = operating_point(counts, threshold, "mean+3sd", best)
    assert point.fpr == np.mean([is_anomalous(float(score), threshold) for score in normal])
    assert point.tpr == np.mean([is_anomalous(float(score), threshold) for score in anomalous])
    assert point.balanced_accuracy == pytest.approx((point.tpr + 1 - point.fpr) / 2)
    assert point.f1 == pytest.approx(naive_f1(normal, anomalous, threshold))
    assert point.f1_gap == pytest.approx(best - naive_f1(normal, anomalous, threshold))
    assert point.f1_error == 0
    assert operating_point(counts, best_threshold, "", best).f1_gap == pytest.approx(0)


@pytest.mark.parametrize("threshold", [0.301, 0.5553, 0.91])
def test_in_bins_it_is_within_its_error(threshold: float) -> None:
    normal, anomalous = drawn(1)
    normal, anomalous = normal + np.float32(0.001) * normal**2, anomalous + np.float32(0.002) * anomalous**3
    histogram = ScoreHistogram.empty(2**8)
    histogram.add(torch.from_numpy(normal), torch.zeros(len(normal), dtype=torch.int32))
    histogram.add(torch.from_numpy(anomalous), torch.ones(len(anomalous), dtype=torch.int32))
    point = operating_point(histogram.score_counts(), threshold, "q0.99")
    assert point.f1 is not None
    assert 0 < point.f1_error < 0.2
    assert abs(point.f1 - naive_f1(normal, anomalous, threshold)) <= point.f1_error + 1e-12
    assert point.f1_gap is None


def test_a_score_alone_in_its_bin_may_be_on_either_side() -> None:
    histogram = ScoreHistogram.empty(2**8)
    scores = torch.tensor([0.1, 0.5004, 0.9, 0.95])
    histogram.add(scores, torch.tensor([0, 0, 1, 1], dtype=torch.int32))
    counts = histogram.score_counts()
    point = operating_point(counts, 0.5003, "q0.99", binned=True)
    assert counts.lowest[1] < 0.5003 < scores[1]
    assert counts.tied.all()
    assert point.f1 is not None
    assert abs(point.f1 - 4 / 5) <= point.f1_error + 1e-12


def test_what_is_undefined_is_none() -> None:
    normal, anomalous = drawn(0)
    alone = operating_point(exact_counts(normal, anomalous[:0]), 0.5, "")
    assert alone.fpr == pytest.approx((normal > 0.5).mean())
    assert (alone.tpr, alone.balanced_accuracy, alone.f1) == (None, None, None)
    others = operating_point(exact_counts(normal[:0], anomalous), 0.5, "")
    assert others.tpr == pytest.approx((anomalous > 0.5).mean())
    assert (others.fpr, others.f1) == (None, None)
