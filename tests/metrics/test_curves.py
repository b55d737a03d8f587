import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from afclip_lightning.metrics import (
    Curve,
    ScoreHistogram,
    auroc,
    auroc_error_bound,
    average_precision,
    average_precision_error_bound,
    exact_counts,
    f1_max,
    f1_max_error_bound,
    precision_recall_curve,
    roc_curve,
    threshold_at_fpr,
    threshold_at_sensitivity,
)
from afclip_runtime.thresholds import is_anomalous
from tests.reference import metrics_naive as naive

# Few distinct values: ties are the hard part. Some are apart by less than a bin of 10 bits, some are huge or negative.
values = st.sampled_from([-3e38, -2.0, -1e-40, 0.0, 0.49, 0.5, 0.5000001, 0.5001, 0.501, 0.51, 1.0, 7.0, 3e38])
scored = st.lists(st.tuples(values, st.integers(0, 1)), min_size=2, max_size=25).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


def exact(scores, labels):
    scores, labels = np.asarray(scores, np.float32), np.asarray(labels)
    return exact_counts(scores[labels == 0], scores[labels == 1])


def binned(scores, labels, limit):
    scores, labels = torch.as_tensor(scores, dtype=torch.float32), torch.as_tensor(labels)
    histogram = ScoreHistogram.empty(limit)
    histogram.add(scores, labels.int())
    return histogram.score_counts()


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@given(scored)
def test_equal_to_the_loops(pairs):
    scores, labels = [float(np.float32(s)) for s, _ in pairs], [label for _, label in pairs]
    counts = exact(scores, labels)
    assert auroc(counts) == pytest.approx(naive.auroc(scores, labels), abs=1e-12)
    assert average_precision(counts) == pytest.approx(naive.average_precision(scores, labels), abs=1e-12)
    best, threshold = f1_max(counts)
    assert best == pytest.approx(naive.f1_max(scores, labels), abs=1e-12)
    assert best == pytest.approx(sklearn_metrics.f1_score(labels, np.float32(scores) > threshold), abs=1e-12)


@pytest.mark.parametrize("decimals", [1, 3, 9])
def test_equal_to_scikit_learn(decimals):
    rng = np.random.default_rng(decimals)
    labels = rng.random(5000) < 0.1
    scores = (rng.standard_normal(5000) + labels).round(decimals).astype(np.float32)
    counts = exact(scores, labels)
    precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert auroc(counts) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(counts) == pytest.approx(
        sklearn_metrics.average_precision_score(labels, scores), abs=1e-12
    )
    assert f1_max(counts)[0] == pytest.approx(f1.max(), abs=1e-12)


def assert_bounded(scores, labels, limit):
    true, coarse = exact(scores, labels), binned(scores, labels, limit)
    assert abs(auroc(coarse) - auroc(true)) <= auroc_error_bound(coarse) + 1e-12
    assert abs(average_precision(coarse) - average_precision(true)) <= average_precision_error_bound(coarse) + 1e-12
    assert -1e-12 <= f1_max(true)[0] - f1_max(coarse)[0] <= f1_max_error_bound(coarse) + 1e-12


@settings(deadline=None, max_examples=80)
@given(scored)
def test_bounds_hold_for_few_scores(pairs):
    assert_bounded([s for s, _ in pairs], [label for _, label in pairs], limit=2**10)


