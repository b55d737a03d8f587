"""Metrics from image records: of all images, and of one defect type."""

from dataclasses import replace

import numpy as np
import pytest

from afclip_lightning.metrics import AnomalyMetrics
from afclip_lightning.metrics.image_results import result_of_images, results_by_type
from tests.support.image_records import categories, records_of


def streamed(maps, masks, labels, scores):
    metrics = AnomalyMetrics(exact=True)
    metrics.update(maps, masks, scores, labels)
    return metrics.compute()


def test_all_images_are_within_the_bounds_of_the_exact_metrics():
    data = categories()
    result, expected = result_of_images(records_of(*data)), streamed(*data)
    assert result.metrics.keys() == expected.keys()
    for key, value in expected.items():
        assert abs(result.metrics[key] - value) <= result.error_bounds.get(key, 1e-9) + 1e-9
    assert all(key.startswith("pixel") for key in result.error_bounds)
    assert (result.normal, result.anomalous) == (4, 8)


def test_a_type_is_all_normal_images_against_its_own():
    data = categories()
    records = records_of(*data)
    anomalous = [record.name for record in records if record.label]
    types = dict.fromkeys(anomalous[:3], "scratch") | dict.fromkeys(anomalous[3:7], "hole") | {"00": ""}
    found = results_by_type(records, types)
    assert list(found) == ["hole", "scratch"]
    for name, result in found.items():
        at = np.array([not r.label or types.get(r.name) == name for r in records])
        expected = streamed(*(part[at] for part in data))
        assert (result.normal, result.anomalous) == (4, 3 if name == "scratch" else 4)
        for key, value in expected.items():
            assert abs(result.metrics[key] - value) <= result.error_bounds.get(key, 1e-9) + 1e-9
        assert result.metrics["image_auroc"] == expected["image_auroc"]


def test_without_masks_and_scores_there_are_no_metrics():
    first, *others = records_of(*categories())
    result = result_of_images([replace(first, counts=None), *others])
    assert result.metrics.keys() == {"image_auroc", "image_ap", "image_f1_max"}
    assert not result_of_images([replace(first, score=None, counts=None), *others]).metrics


def test_aupimo_is_among_them_where_it_is_defined():
    maps, masks, labels, scores = categories(images=6, side=240)
    result = result_of_images(records_of(maps, masks, labels, scores))
    assert 0 <= result.metrics["pixel_aupimo"] <= 1
    assert result.error_bounds["pixel_aupimo"] == pytest.approx(0, abs=5e-3)
