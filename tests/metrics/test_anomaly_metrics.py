import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afclip_lightning.metrics import AnomalyMetrics, region_areas
from tests.reference import metrics_naive as naive
from tests.support.metric_stream import stream

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "metrics.npz")
IMAGE_KEYS = {"image_auroc", "image_ap", "image_f1_max"}
PIXEL_KEYS = {"pixel_ap", "pixel_auroc", "pixel_f1_max", "pixel_pro", "pixel_pro_05"}


def computed(data, batches, **arguments):
    metrics = AnomalyMetrics(**arguments)
    for index in batches:
        metrics.update(*(part[index] for part in data))
    return metrics.compute()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", ["continuous", "ties"])
def test_recorded_values(kind, exact):
    maps, masks = GOLDEN["metric.maps" if kind == "continuous" else "metric.maps_ties"], GOLDEN["metric.masks"]
    metrics = AnomalyMetrics(exact=exact)
    metrics.update(maps, masks, maps.max((1, 2)), GOLDEN["image_labels"])
    values, bounds = metrics.compute(), metrics.result().error_bounds
    assert set(values) == IMAGE_KEYS | PIXEL_KEYS
    assert set(bounds) == (set() if exact else PIXEL_KEYS)
    recorded = {key: f"{kind}.{key.replace('_', '.', 1).replace('_', '')}" for key in values} | {
        "pixel_pro": f"{kind}.pro_exact",
        "pixel_pro_05": f"{kind}.pro_exact_limit005",
    }
    for key, value in values.items():
        assert abs(value - GOLDEN[recorded[key]]) <= max(bounds.get(key, 0), 1e-9)
    if kind == "continuous":  # from the bins alone, true ties cannot be told from those that binning makes
        assert all(bound < 2e-3 for bound in bounds.values())


scales = st.sampled_from([(0.0, 1.0), (-3.0, 6.0), (0.49, 0.02), (1e30, 1e37), (-1e-38, 1e-38), (0.5, 0.0)])


def expected_of(maps, masks):
    """Returns the results of the loops, in Python numbers, which represent the values of the maps exactly."""
    labels, expected = masks.any((1, 2)), {}
    if labels.any() and not labels.all():
        scores = maps.max((1, 2)).tolist(), labels.astype(int).tolist()
        expected |= {"image_auroc": naive.auroc(*scores), "image_ap": naive.average_precision(*scores)}
        expected |= {"image_f1_max": naive.f1_max(*scores)}
    if masks.any() and not masks.all():
        pixels = maps.ravel().tolist(), masks.ravel().tolist()
        expected |= {"pixel_auroc": naive.auroc(*pixels), "pixel_ap": naive.average_precision(*pixels)}
        expected |= {"pixel_f1_max": naive.f1_max(*pixels), "pixel_pro": naive.pro(maps, masks, 0.3)}
        expected |= {"pixel_pro_05": naive.pro(maps, masks, 0.05)}
    return expected


