"""One rule for every threshold: a score above it is anomalous, an equal one is not, in every part of the package."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from afclip_lightning.metrics import AnomalyMetrics
from afclip_lightning.report.run import Threshold, calibrated, sections
from afclip_lightning.report.run_files import Run
from afclip_runtime.inspection.calibration import Calibration, fixed, from_labels, from_normals
from afclip_runtime.inspection.pixel_tail import PixelTail
from afclip_runtime.inspection.verdict import Inspection
from afclip_runtime.serving.answers import result_of
from afclip_runtime.thresholds import is_anomalous
from tests.support import REPOSITORY

SCORES = np.float32([0.1, 0.2, 0.3, 0.7, 0.7, 0.9])
LABELS = np.array([0, 0, 0, 0, 1, 1])
EQUAL = float(np.float32(0.7))  # a normal and an anomalous image have it


def result() -> tuple[AnomalyMetrics, np.ndarray]:
    metrics = AnomalyMetrics(exact=True)
    maps = np.broadcast_to(SCORES[:, None, None], (6, 2, 2)).copy()
    masks = np.broadcast_to(LABELS[:, None, None], maps.shape).astype(np.uint8)
    metrics.update(maps, masks, SCORES, LABELS)
    return metrics, maps


def run_of(scores: np.ndarray, labels: np.ndarray) -> Run:
    metrics, _ = result()
    row = metrics.result().row("drawn", "a")
    parts = tuple(scores[labels == label].tolist() for label in (0, 1))
    return Run(Path(), "", [row], None, {("drawn", "a"): parts}, None, 0.3, None)


def verdicts(threshold: float) -> dict[str, list[bool]]:
    """Returns the scores that each part calls anomalous at a threshold."""
    inspected = [Inspection(float(score), np.full((1, 1), score), threshold, threshold) for score in SCORES]
    reported = []
    for score, label in zip(SCORES, LABELS, strict=True):
        (section,) = sections(run_of(np.array([score]), np.array([label])), Threshold(threshold, ""))
        assert section.decisions is not None
        reported.append(bool(1 - section.decisions.missed if label else section.decisions.false_alarms))
    return {
        "the rule": [is_anomalous(float(score), threshold) for score in SCORES],
        "of an array": is_anomalous(SCORES, threshold).tolist(),
        "inspect": [bool(one.anomalous) for one in inspected],
        "its mask": [bool(one.mask is not None and one.mask.all()) for one in inspected],
        "serve": [bool(result_of(one, "", with_map=False).anomalous) for one in inspected],
        "report": reported,
    }


def test_a_score_that_equals_the_threshold_is_normal_for_everyone() -> None:
    for name, found in verdicts(EQUAL).items():
        assert found == [False, False, False, False, False, True], name


def test_the_threshold_of_the_best_f1_finds_what_it_was_counted_with() -> None:
    """`evaluate` and `test` print it: it is just below 0.7, which is anomalous."""
    found = result()[0].result()
    for level in ("image", "pixel"):
        threshold = found.thresholds[f"{level}_f1_max"]
        for name, said in verdicts(threshold).items():
            assert said == [False, False, False, True, True, True], name
        hits = is_anomalous(SCORES, threshold)
        f1 = 2 * (hits & (LABELS == 1)).sum() / (hits.sum() + LABELS.sum())
        assert f1 == pytest.approx(found.metrics[f"{level}_f1_max"])
        assert not is_anomalous(EQUAL, EQUAL)
        assert np.float32(threshold) == np.nextafter(np.float32(0.7), np.float32(0))


def test_no_normal_image_becomes_an_alarm_by_its_own_score() -> None:
    """A threshold equal to the score of a normal image, such as a quantile, calls that image normal."""
    normal = np.linspace(0, 1, 1000, dtype=np.float32)
    image = from_normals(normal, 0.01)
    assert image.method == "quantile"
    assert image.value in normal
    assert is_anomalous(normal, image.value).mean() <= 0.01
    assert fixed(float(normal[-1]), normal).fpr == 0
    tail = PixelTail(8, 0.0)
    for score in normal[-8:]:
        tail.add(np.full((4, 4), score))
    assert tail.threshold().value == normal[-1]
    assert not is_anomalous(normal, tail.threshold().value).any()


@pytest.mark.parametrize("criterion", ["f1", "balanced"])
def test_labels_that_all_are_called_anomalous_are(criterion: str) -> None:
    """No score is below the threshold of the lowest score, which must still be above it."""
    scores, anomalous = np.array([0.5, 0.6]), np.array([True, False])
    threshold = from_labels(scores, anomalous, criterion).value  # type: ignore[arg-type]
    assert is_anomalous(scores, threshold).all()


def test_a_calibration_means_the_same_in_the_report(tmp_path: Path) -> None:
    file = tmp_path / "head.calibration.json"
    Calibration(fixed(EQUAL, SCORES), None, "", {}).save(file)
    (section,) = sections(run_of(SCORES, LABELS), calibrated(file))
    assert section.decisions is not None
    assert dataclasses.astuple(section.decisions)[1:] == (1, 0, 4, 2)
    assert section.decisions.threshold.value == EQUAL


def test_the_page_of_serve_compares_alike() -> None:
    script = (REPOSITORY / "afclip_runtime/serving/web/serve.js").read_text()
    assert re.findall(r"(?:score|values\[i\]) (\S+) (?:threshold|pixel)\b", script) == [">", ">"]
