"""Thresholds from few normal images: their false-positive rate, the stated guarantee, unusual images."""

import numpy as np
import pytest

from afclip_lightning.inspection.few_normals import from_held_out, promise, unlike_the_rest
from afclip_runtime.errors import DatasetError
from afclip_runtime.inspection.calibration import from_normals


@pytest.mark.parametrize("count", [2, 4, 7])
@pytest.mark.parametrize("fpr", [0.05, 0.2])
def test_normal_scores_lie_above_as_often_as_was_asked(count: int, fpr: float) -> None:
    rng = np.random.default_rng(0)
    above = [rng.normal() > from_held_out(rng.normal(size=count), fpr).value for _ in range(1000)]
    assert np.mean(above) == pytest.approx(fpr, abs=4 * np.sqrt(fpr * (1 - fpr) / 1000))


def test_the_interval_holds_the_quantile() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(500):
        low, high = from_held_out(rng.normal(size=4), 0.1).interval or (0, 0)
        inside += low <= 1.2816 <= high
    assert inside / 500 == pytest.approx(0.9, abs=0.05)


def test_of_eight_images_it_is_the_rule_of_calibrate() -> None:
    scores = np.random.default_rng(0).normal(size=8)
    assert from_held_out(scores, 0.1) == from_normals(scores, 0.1)


def test_one_image_is_too_few() -> None:
    with pytest.raises(DatasetError, match="1 normal image is too few for a threshold: at least 2 different ones"):
        from_held_out(np.array([1.0]), 0.1)


def test_the_promise_counts_images() -> None:
    assert promise(4, 0.01) == (
        "4 normal images cannot guarantee a false-positive rate below 20.0 %; you asked for 1.0 %. So the threshold is "
        "extrapolated from their scores, and the true rate may be higher. At least 99 normal images can guarantee this "
        "rate, and with 1000 nothing is extrapolated. Calibrate again when there are more."
    )
    assert (
        promise(99, 0.01)
        == "99 normal images can guarantee a false-positive rate of 1.0 % or more; you asked for 1.0 %."
    )


def test_images_that_score_far_above_the_others_are_named() -> None:
    assert unlike_the_rest(np.array([1.0, 1.1, 0.9, 5.0, 1.0, 9.0])) == [5, 3]
    assert unlike_the_rest(np.array([1.0, 1.0, 1.0, 1.01])) == []
    assert unlike_the_rest(np.array([1.0, 9.0])) == []
