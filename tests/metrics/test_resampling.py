"""Metrics of weighted counts equal scikit-learn's metrics of explicitly drawn images."""

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    precision_recall_curve,
    recall_score,
    roc_auc_score,
)

from afclip_lightning.metrics import (
    auroc_error_bound,
    average_precision_error_bound,
    exact_counts,
    f1_max_error_bound,
    pro,
    pro_error_bound,
    resampling,
)
from afclip_lightning.metrics.image_counts import CategoryCounts, ImageRecord
from afclip_lightning.metrics.resampling import draws, metrics_of, without_each
from afclip_lightning.metrics.result import SMALL_LIMIT
from afclip_lightning.results import FIXED as TITLES
from tests.support.image_records import categories, records_of, regions

IMAGE = {"image_auroc", "image_ap", "image_f1_max"}
FIXED = set(TITLES)
PIXEL = {"pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_pro", "pixel_pro_05"}


def best_f1(labels, scores):
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float((2 * precision * recall / np.maximum(precision + recall, 1e-300)).max())


def by_hand(maps, masks, labels, scores, times):
    """Returns the metrics from all scores of the images, each repeated as often as it was drawn."""
    at = np.repeat(np.arange(len(maps)), times.astype(int))
    marked, values = masks[at].ravel(), maps[at].ravel()
    areas = np.stack([regions(mask).numpy() for mask in masks])[at].ravel()
    counts = exact_counts(values[marked == 0], values[marked == 1], areas[marked == 1])
    return {
        "image_auroc": roc_auc_score(labels[at], scores[at]),
        "image_ap": average_precision_score(labels[at], scores[at]),
        "image_f1_max": best_f1(labels[at], scores[at]),
        "pixel_auroc": roc_auc_score(marked, values),
        "pixel_ap": average_precision_score(marked, values),
        "pixel_f1_max": best_f1(marked, values),
        "pixel_pro": pro(counts, 0.2),
        "pixel_pro_05": pro(counts, SMALL_LIMIT),
    }


@pytest.mark.parametrize("seed", range(2))
def test_samples_are_images_drawn_by_hand_within_the_proven_bound(seed):
    maps, masks, labels, scores = categories(images=18, seed=seed)
    images = CategoryCounts.of(records_of(maps, masks, labels, scores))
    weights = draws(labels, 12, (seed, "mvtec", "bottle"))
    found = metrics_of(images, weights, 0.2)
    assert found.keys() == IMAGE | PIXEL
    for r, times in enumerate(weights):
        expected = by_hand(maps, masks, labels, scores, times)
        counts = images.pixel_counts(times)
        bounds = dict.fromkeys(IMAGE, 0.0) | {
            "pixel_auroc": auroc_error_bound(counts),
            "pixel_ap": average_precision_error_bound(counts),
            "pixel_f1_max": f1_max_error_bound(counts),
            "pixel_pro": pro_error_bound(counts, 0.2) * 65 / 64,
            "pixel_pro_05": pro_error_bound(counts, SMALL_LIMIT) * 65 / 64,
        }
        for key, bound in bounds.items():
            assert abs(found[key][r] - expected[key]) <= bound + 1e-12, key
            assert bound < 0.02


def fixed_by_hand(labels, scores, threshold):
    """Returns scikit-learn's rates at a threshold."""
    above = scores.astype(float) > threshold
    return {
        "fpr": 1 - recall_score(labels, above, pos_label=0),
        "tpr": recall_score(labels, above),
        "balanced_accuracy": balanced_accuracy_score(labels, above),
        "f1": f1_score(labels, above),
    }


@pytest.mark.parametrize("threshold", [0.7, 0.83, 0.9])
def test_at_fixed_thresholds_samples_are_images_drawn_by_hand_within_half_a_bin(threshold):
    maps, masks, labels, scores = categories(images=18, seed=1)
    images = CategoryCounts.of(records_of(maps, masks, labels, scores), {"image": threshold + 0.09, "pixel": threshold})
    weights = draws(labels, 12, (1, "mvtec", "bottle"))
    found = metrics_of(images, weights)
    assert found.keys() == IMAGE | PIXEL | FIXED
    for r, times in enumerate(weights):
        at = np.repeat(np.arange(len(maps)), times.astype(int))
        for key, value in fixed_by_hand(labels[at], scores[at], threshold + 0.09).items():
            assert found[f"image_fixed_{key}"][r] == pytest.approx(value, abs=1e-12)
        expected = fixed_by_hand(masks[at].ravel(), maps[at].ravel(), threshold)
        fp, tp, open_fp, open_tp = images.above["pixel"] @ times
        normal, anomalous = (masks[at] == 0).sum(), (masks[at] == 1).sum()
        ends = [
            {
                "fpr": (fp + sign * open_fp) / normal,
                "tpr": (tp - sign * open_tp) / anomalous,
                "f1": 2 * (tp - sign * open_tp) / (tp - sign * open_tp + fp + sign * open_fp + anomalous),
            }
            for sign in (1, -1)
        ]
        assert 0 < open_fp + open_tp < 60  # of 18,432 pixels, a quarter of which have two decimals
        for key in ("fpr", "tpr", "f1"):
            low, high = sorted(end[key] for end in ends)
            assert low - 1e-12 <= found[f"pixel_fixed_{key}"][r] <= high + 1e-12
            assert low - 1e-12 <= expected[key] <= high + 1e-12
        rates = found["pixel_fixed_tpr"][r] + 1 - found["pixel_fixed_fpr"][r]
        assert found["pixel_fixed_balanced_accuracy"][r] == pytest.approx(rates / 2)