@pytest.mark.parametrize("order", ["random", "best", "worst", "best tied"])
def test_bounds_hold_in_the_worst_orders_and_are_not_idle(order):
    """All scores in one bin, in the orders that give each metric its extreme values."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1], [400, 100]))
    ranks = {
        "random": rng.random(500),
        "best": labels + rng.random(500) / 2,
        "worst": 1 - labels + rng.random(500) / 2,
        "best tied": labels,
    }[order]
    scores = np.float32(1.0001) + np.float32(1e-2) * ranks.astype(np.float32)
    coarse = binned(scores, labels, 2)
    assert len(coarse.thresholds) == 1
    assert_bounded(scores, labels, 2)
    if order == "best tied":  # here the bounds are reached
        true = exact(scores, labels)
        assert auroc(true) - auroc(coarse) == pytest.approx(auroc_error_bound(coarse))
        assert average_precision(true) - average_precision(coarse) == pytest.approx(
            average_precision_error_bound(coarse)
        )
        assert f1_max(true)[0] - f1_max(coarse)[0] == pytest.approx(f1_max_error_bound(coarse))


def below(score: float) -> float:
    return float(np.nextafter(np.float32(score), np.float32(-np.inf)))


def test_threshold_at_a_false_positive_rate():
    counts = exact([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 6], [0] * 10 + [1])
    assert threshold_at_fpr(counts, 0.3) == below(8)
    assert threshold_at_fpr(counts, 0.39) == below(8)
    assert threshold_at_fpr(counts, 0.7) == below(4)
    assert threshold_at_fpr(counts, 0.69) == below(5)
    assert threshold_at_fpr(counts, 0.05) == float("inf")
    assert threshold_at_fpr(counts, 1.0) == below(1)
    anomalous_on_top = exact([1, 2, 3, 2.5], [0, 0, 1, 1])
    assert threshold_at_fpr(anomalous_on_top, 0.0) == below(2.5)


def test_threshold_at_a_sensitivity():
    counts = exact([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 6], [1] * 10 + [0])
    assert threshold_at_sensitivity(counts, 0.3) == below(8)
    assert threshold_at_sensitivity(counts, 0.31) == below(7)
    assert threshold_at_sensitivity(counts, 1.0) == below(1)
    assert threshold_at_sensitivity(counts, 0.0) == below(10)
    for function in (threshold_at_sensitivity, threshold_at_fpr):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\], got 1.5"):
            function(counts, 1.5)


@settings(deadline=None, max_examples=40)
@given(scored, st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_thresholds_of_binned_scores_keep_their_promise(pairs, rate):
    scores, labels = np.array([s for s, _ in pairs], np.float32), np.array([label for _, label in pairs])
    counts = binned(scores, labels, 2**10)
    assert is_anomalous(scores[labels == 0], threshold_at_fpr(counts, rate)).mean() <= rate
    assert is_anomalous(scores[labels == 1], threshold_at_sensitivity(counts, rate)).mean() >= rate


def test_a_threshold_between_two_numbers_of_float32_keeps_its_promise():
    """NumPy would round it to float32 beside an array of that type; so float64 alone separates small scores."""
    scores, labels = np.float32([1e-40, 1e-40]), np.array([0, 1])
    threshold = threshold_at_sensitivity(binned(scores, labels, 2**10), 1)
    assert is_anomalous(scores, threshold).all()
    assert is_anomalous(float(scores[1]), threshold)


def test_scores_known_to_be_tied_add_nothing_to_the_bounds():
    """Zero, one and half-precision values have their own bins beside bins with many scores."""
    rng = np.random.default_rng(0)
    labels = rng.random(4000) < 0.3
    scores = (rng.random(4000) + labels).astype(np.float16).astype(np.float32).clip(0.5, 1)
    coarse = binned(scores, labels, 2**12)
    bounds = auroc_error_bound(coarse), average_precision_error_bound(coarse), f1_max_error_bound(coarse)
    np.testing.assert_array_equal(bounds, 0)
    assert auroc(coarse) == pytest.approx(auroc(exact(scores, labels)), abs=1e-12)
    scores[::2] += np.float32(1e-6)
    assert auroc_error_bound(binned(scores, labels, 2**12)) > 1e-6


@pytest.mark.parametrize("labels", [[0, 0], [1, 1]])
def test_undefined_is_refused(labels):
    counts = exact([1.0, 2.0], labels)
    for function in (auroc, auroc_error_bound, average_precision, average_precision_error_bound, f1_max):
        with pytest.raises(ValueError, match="both normal and anomalous"):
            function(counts)
    if labels == [1, 1]:
        with pytest.raises(ValueError, match="without normal"):
            threshold_at_fpr(counts, 0.3)
    else:
        with pytest.raises(ValueError, match="without anomalous"):
            threshold_at_sensitivity(counts, 0.3)


def distance_to_line(points: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Returns the Euclidean distance of each point from the nearest piece of a line."""
    start, step = line[:-1], np.diff(line, axis=0)
    length = np.maximum((step**2).sum(1), 1e-30)
    share = np.clip(((points[:, None] - start) * step).sum(2) / length, 0, 1)
    return np.linalg.norm(points[:, None] - start - share[..., None] * step, axis=2).min(1)


def test_few_points_draw_the_same_curve():
    generator = np.random.default_rng(0)
    normal, anomalous = generator.normal(0, 1, 3000), generator.normal(1.5, 1, 200)
    counts = exact_counts(normal.astype(np.float32), anomalous.astype(np.float32))
    for x, y in (roc_curve(counts), precision_recall_curve(counts)):
        curve = Curve.of(x, y)
        assert len(curve.x) == len(curve.y) <= 200
        assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (x[0], y[0], x[-1], y[-1])
        step = (np.abs(np.diff(x)).sum() + np.abs(np.diff(y)).sum()) / 199
        assert distance_to_line(np.stack([x, y], 1), np.array(curve).T).max() <= step
    x, y = np.linspace(0, 0.3, 5000), np.sqrt(np.linspace(0, 1, 5000))
    narrow = Curve.of(x, y, width=0.3)
    assert len(narrow.x) > 150
    assert distance_to_line(np.stack([x / 0.3, y], 1), np.array(narrow).T / (0.3, 1)).max() <= 2 / 199
    assert Curve.of(np.array([0.0, 0, 1]), np.array([0.0, 1, 1])) == ((0, 0, 1), (0, 1, 1))


def test_the_curves_hold_the_areas_that_the_metrics_are():
    counts = exact_counts(np.float32([0.1, 0.4, 0.4, 0.6]), np.float32([0.4, 0.7, 0.9]))
    assert sklearn_metrics.auc(*roc_curve(counts)) == pytest.approx(auroc(counts))
    recall, precision = precision_recall_curve(counts)
    assert np.diff(recall) @ precision[1:] == pytest.approx(average_precision(counts))
    assert precision[0] == precision[1]