# Neighbours in float64 and whole numbers that float32 merges; magnitudes that it cannot hold, or holds unevenly.
wide_maps = st.sampled_from(
    [
        lambda levels: 1 - 1e-9 * (1 - levels / 1000),
        lambda levels: -1 + 1e-12 * levels,
        lambda levels: levels.astype(np.int64) + 2**40,
        lambda levels: levels.astype(np.uint64) + np.uint64(2**52),
        lambda levels: levels.astype(np.uint32) + np.uint32(2**31),
        lambda levels: (levels - 500) * 1e297,
        lambda levels: (levels - 500) * 5e-324,
        lambda levels: levels * 1e-42,
        lambda levels: np.where(levels % 2, -0.0, 0.0) + (levels // 100) * 1e-310,
        lambda levels: 10.0 ** (0.6 * (levels - 500)),
        lambda levels: (levels / 1000 + 1e-9 * (levels % 7)).astype(">f8")[:, ::-1],
    ]
)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_float64_and_whole_numbers_equal_to_the_loops(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    shape = tuple(data.draw(st.integers(1, n)) for n in (4, 4, 3))
    maps = data.draw(wide_maps)(rng.integers(0, data.draw(st.sampled_from([3, 1000])), shape))
    masks = (rng.random(shape) < data.draw(st.sampled_from([0.1, 0.5]))).astype(np.uint8)
    exact, coarse, cut = AnomalyMetrics(exact=True), AnomalyMetrics(tolerance=1), AnomalyMetrics(tolerance=1)
    for metrics in (exact, coarse):
        metrics.update(maps, masks, maps.max((1, 2)))
    for image, mask in zip(maps, masks, strict=True):
        cut.update(image[None], mask[None], image.max(keepdims=True)[0])
    expected = expected_of(maps, masks)
    assert exact.compute() == pytest.approx(expected, abs=1e-9)
    values, bounds = coarse.compute(), coarse.result().error_bounds
    assert cut.compute() == values
    assert set(values) == set(expected)
    assert all(abs(values[key] - expected[key]) <= bounds.get(key, 0) + 1e-9 for key in expected)


@pytest.mark.parametrize("exact", [True, False])
def test_scores_that_float32_merges_are_ranked(exact):
    rng = np.random.default_rng(0)
    mask = np.zeros((2, 64, 64), np.uint8)
    mask[0, 10:30, 10:30] = 1
    maps = rng.random(mask.shape) / 2 + 0.45 * mask
    expected = computed((maps, mask, maps.max((1, 2))), [slice(None)], exact=True)
    for same, limit in (
        (1 - 1e-9 * (1 - maps), 1e-4),
        ((maps * 1e6).astype(np.int64) + 2**40, 1e-4),
        ((maps * 1e6).astype(np.uint64) + np.uint64(2**44), 1e-4),
    ):
        metrics = AnomalyMetrics(exact=exact)
        metrics.update(same, mask, same.max((1, 2)))
        result = metrics.result()
        assert all(bound < limit for bound in result.error_bounds.values())
        assert result.metrics == pytest.approx(expected, abs=1e-5)
        lowest = np.nextafter(result.thresholds["pixel_f1_max"], np.inf)
        assert lowest in same or not exact


@pytest.mark.parametrize("exact", [True, False])
def test_whole_numbers_that_float64_merges_are_counted_in_the_bounds(exact):
    levels = np.arange(16).reshape(2, 2, 4)
    mask = np.zeros(levels.shape, np.uint8)
    mask[1, 1] = 1
    for maps in (levels.astype(np.uint64) + np.uint64(2**63), levels.astype(np.int64) - 2**62):
        metrics = AnomalyMetrics(exact=exact)
        metrics.update(maps, mask, maps.max((1, 2)))
        values, bounds = metrics.compute(), metrics.result().error_bounds
        expected = expected_of(maps, mask)
        assert bounds["pixel_auroc"] > 0.1
        assert bounds["image_auroc"] == 0.5
        assert all(abs(values[key] - expected[key]) <= bounds[key] + 1e-9 for key in expected)


@pytest.mark.slow
def test_float32_and_float64_in_one_stream():
    maps, mask, score, label = stream()
    finer = maps.double() * (1 + 1e-12)
    mixed = AnomalyMetrics(), AnomalyMetrics(), AnomalyMetrics(exact=True)
    for metrics, order in zip(mixed, (range(12), range(11, -1, -1), range(12)), strict=True):
        for i in order:
            of = slice(i, i + 1)
            map_ = finer[of] if i % 2 else maps[of]
            metrics.update(map_, mask[of], map_.amax((1, 2)), label[of])
    one, other, exact = (metrics.compute() for metrics in mixed)
    assert one == other
    bounds = mixed[0].result().error_bounds
    assert all(abs(one[key] - exact[key]) <= bounds.get(key, 0) + 1e-12 for key in exact)
    assert one == pytest.approx(computed((maps, mask, score, label), [slice(None)]), abs=1e-3)
    first, second = AnomalyMetrics(), AnomalyMetrics()
    first.update(maps[:5], mask[:5], score[:5], label[:5])
    second.update(finer[5:], mask[5:], finer[5:].amax((1, 2)), label[5:])
    for left, right in ((first, second), (second, first)):
        both = AnomalyMetrics()
        both.merge_state(left)
        both.merge_state(right)
        whole = AnomalyMetrics()
        whole.update(maps[:5], mask[:5], score[:5], label[:5])
        whole.update(finer[5:], mask[5:], finer[5:].amax((1, 2)), label[5:])
        assert both.result() == whole.result()


@pytest.mark.parametrize("values", [np.zeros((1, 2, 2), np.complex64), np.zeros((1, 2, 2), "U3")])
def test_what_is_no_number_is_refused(values):
    with pytest.raises(ValueError, match="expected numbers of up to 64 bits"):
        AnomalyMetrics().update(values, np.zeros((1, 2, 2), np.uint8))


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(st.data())
def test_equal_to_the_loops(data):
    """Ties, constant maps, one pixel, huge and negative scores, scores squeezed or saturated, float16."""
    count, height, width = (data.draw(st.integers(1, n)) for n in (4, 4, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    offset, scale = data.draw(scales)
    levels = data.draw(st.sampled_from([2, 5, 1000]))
    maps = (offset + scale * rng.integers(0, levels, (count, height, width)) / (levels - 1)).astype(np.float32)
    if data.draw(st.booleans()) and abs(maps).max() < 6e4:
        maps = maps.astype(np.float16)
    masks = (rng.random(maps.shape) < data.draw(st.sampled_from([0.1, 0.5, 1.0]))).astype(np.uint8)
    labels = masks.any((1, 2)).astype(np.int64)
    exact, coarse = AnomalyMetrics(exact=True), AnomalyMetrics()
    for metrics in (exact, coarse):
        metrics.update(maps, masks, maps.max((1, 2)), labels)
    maps = maps.astype(np.float32)

    expected = expected_of(maps, masks)
    assert exact.compute() == pytest.approx(expected, abs=1e-9)
    values, bounds = coarse.compute(), coarse.result().error_bounds
    assert set(values) == set(expected)
    assert all(abs(values[key] - expected[key]) <= bounds.get(key, 0) + 1e-9 for key in expected)


def test_saturated_maps_equal_to_scikit_learn():
    from sklearn import metrics as sklearn_metrics  # here, so that the processes below start without it

    rng = np.random.default_rng(0)
    masks = (rng.random((6, 40, 40)) < 0.2).astype(np.uint8)
    maps = (rng.standard_normal(masks.shape) + masks).clip(0, 1).astype(np.float32)
    maps[:, :4] = 0.5
    values = computed((maps, masks, maps.max((1, 2)), np.ones(6)), [slice(None)], exact=True)
    labels, scores = masks.ravel(), maps.ravel()
    assert set(values) == PIXEL_KEYS
    assert values["pixel_auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert values["pixel_ap"] == pytest.approx(sklearn_metrics.average_precision_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("exact", [True, False])
def test_any_cut_and_any_order_give_the_same_bits(exact):
    data = stream()
    whole = computed(data, [slice(None)], exact=exact)
    assert set(whole) == IMAGE_KEYS | PIXEL_KEYS
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    for batches in (order.split(1), order.split(5), torch.arange(11, -1, -1).split([1, 8, 3])):
        assert computed(data, batches, exact=exact) == whole


def test_half_precision_maps_are_counted_in_float32():
    maps, mask, score, label = stream()
    halves = (maps / 1000).bfloat16()
    metrics, same = AnomalyMetrics(), AnomalyMetrics()
    metrics.update(halves, mask, score, label)
    same.update(halves.float(), mask, score, label)
    assert metrics.compute() == same.compute()


def test_merge_forward_and_reset():
    data = stream()
    whole = computed(data, [slice(None)])
    for exact in (True, False):
        first, second, empty = (AnomalyMetrics(exact=exact) for _ in range(3))
        first.update(*(part[:5] for part in data))
        second.update(*(part[5:] for part in data))
        other = second.metric_state
        first.merge_state(empty)
        first.merge_state(second)
        assert first.compute() == computed(data, [slice(None)], exact=exact)
        assert torch.equal(other["counts"], second.counts)
        empty.merge_state(first)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # computed without an update of its own
            assert empty.compute() == first.compute()
    metrics = AnomalyMetrics()
    batch_value = metrics(*(part[:5] for part in data))
    assert batch_value == computed(data, [slice(0, 5)])
    metrics(*(part[5:] for part in data))
    assert metrics.compute() == whole
    metrics.reset()
    metrics.update(*data)
    assert metrics.compute() == whole


def test_what_is_undefined_is_absent():
    maps, mask, score, label = stream()
    normal, anomalous = (label == 0).nonzero().flatten(), (label == 1).nonzero().flatten()
    assert computed((maps, mask, score, label), [normal]) == {}
    assert set(computed((maps, mask, score, label), [anomalous])) == PIXEL_KEYS  # they have normal pixels
    everything = label[:, None, None].expand_as(maps).contiguous()
    assert computed((maps, everything, score, label), [anomalous]) == {}  # no normal pixel
    assert set(computed((maps, everything, score, label), [slice(None)])) == IMAGE_KEYS | PIXEL_KEYS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert AnomalyMetrics().compute() == {}


def test_maps_and_masks_are_enough():
    maps, mask, score, label = stream()
    whole = computed((maps, mask, score, label), [slice(None)])
    metrics = AnomalyMetrics()
    metrics.update(maps.numpy(), mask.numpy())
    assert metrics.compute() == {key: value for key, value in whole.items() if key in PIXEL_KEYS}
    metrics.update(maps, mask, score)  # of some images only: the others would be left out of the ranking
    assert set(metrics.compute()) == PIXEL_KEYS


def test_regions_labelled_before_give_the_same_bits():
    maps, mask, score, label = stream()
    area = torch.from_numpy(np.stack([region_areas(m) for m in mask.numpy()]))
    metrics = AnomalyMetrics()
    metrics.update(maps, mask, score, label, region_area=area)
    assert metrics.compute() == computed((maps, mask, score, label), [slice(None)])
    metrics.reset()
    metrics.update(maps, mask, score, label, region_area=area.clamp(max=1))  # taken as it is, not found again
    assert metrics.compute()["pixel_pro"] != computed((maps, mask, score, label), [slice(None)])["pixel_pro"]


@pytest.mark.parametrize("exact", [True, False])
def test_an_unknown_mask_takes_the_pixel_metrics_away(exact):
    maps, mask, score, label = stream()
    known = torch.ones(12, dtype=torch.bool)
    known[0] = False  # normal: its mask is empty, whatever is said of it
    metrics = AnomalyMetrics(exact=exact)
    metrics.update(maps, mask, score, label, known)
    whole = metrics.compute()
    assert whole == computed((maps, mask, score, label), [slice(None)], exact=exact)
    known[1] = False
    mask[1] = 0
    metrics.update(maps, mask, score, label, known)
    assert set(metrics.compute()) == IMAGE_KEYS
    assert metrics.result().error_bounds == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["squeezed", "saturated", "half", "integers", "unbounded", "signed"])
def test_the_bound_is_within_the_tolerance(kind, recwarn):
    """On scores that bins of a fixed range cannot separate, although a million pixels have few different scores."""
    rng = np.random.default_rng(0)
    masks = np.zeros((4, 512, 512), np.uint8)
    masks[1:, 100:180, 200:300] = 1
    noise = rng.standard_normal(masks.shape, np.float32) + 1.5 * masks
    maps = {
        "squeezed": (0.49 + 0.02 / (1 + np.exp(-noise))).astype(np.float32),  # all float64 apart would be too many
        "saturated": noise.clip(0, 1),
        "half": (1 / (1 + np.exp(-noise))).astype(np.float16),
        "integers": np.rint(40 * noise + 200).clip(0, 255).astype(np.uint8),
        "unbounded": 1e4 * np.exp(noise),
        "signed": 10 * noise,
    }[kind]
    exact, coarse = AnomalyMetrics(exact=True), AnomalyMetrics()
    for metrics in (exact, coarse):
        metrics.update(maps, masks)
    expected, result = exact.compute(), coarse.result()
    assert coarse.compute() == result.metrics
    assert not recwarn.list
    for key, value in result.metrics.items():
        assert abs(value - expected[key]) <= result.error_bounds[key] + 1e-12
        assert result.error_bounds[key] < (1e-8 if kind in ("squeezed", "half", "integers") else 1e-4)


def test_a_bound_over_the_tolerance_is_said():
    maps, mask, *_ = stream()
    metrics = AnomalyMetrics(bins=2**10)
    metrics.update(1 + maps.sigmoid(), mask)
    bound = metrics.result().error_bounds["pixel_ap"]
    assert bound > 1e-4
    with pytest.warns(UserWarning, match=rf"pixel_ap by up to {bound:.1e}.*over the tolerance of 0.0001.*exact=True"):
        metrics.compute()
    patient = AnomalyMetrics(bins=2**10, tolerance=1.0)
    patient.update(1 + maps.sigmoid(), mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patient.compute()


def test_thresholds_are_those_of_the_best_f1():
    maps, mask, score, label = stream()
    metrics = AnomalyMetrics(exact=True)
    metrics.update(maps, mask, score, label)
    result = metrics.result()
    assert (result.normal, result.anomalous) == (4, 8)
    for level, scores, labels in (("image", score, label), ("pixel", maps.flatten(), mask.flatten())):
        found = scores > result.thresholds[f"{level}_f1_max"]
        f1 = 2 * (found * labels).sum() / (found.sum() + labels.sum())
        assert f1.item() == pytest.approx(result.metrics[f"{level}_f1_max"], abs=1e-6)


def test_pro_by_name():
    maps, masks = GOLDEN["metric.maps"], GOLDEN["metric.masks"]
    for definition, key in (("legacy_afclip", "pro_afclip"), ("legacy_cflow", "pro_anomalyclip")):
        value = computed((maps, masks), [slice(0, 2), slice(2, 6)], exact=True, pro_definition=definition)["pixel_pro"]
        assert value == pytest.approx(GOLDEN[f"continuous.{key}"], abs=1e-5)
    constant = computed((maps * 0, masks), [slice(None)], exact=True, pro_definition="legacy_cflow")
    assert set(constant) == PIXEL_KEYS - {"pixel_pro", "pixel_pro_05"}  # 200 thresholds between equal scores


def _with(index, value):
    return lambda tensor: tensor.index_fill(0, torch.tensor([index]), value)


@pytest.mark.parametrize(
    ("argument", "change", "message"),
    [
        ("anomaly_map", _with(2, float("nan")), "c.png: its anomaly map"),
        ("anomaly_map", _with(3, float("inf")), "d.png: its anomaly map"),
        ("anomaly_map", _with(3, float("-inf")), "d.png: its anomaly map"),
        (
            "anomaly_map",
            lambda maps: maps.double().index_fill(0, torch.tensor([1]), float("inf")),
            "b.png: its anomaly map",
        ),
        ("pred_score", _with(1, float("nan")), "b.png: its image score"),
        ("label", _with(1, 2), "b.png: its label is neither"),
        ("label", _with(1, 0), "b.png: its label is 0"),
        ("mask", _with(2, 0), "c.png: its label is 1"),
        ("pred_score", lambda score: score[:3], "a.png, b.png, c.png, d.png: expected"),
        ("pred_score", lambda score: score[:, None], "a.png, b.png, c.png, d.png: expected"),
        ("anomaly_map", lambda maps: maps[:, None], "a.png, b.png, c.png, d.png: expected"),
        ("anomaly_map", lambda maps: maps[:, :0], "a.png, b.png, c.png, d.png: expected"),
        ("anomaly_map", lambda maps: maps[0, 0, 0], "a.png, b.png, c.png, d.png: expected"),
        ("label", lambda label: label[:3], "a.png, b.png, c.png, d.png: expected"),
        ("mask", lambda mask: mask[:, 1:], r"a.png, b.png, c.png, d.png: expected.*mask \[4, 15, 16\]"),
        ("mask", lambda mask: mask[:1], "a.png, b.png, c.png, d.png: expected"),
        ("mask_known", lambda known: known[:3], "a.png, b.png, c.png, d.png: expected"),
        ("region_area", lambda area: area[:, :3], "a.png, b.png, c.png, d.png: expected"),
        ("names", lambda names: names[:3], "a.png, b.png, c.png: expected"),
    ],
)
def test_what_is_refused_is_named_and_leaves_the_state(argument, change, message):
    batch = dict(zip(("anomaly_map", "mask", "pred_score", "label"), (part[:4] for part in stream()), strict=True))
    batch["mask_known"], batch["names"] = torch.ones(4, dtype=torch.bool), ["a.png", "b.png", "c.png", "d.png"]
    batch["region_area"] = batch["mask"].int()
    metrics = AnomalyMetrics()
    metrics.update(**batch)
    before = metrics.compute()
    batch[argument] = change(batch[argument])
    with pytest.raises(ValueError, match=message):
        metrics.update(**batch)
    assert metrics.compute() == before
    if batch.pop("names") and argument != "names":
        with pytest.raises(ValueError, match=r"image \d of the batch"):
            metrics.update(**batch)


def test_a_defect_lost_in_resizing_may_be_accepted():
    maps, mask, score, label = stream()
    metrics = AnomalyMetrics()
    metrics.update(maps, mask * 0, score, label, allow_empty_mask=True)
    assert set(metrics.compute()) == IMAGE_KEYS


@pytest.mark.parametrize(
    "arguments",
    [
        {"bins": 2**9},
        {"bins": 2**23},
        {"fpr_limit": 0.0},
        {"fpr_limit": 1.5},
        {"fpr_limit": float("nan")},
        {"pro_definition": "none"},
        {"tolerance": -1.0},
        {"tolerance": float("nan")},
    ],
)
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match="must be in"):
        AnomalyMetrics(**arguments)


def test_other_definitions_of_pro_need_all_scores():
    with pytest.raises(ValueError, match="'mvtec' needs exact=True"):
        AnomalyMetrics(pro_definition="mvtec")