def test_what_a_fixed_threshold_has_no_images_for_is_absent():
    maps, masks, labels, scores = categories()
    records, both = records_of(maps, masks, labels, scores), {"image": 0.5, "pixel": 0.5}
    normal = [record for record in records if not record.label]
    found = metrics_of(CategoryCounts.of(normal, both), np.ones((2, len(normal))))
    assert found.keys() == {"image_fixed_fpr", "pixel_fixed_fpr"}
    records[1] = ImageRecord("01", 1, None, None)
    assert not FIXED & metrics_of(CategoryCounts.of(records, both), np.ones((2, 12))).keys()
    weights = np.ones((2, 12))
    weights[1, labels == 0] = 0  # a sample without normal images
    rest = records_of(maps, masks, labels, scores)
    found = metrics_of(CategoryCounts.of(rest, {"image": 0.5}), weights)
    undefined = {key for key in FIXED & found.keys() if np.isnan(found[key]).tolist() == [False, True]}
    assert undefined == {"image_fixed_fpr", "image_fixed_balanced_accuracy", "image_fixed_f1"}


def test_a_sample_does_not_depend_on_those_beside_it(monkeypatch):
    maps, masks, labels, scores = categories()
    images = CategoryCounts.of(records_of(maps, masks, labels, scores))
    weights = draws(labels, 9)
    whole = metrics_of(images, weights)
    monkeypatch.setattr(resampling, "BLOCK", 1)
    for key, values in metrics_of(images, weights).items():
        np.testing.assert_allclose(values, whole[key], rtol=1e-13)  # sums of other lengths round otherwise


def test_each_kind_is_drawn_as_often_as_it_is_there():
    labels = np.array([0, 1, 1, 0, 1])
    weights = draws(labels, 4000, (3,))
    assert weights.shape == (4000, 5)
    assert (weights[:, labels == 0].sum(axis=1) == 2).all()
    assert (weights[:, labels == 1].sum(axis=1) == 3).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.06)  # five standard errors
    np.testing.assert_allclose(weights.var(axis=0), [1 / 2, 2 / 3, 2 / 3, 1 / 2, 2 / 3], atol=0.08)


def test_draws_depend_on_seed_and_names_alone():
    labels = np.array([0, 1, 1, 0, 1] * 4)
    one = draws(labels, 50, (7, "mvtec", "bottle"))
    np.testing.assert_array_equal(one, draws(labels, 50, (7, "mvtec", "bottle")))
    np.testing.assert_array_equal(one[:20, labels == 0], draws(labels, 20, (7, "mvtec", "bottle"))[:, labels == 0])
    for other in ((8, "mvtec", "bottle"), (7, "mvtec", "cable"), (7, "visa", "bottle")):
        assert (one != draws(labels, 50, other)).any()
    draws(labels, 1, (0, "\udcff"))  # a folder's name need not be UTF-8


def test_samples_that_leave_one_out():
    np.testing.assert_array_equal(without_each(3), [[0, 1, 1], [1, 0, 1], [1, 1, 0]])


def test_what_the_images_do_not_have_is_absent():
    maps, masks, labels, scores = categories()
    records = records_of(maps, masks, labels, scores)
    weights = np.ones((2, 12))
    of_anomalous = [record for record in records if record.label]
    assert metrics_of(CategoryCounts.of(of_anomalous), np.ones((2, 8))).keys() == PIXEL
    assert not metrics_of(CategoryCounts.of([r for r in records if not r.label]), np.ones((2, 4)))
    records[1] = ImageRecord("01", 1, None, records[1].counts)
    assert metrics_of(CategoryCounts.of(records), weights).keys() == PIXEL
    records[1] = ImageRecord("01", 1, 0.5, None)
    assert metrics_of(CategoryCounts.of(records), weights).keys() == IMAGE


def test_a_sample_of_one_kind_has_no_value():
    maps, masks, labels, scores = categories()
    masks[labels.nonzero()[0][1:]] = 0  # lost by resizing: only one image has anomalous pixels
    images = CategoryCounts.of(records_of(maps, masks, labels, scores))
    weights = np.ones((3, 12))
    weights[1, labels.nonzero()[0][0]] = 0
    weights[2, labels == 0] = 0
    values = metrics_of(images, weights)
    assert all(np.isfinite(value[0]) for value in values.values())
    assert all(np.isnan(values[key]).tolist() == [False, True, False] for key in PIXEL)
    assert all(np.isnan(values[key]).tolist() == [False, False, True] for key in IMAGE)


def test_all_scores_equal():
    _, masks, labels, _ = categories()
    images = CategoryCounts.of(records_of(np.full(masks.shape, 0.5, np.float32), masks, labels, np.zeros(12)))
    values = metrics_of(images, draws(labels, 5))
    np.testing.assert_array_equal(values["image_auroc"], 0.5)
    np.testing.assert_array_equal(values["pixel_auroc"], 0.5)
    np.testing.assert_allclose(values["image_ap"], 8 / 12)
    np.testing.assert_allclose(values["pixel_pro"], 0.15)
