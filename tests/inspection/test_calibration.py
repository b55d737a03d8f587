"""Thresholds: correct on known distributions, with intervals for few images, stored with their conditions."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from afclip_runtime.errors import CheckpointError, DatasetError, UserError
from afclip_runtime.inspection.calibration import (
    Calibration,
    Threshold,
    fingerprint,
    fixed,
    from_labels,
    from_normals,
    origin,
    place_of,
    probability,
)
from afclip_runtime.inspection.distributions import pareto_excess
from afclip_runtime.inspection.drift import NormalScores, keep
from afclip_runtime.inspection.pixel_tail import PixelTail


def drawn(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n)


def test_a_quantile_is_an_order_statistic() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 200.0))
    found = from_normals(scores, 0.1)  # the 180th of 199: of 20 further ones, 2 lie above on average
    assert (found.method, found.value, found.n, found.fpr) == ("quantile", 180.0, 199, 0.1)
    assert found.interval is not None
    # the ranks of the interval are those of the binomial distribution
    low, high = found.interval
    assert stats.binom.cdf(low - 1, 199, 0.9) < 0.06
    assert stats.binom.cdf(high - 1, 199, 0.9) > 0.94


def test_few_images_extrapolate_with_a_wide_interval() -> None:
    true = stats.norm.isf(0.01)
    found = {n: from_normals(drawn(n), 0.01) for n in (20, 100, 500, 4000)}
    assert [t.method for t in found.values()] == ["tail_fit"] * 3 + ["quantile"]
    widths = [t.interval[1] - t.interval[0] for t in found.values() if t.interval]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 1
    for n in (500, 4000):
        assert found[n].value == pytest.approx(true, abs=0.25)


def test_intervals_hold_the_truth() -> None:
    true = stats.norm.isf(0.02)
    held = 0
    for seed in range(60):
        low, high = from_normals(drawn(60, seed), 0.02).interval or (0, 0)
        held += low <= true <= high
    assert held >= 45  # 54 of 60 at 90 %


def test_the_rate_is_kept_on_average() -> None:
    rates = [stats.norm.sf(from_normals(drawn(80, seed), 0.02).value) for seed in range(60)]
    assert 0.012 < np.mean(rates) < 0.035


@pytest.mark.parametrize("shape", [-0.4, 0.0, 0.3])
def test_the_tail_is_scipys(shape: float) -> None:
    share = np.array([0.5, 0.1, 0.001])
    expected = stats.genpareto.isf(share, shape, scale=2.0)
    assert_allclose(pareto_excess(share, np.array(shape), np.array(2.0)), expected, rtol=1e-10)


def test_equal_scores_and_too_few() -> None:
    found = from_normals(np.full(50, 0.3), 0.01)
    assert found.value == pytest.approx(0.3)
    assert found.scale is not None
    assert found.scale > 0
    with pytest.raises(DatasetError, match="7 normal images are too few"):
        from_normals(np.zeros(7), 0.01)


@pytest.mark.parametrize("criterion", ["f1", "balanced"])
def test_labelled_images_are_separated_as_by_brute_force(criterion: str) -> None:
    rng = np.random.default_rng(0)
    anomalous = rng.random(60) < 0.4
    scores = np.round(rng.normal(size=60) + 1.5 * anomalous, 1)  # with ties

    def merit(threshold: float) -> float:
        above = scores > threshold
        found, false = (above & anomalous).sum(), (above & ~anomalous).sum()
        if criterion == "f1":
            return 2 * found / (found + false + anomalous.sum())
        return found / anomalous.sum() - false / (~anomalous).sum()

    found = from_labels(scores, anomalous, criterion)  # type: ignore[arg-type]
    assert merit(found.value) == pytest.approx(max(merit(t) for t in [-9.0, *scores]))
    assert found.value not in scores
    assert found.fpr == pytest.approx((scores[~anomalous] > found.value).mean())
    assert found.interval is not None
    assert found.interval[0] <= found.value <= found.interval[1]
    with pytest.raises(DatasetError, match="both kinds"):
        from_labels(scores, np.ones(60, bool), criterion)  # type: ignore[arg-type]


def test_a_pixel_threshold_weighs_images_the_same() -> None:
    rng = np.random.default_rng(0)
    maps = [rng.normal(loc=i / 10, size=(10 + 7 * i, 30)).astype(np.float32) for i in range(12)]
    tail = PixelTail(len(maps), 0.02)
    for anomaly_map in maps:
        tail.add(anomaly_map)
    found = tail.threshold()
    rates = [np.mean([(m > t).mean() for m in maps]) for t in (found.value, np.nextafter(np.float32(found.value), -1))]
    assert rates[0] <= 0.02
    assert rates[0] > 0.02 - 1 / (12 * 300)
    assert found.interval is not None
    assert found.interval[0] < found.value < found.interval[1]
    with pytest.raises(DatasetError, match="0 normal images are too few"):
        PixelTail(3, 0.01).threshold()


def test_by_hand() -> None:
    found = fixed(0.5, np.array([0.1, 0.2, 0.6, 0.3]))
    assert (found.value, found.fpr, found.interval) == (0.5, 0.25, None)
    assert fixed(0.5, np.array([])).scale is None


def test_probability_is_half_at_the_threshold() -> None:
    good = drawn(200)
    threshold = from_normals(good, 0.05)
    assert threshold.scale is not None
    values = np.array([np.median(good), threshold.value, 2 * threshold.value - np.median(good), -1e9, 1e9])
    expected = [0.1, 0.5, 0.9, 0, 1]
    assert_allclose(probability(values, threshold.value, threshold.scale), expected, atol=1e-9)
    rising = probability(np.linspace(-3, 3, 50, dtype=np.float32), threshold.value, threshold.scale)
    assert (np.diff(rising) > 0).all()
    assert rising.dtype == np.float32


def test_files_keep_what_a_threshold_holds_for(tmp_path: Path) -> None:
    path = tmp_path / "head.calibration.json"
    image = from_normals(drawn(50), 0.05)
    kept = Calibration(image, None, fingerprint(b"head"), {"tiling": {"tiles": 1, "side": (1, 2)}, "category": "bolt"})
    kept.save(path)
    found = Calibration.read(path)
    assert (found.image, found.pixel, found.checkpoint) == (image, None, kept.checkpoint)
    found.check(path, fingerprint(b"head"), kept.settings)
    with pytest.raises(CheckpointError, match=r"head\.calibration\.json does not fit(.|\n)*another checkpoint"):
        found.check(path, fingerprint(b"other"), kept.settings)
    with pytest.raises(CheckpointError, match="category: 'bolt' when calibrated, 'nut' now"):
        found.check(path, fingerprint(b"head"), {**kept.settings, "category": "nut"})
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DatasetError, match="is not valid JSON"):
        Calibration.read(path)
    with pytest.raises(DatasetError, match="does not exist"):
        Calibration.read(tmp_path / "none.json")


def test_a_calibration_is_bound_to_the_precision_of_its_scores(tmp_path: Path) -> None:
    path = tmp_path / "head.calibration.json"
    older = Calibration(
        from_normals(drawn(20), 0.01), None, "head", {"category": "nut"}
    )  # without a precision: float32
    older.check(path, "head", {"category": "nut"})
    older.check(path, "head", {"category": "nut", "precision": "float32"})
    with pytest.raises(
        CheckpointError, match=r"float32 scores when calibrated, INT8 scores now: calibrate with the INT8"
    ):
        older.check(path, "head", {"category": "nut", "precision": "int8"})
    of_int8 = Calibration(older.image, None, "head", {"category": "nut", "precision": "int8"})
    of_int8.check(path, "head", of_int8.settings)
    with pytest.raises(CheckpointError, match="INT8 scores when calibrated, float32 scores now"):
        of_int8.check(path, "head", {"category": "nut"})


def test_a_file_without_its_thresholds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    Calibration(Threshold(0.5, None, "fixed", 0, None, None), None, "", {}).save(path)
    path.write_text(path.read_text().replace('"value"', '"vale"'))
    with pytest.raises(DatasetError, match=r"c\.json: image: there is no value\. Calibrate again"):
        Calibration.read(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("image", "value"), math.nan),
        (("image", "value"), math.inf),
        (("image", "value"), True),
        (("image", "value"), "0.5"),
        (("image", "value"), None),
        (("image", "scale"), 0.0),
        (("image", "scale"), -0.1),
        (("image", "scale"), math.nan),
        (("image", "method"), "guess"),
        (("image", "n"), -1),
        (("image", "interval"), [0.1]),
        (("pixel",), 0.5),
        (("image",), None),
        (("settings",), [1]),
        (("settings",), None),
        (("settings", "white"), "12"),
        (("checkpoint",), 7),
        (("origin",), {"product": 3}),
        (("good",), {"n": 2, "median": 0.1, "upper": 0.2}),
    ],
)
def test_damaged_numbers_are_refused(tmp_path: Path, place: tuple[str, ...], value: object) -> None:
    path = tmp_path / "c.json"
    image = from_normals(drawn(50), 0.05)
    Calibration(image, image, "", {}, origin("bolt", "good", 50), keep(drawn(50))).save(path)
    content = json.loads(path.read_text())
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=rf"c\.json: {place[0]}.*Calibrate again"):
        Calibration.read(path)


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    Calibration(from_normals(drawn(50), 0.05), None, "", {}, origin("bolt", "good", 50), keep(drawn(50))).save(path)
    content = json.loads(path.read_text())
    del content["origin"], content["good"]
    path.write_text(json.dumps(content))
    found = Calibration.read(path)
    assert (found.origin, found.good) == (None, None)
    assert str(found) == "of an earlier version, which kept neither product nor date"
    content["good"] = {"n": 50, "median": 0.1, "upper": 0.9}  # of the version after that
    path.write_text(json.dumps(content))
    assert Calibration.read(path).good == NormalScores(50, (), 0.1, 0.9)


@pytest.mark.parametrize("name", ["a/b", "..", "", ".hidden", "a\nb", "a.", "x" * 61, "\u00fc" * 61, "a\0", "*"])
def test_names_that_make_no_file_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="cannot be part of a file name"):
        place_of(Path("head.calibration.json"), name)


def test_a_product_has_one_file() -> None:
    beside = Path("head.calibration.json")
    assert place_of(beside, "object") == beside
    assert place_of(beside, "metal nut") == Path("head.metal nut.calibration.json")
    assert place_of(beside, "pru\u0308f") == place_of(beside, "pr\u00fcf")
