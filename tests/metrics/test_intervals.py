"""Bootstrap intervals equal SciPy's for a statistic that it can compute, and are absent if there are too few images."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from scipy.stats import rankdata

from afclip_lightning.metrics import intervals, resampling
from afclip_lightning.metrics.image_counts import CategoryCounts, ImageRecord
from afclip_lightning.metrics.intervals import Resampled, Settings, interval, intervals_of, mean_of, resampled
from afclip_lightning.results import FIXED, MEAN
from tests.support.image_records import categories, records_of


def auroc(normal, anomalous, axis=-1):
    """Returns the area by the ranks of the anomalous scores."""
    ranks = rankdata(np.concatenate([normal, anomalous], axis=axis), axis=axis)
    n, p = normal.shape[axis], anomalous.shape[axis]
    return (ranks[..., n:].sum(axis=axis) - p * (p + 1) / 2) / (n * p)


def images_of(normal, anomalous, category="a"):
    """Returns images with scores and without pixels."""
    scores = [(0, score) for score in normal] + [(1, score) for score in anomalous]
    return [ImageRecord(f"{category}{i:03}", label, float(score), None) for i, (label, score) in enumerate(scores)]


def scores(seed, normal=25, anomalous=40):
    rng = np.random.default_rng(seed)
    return rng.normal(size=normal).round(1), rng.normal(1.2, 1.5, size=anomalous).round(1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["bca", "percentile"])
def test_intervals_are_those_of_scipy_on_the_same_samples(kind, seed):
    data = scores(seed)
    metric = resampled(CategoryCounts.of(images_of(*data)), 500, (seed,))["image_auroc"]
    assert metric.value == pytest.approx(auroc(*data))
    drawn = SimpleNamespace(bootstrap_distribution=metric.samples)
    method = {"bca": "BCa", "percentile": "percentile"}[kind]
    result = stats.bootstrap(data, auroc, n_resamples=0, method=method, bootstrap_result=drawn, vectorized=True)
    np.testing.assert_allclose(interval(metric, kind), result.confidence_interval, rtol=1e-9)


def test_samples_spread_as_those_of_scipy():
    data = scores(5)
    metric = resampled(CategoryCounts.of(images_of(*data)), 4000, (5,))["image_auroc"]
    other = stats.bootstrap(data, auroc, n_resamples=4000, method="BCa", vectorized=True, random_state=0)
    # ends of two sets of 4000 samples differ by their Monte Carlo error, some 3 % of the interval's length each
    length = np.diff(other.confidence_interval)[0]
    np.testing.assert_allclose(interval(metric), other.confidence_interval, atol=0.1 * length)
    assert metric.samples.std() == pytest.approx(other.standard_error, rel=0.06)


def test_the_mean_of_categories_is_that_of_scipy():
    first, second = scores(1), scores(2, normal=12, anomalous=9)
    parts = [
        resampled(CategoryCounts.of(images_of(*data)), 500, (i,))["image_auroc"]
        for i, data in enumerate((first, second))
    ]
    metric = mean_of(parts)
    assert metric.value == pytest.approx((auroc(*first) + auroc(*second)) / 2)
    np.testing.assert_allclose(metric.samples, (parts[0].samples + parts[1].samples) / 2)

    def both(a, b, c, d, axis=-1):
        return (auroc(a, b, axis) + auroc(c, d, axis)) / 2

    drawn = SimpleNamespace(bootstrap_distribution=metric.samples)
    result = stats.bootstrap(
        (*first, *second), both, n_resamples=0, method="BCa", bootstrap_result=drawn, vectorized=True
    )
    np.testing.assert_allclose(interval(metric), result.confidence_interval, rtol=1e-9)


def test_of_all_metrics_of_categories_and_their_mean():
    records = {("x", name): records_of(*categories(images=18, seed=seed)) for seed, name in enumerate("ab")}
    found = intervals_of(records, Settings(200))
    assert not found.notes
    assert list(found.by_row) == [("x", "a"), ("x", "b"), ("x", MEAN)]
    for ends in found.by_row.values():
        assert len(ends) == 8
        assert all(0 <= low < high <= 1 for low, high in ends.values())
    for key, (low, high) in found.by_row["x", MEAN].items():
        lengths = [np.diff(found.by_row["x", name][key])[0] for name in "ab"]
        assert 0.4 * max(lengths) < high - low < max(lengths)  # two halves, drawn apart
    again = intervals_of({key: part[::-1] for key, part in records.items()}, Settings(200))
    assert again == found
    assert intervals_of(records, Settings(200, seed=1)).by_row != found.by_row


def test_the_interval_of_a_category_is_independent_of_other_categories():
    records = {("x", name): records_of(*categories(images=18, seed=seed)) for seed, name in enumerate("ab")}
    both, alone = intervals_of(records, Settings(200)), intervals_of({("x", "b"): records["x", "b"]}, Settings(200))
    assert alone.by_row["x", "b"] == alone.by_row["x", MEAN] == both.by_row["x", "b"]


def test_too_few_images_have_no_interval_which_is_reported_once():
    few = images_of(*scores(0, normal=4))
    enough = images_of(*scores(1, normal=5, anomalous=5))
    found = intervals_of({("x", "few"): few, ("x", "enough"): enough, ("y", "none"): []}, Settings(100))
    assert found.by_row["x", "few"] == {}
    assert found.by_row["x", MEAN] == {}
    assert found.by_row["x", "enough"].keys() == {"image_auroc", "image_ap", "image_f1_max"}
    assert found.notes == [
        "No interval of x/few: it has 4 normal and 40 anomalous images, and an interval needs 5 of each.",
        "No interval of the mean of x, where a category has none: I-AUROC, I-AP, I-F1.",
    ]


def test_images_of_one_kind_have_no_metric_and_do_not_keep_the_mean_from_an_interval():
    found = intervals_of({("x", "a"): images_of(*scores(0)), ("x", "b"): images_of(scores(1)[0], [])}, Settings(100))
    assert found.by_row["x", MEAN] == found.by_row["x", "a"] != {}
    assert [note.partition(":")[0] for note in found.notes] == ["No interval of x/b"]


def test_anomalous_pixels_in_one_image_have_no_interval():
    maps, masks, labels, of_images = categories(images=18)
    masks[labels.nonzero()[0][1:]] = 0
    found = intervals_of({("x", "a"): records_of(maps, masks, labels, of_images)}, Settings(100))
    assert found.by_row["x", "a"].keys() == {"image_auroc", "image_ap", "image_f1_max"}
    assert found.notes[0] == (
        "No interval of x/a: too few images have anomalous pixels (P-AUROC, P-AP, P-F1, P-PRO, P-PRO@5%)."
    )


def test_a_value_equal_in_all_samples_has_an_interval_of_zero_length():
    perfect = images_of(np.zeros(8), np.ones(8))
    assert set(intervals_of({("x", "a"): perfect}, Settings(100)).by_row["x", "a"].values()) == {(1.0, 1.0)}
    ties = images_of(np.zeros(8), np.zeros(8))
    assert intervals_of({("x", "a"): ties}, Settings(100)).by_row["x", "a"]["image_auroc"] == (0.5, 0.5)


def test_where_bca_has_no_quantile_to_take_it_is_the_percentile_interval():
    one_sided = Resampled(0.0, np.arange(1.0, 101), (np.arange(5.0),))
    assert interval(one_sided) == interval(one_sided, "percentile") == pytest.approx((3.475, 97.525))
    influence = np.zeros(400)
    influence[0] = -1
    outweighed = Resampled(99_999.5, np.arange(1.0, 100_001), (influence,))  # all samples but one are below
    assert intervals._acceleration(outweighed.without) == pytest.approx(1 / 6, rel=0.01)  # it is at most that
    assert interval(outweighed) == interval(outweighed, "percentile")


def test_the_level_moves_the_ends():
    metric = Resampled(50.5, np.arange(1.0, 101), (np.array([1.0, 2.0, 3.0]),))
    assert interval(metric, "percentile", 0.5) == (25.75, 75.25)
    assert interval(metric, "bca", 0.5) == pytest.approx((25.75, 75.25))  # neither biased nor skewed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replicates": 99}, "0 or at least 100 samples, got 99"),
        ({"kind": "normal"}, "bca, percentile"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Settings(**settings)


def test_at_fixed_thresholds_images_are_drawn_and_thresholds_stay():
    records = {("x", name): records_of(*categories(images=18, seed=seed)) for seed, name in enumerate("ab")}
    thresholds = {("x", "a"): {"image": 0.95, "pixel": 0.8}, ("x", "b"): {"image": 0.9, "pixel": 0.7}}
    found, plain = intervals_of(records, Settings(200), thresholds=thresholds), intervals_of(records, Settings(200))
    for key, ends in found.by_row.items():
        assert {name: ends[name] for name in plain.by_row[key]} == plain.by_row[key]
        assert ends.keys() - plain.by_row[key].keys() == set(FIXED)
        assert all(0 <= low <= high <= 1 for low, high in ends.values())
    low, high = found.by_row["x", MEAN]["pixel_fixed_f1"]
    lengths = [np.diff(found.by_row["x", name]["pixel_fixed_f1"])[0] for name in "ab"]
    assert 0 < high - low < max(lengths)
    few = {("x", "few"): images_of(*scores(0, normal=4)), ("x", "enough"): images_of(*scores(1))}
    found = intervals_of(few, Settings(100), thresholds={key: {"image": 0.5} for key in few})
    assert found.by_row["x", "few"].keys() == found.by_row["x", MEAN].keys() == {"image_fixed_tpr"}
    assert "image_fixed_fpr" in found.by_row["x", "enough"]
    assert found.notes[1].endswith("I-AUROC, I-AP, I-F1, I-FPR, I-BA, I-F1 fixed.")


def test_false_alarms_among_normal_images_alone_have_an_interval():
    normal, anomalous = scores(3)
    [ends] = {
        intervals_of({key: images}, Settings(400), thresholds={key: {"image": 0.5}}).by_row[key]["image_fixed_fpr"]
        for key, images in ((("x", "a"), images_of(normal, anomalous[:n])) for n in (0, 3, 40))
    }
    above = SimpleNamespace(bootstrap_distribution=None)
    metric = resampled(CategoryCounts.of(images_of(normal, []), {"image": 0.5}), 400, (0, "x", "a"))["image_fixed_fpr"]
    above.bootstrap_distribution = metric.samples
    result = stats.bootstrap((normal > 0.5,), np.mean, n_resamples=0, method="BCa", bootstrap_result=above)
    assert ends == pytest.approx(tuple(result.confidence_interval))
    found = intervals_of({("x", "a"): images_of(normal, [])}, Settings(400), thresholds={("x", "a"): {"image": 0.5}})
    assert found.notes == [
        "No interval of x/a: it has 25 normal and 0 anomalous images, and an interval needs 5 of each, but for I-FPR."
    ]


def test_of_many_images_some_are_left_out_and_the_interval_moves_little(monkeypatch):
    rng = np.random.default_rng(2)
    images = CategoryCounts.of(images_of(rng.normal(size=400), rng.normal(1.0, size=200)))
    whole = resampled(images, 400)
    monkeypatch.setattr(intervals, "LEFT_OUT", 64)
    some = resampled(images, 400)
    for key, one in whole.items():
        assert [len(group) for group in one.without] == [400, 200]
        assert [len(group) for group in some[key].without] == [64, 64]
        assert some[key].sizes == one.sizes == (400, 200)
        np.testing.assert_array_equal(some[key].samples, one.samples)
        (low, high), width = interval(one), np.ptp(interval(one))
        assert interval(some[key]) == (pytest.approx(low, abs=width / 50), pytest.approx(high, abs=width / 50))


def test_left_out_images_are_processed_in_parts(monkeypatch):
    images = CategoryCounts.of(images_of(*scores(0, 20, 20)))
    whole = resampled(images, 100)
    shapes = []

    def without(count, positions):
        shapes.append((len(positions), count))
        return resampling.without_each(count, positions)

    monkeypatch.setattr(intervals, "without_each", without)
    monkeypatch.setattr(intervals, "blocks", lambda rows, width: resampling.blocks(rows, width, values=120))
    for key, one in resampled(images, 100).items():
        np.testing.assert_array_equal(np.concatenate(one.without), np.concatenate(whole[key].without))
    assert shapes == [(3, 40)] * 6 + [(2, 40)] + [(3, 40)] * 6 + [(2, 40)]
