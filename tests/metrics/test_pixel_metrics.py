import multiprocessing
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed

from afclip_lightning.metrics import AnomalyMetrics, aggregate
from tests.reference import metrics_naive as naive

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "metrics.npz")
IMAGE_KEYS = {"image_auroc", "image_ap", "image_f1_max"}
PIXEL_KEYS = {"pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_pro"}


def stream(count=12, side=16, seed=0):
    """Returns pred_score, anomaly_map, label and mask of some images; every third is normal."""
    generator = torch.Generator().manual_seed(seed)
    label = (torch.arange(count) % 3 > 0).long()
    mask = (torch.rand(count, side, side, generator=generator) < 0.1).to(torch.uint8) * label[:, None, None].byte()
    # Scales far apart, so that the window of bins grows while the stream is read; some ties.
    maps = (torch.randn(count, side, side, generator=generator) + mask) * torch.logspace(-6, 3, count)[:, None, None]
    maps[:, ::2] = maps[:, ::2].round(decimals=2)
    return maps.amax((1, 2)), maps, label, mask


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
    metrics.update(maps.max((1, 2)), maps, GOLDEN["image_labels"], masks)
    bounds = metrics.error_bounds()
    values = metrics.compute()
    assert set(values) == IMAGE_KEYS | PIXEL_KEYS
    assert set(bounds) == (set() if exact else PIXEL_KEYS)
    for key, value in values.items():
        expected = GOLDEN[
            f"{kind}.pro_exact" if key == "pixel_pro" else f"{kind}.{key.replace('_', '.', 1).replace('_', '')}"
        ]
        assert abs(value - expected) <= max(bounds.get(key, 0), 1e-9)
    if kind == "continuous":  # from the bins alone, true ties cannot be told from those that binning makes
        assert all(bound < 2e-3 for bound in bounds.values())


scales = st.sampled_from([(0.0, 1.0), (-3.0, 6.0), (0.49, 0.02), (1e30, 1e37), (-1e-38, 1e-38), (0.5, 0.0)])


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
        metrics.update(maps.max((1, 2)), maps, labels, masks)
    maps = maps.astype(np.float32)

    expected = {}
    if labels.any() and not labels.all():
        scores = maps.max((1, 2)).tolist(), labels.tolist()
        expected |= {"image_auroc": naive.auroc(*scores), "image_ap": naive.average_precision(*scores)}
        expected |= {"image_f1_max": naive.f1_max(*scores)}
    if masks.any() and not masks.all():
        pixels = maps.ravel().tolist(), masks.ravel().tolist()
        expected |= {"pixel_auroc": naive.auroc(*pixels), "pixel_ap": naive.average_precision(*pixels)}
        expected |= {"pixel_f1_max": naive.f1_max(*pixels), "pixel_pro": naive.pro(maps, masks, 0.3)}
    assert exact.compute() == pytest.approx(expected, abs=1e-9)
    values, bounds = coarse.compute(), coarse.error_bounds()
    assert set(values) == set(expected)
    assert all(abs(values[key] - expected[key]) <= bounds.get(key, 0) + 1e-9 for key in expected)


def test_saturated_maps_equal_to_scikit_learn():
    from sklearn import metrics as sklearn_metrics  # here, so that the processes below start without it

    rng = np.random.default_rng(0)
    masks = (rng.random((6, 40, 40)) < 0.2).astype(np.uint8)
    maps = (rng.standard_normal(masks.shape) + masks).clip(0, 1).astype(np.float32)
    maps[:, :4] = 0.5
    values = computed((maps.max((1, 2)), maps, np.ones(6), masks), [slice(None)], exact=True)
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
    score, maps, label, mask = stream()
    halves = (maps / 1000).bfloat16()
    metrics, same = AnomalyMetrics(), AnomalyMetrics()
    metrics.update(score, halves, label, mask)
    same.update(score, halves.float(), label, mask)
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


SHARES = {
    2: ([[0, 1, 2, 3, 4, 5, 6], [7], [8]], [[9, 10], [11]]),
    3: ([[3, 4]], [], [[0, 1, 2], [5, 6, 7, 8, 9], [10, 11]]),
}


def _process(rank, folder):
    """Computes with 3 processes, one of which has seen nothing, then with 2 of them."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # compute() without update() is what is tested
    for world, shares in sorted(SHARES.items(), reverse=True):
        if rank >= world:
            return
        distributed.init_process_group("gloo", f"file://{folder}/store{world}", rank=rank, world_size=world)
        values = []
        for exact in (True, False):
            data, metrics = stream(), AnomalyMetrics(exact=exact)
            for batch in shares[rank]:
                metrics.update(*(part[batch] for part in data))
            low, shape = metrics.low.clone(), metrics.counts.shape
            values.append(metrics.compute())
            with metrics.sync_context():
                values.append(metrics.error_bounds())
            assert (metrics.low, metrics.counts.shape) == (low, shape)  # local again, ready for more
            metrics = AnomalyMetrics(exact=exact)
            assert metrics.compute() == {}  # nobody has seen anything
        torch.save(values, f"{folder}/{world}-{rank}.pt")
        distributed.destroy_process_group()


def test_any_number_of_processes_gives_the_same_bits(tmp_path):
    multiprocessing.set_forkserver_preload(["afclip_lightning.metrics", __name__])  # imported once for all three
    torch.multiprocessing.start_processes(_process, (tmp_path,), nprocs=3, start_method="forkserver")
    expected = []
    for exact in (True, False):
        metrics = AnomalyMetrics(exact=exact)
        metrics.update(*stream())
        expected += [metrics.compute(), metrics.error_bounds()]
    for world in SHARES:
        for rank in range(world):
            assert torch.load(tmp_path / f"{world}-{rank}.pt") == expected


def test_what_is_undefined_is_absent():
    score, maps, label, mask = stream()
    normal, anomalous = (label == 0).nonzero().flatten(), (label == 1).nonzero().flatten()
    data = score, maps, label, mask
    assert computed(data, [normal]) == {}
    assert set(computed(data, [anomalous])) == PIXEL_KEYS  # they have normal pixels
    everything = score, maps, label, label[:, None, None].expand_as(maps).contiguous()
    assert computed(everything, [anomalous]) == {}  # no normal pixel
    assert set(computed((score, maps, label, mask * 0), [slice(None)])) == IMAGE_KEYS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert AnomalyMetrics().compute() == {}


@pytest.mark.parametrize("exact", [True, False])
def test_an_unknown_mask_takes_the_pixel_metrics_away(exact):
    score, maps, label, mask = stream()
    known = torch.ones(12, dtype=torch.bool)
    known[0] = False  # normal: its mask is empty, whatever is said of it
    metrics = AnomalyMetrics(exact=exact)
    metrics.update(score, maps, label, mask, known)
    whole = metrics.compute()
    assert whole == computed((score, maps, label, mask), [slice(None)], exact=exact)
    known[1] = False
    metrics.update(score, maps, label, mask, known)
    assert set(metrics.compute()) == IMAGE_KEYS
    assert metrics.error_bounds() == {}


def _with(index, value):
    return lambda tensor: tensor.index_fill(0, torch.tensor([index]), value)


@pytest.mark.parametrize(
    ("argument", "change", "message"),
    [
        (1, _with(2, float("nan")), "c.png: its anomaly map"),
        (1, _with(3, float("inf")), "d.png: its anomaly map"),
        (1, _with(3, float("-inf")), "d.png: its anomaly map"),
        (1, lambda maps: maps.double().index_fill(0, torch.tensor([1]), 1e300), "b.png: its anomaly map"),
        (0, _with(1, float("nan")), "b.png: its image score"),
        (2, _with(1, 2), "b.png: its label"),
        (2, _with(1, 0), "b.png: its label is 0"),
        (0, lambda score: score[:3], "a.png, b.png, c.png, d.png: expected"),
        (0, lambda score: score[:, None], "a.png, b.png, c.png, d.png: expected"),
        (1, lambda maps: maps[:, None], "a.png, b.png, c.png, d.png: expected"),
        (1, lambda maps: maps[:, :0], "a.png, b.png, c.png, d.png: expected"),
        (1, lambda maps: maps[0, 0, 0], "a.png, b.png, c.png, d.png: expected"),
        (2, lambda label: label[:3], "a.png, b.png, c.png, d.png: expected"),
        (3, lambda mask: mask[:, 1:], "a.png, b.png, c.png, d.png: expected"),
        (3, lambda mask: mask[:1], "a.png, b.png, c.png, d.png: expected"),
        (4, lambda known: known[:3], "a.png, b.png, c.png, d.png: expected"),
        (5, lambda names: names[:3], "a.png, b.png, c.png: expected"),
    ],
)
def test_what_is_refused_is_named_and_leaves_the_state(argument, change, message):
    batch = [part[:4] for part in stream()]
    batch += [torch.ones(4, dtype=torch.bool), ["a.png", "b.png", "c.png", "d.png"]]
    metrics = AnomalyMetrics()
    metrics.update(*batch)
    before = metrics.compute()
    batch[argument] = change(batch[argument])
    with pytest.raises(ValueError, match=message):
        metrics.update(*batch)
    assert metrics.compute() == before
    if argument < 5:
        with pytest.raises(ValueError, match=r"image \d of the batch"):
            metrics.update(*batch[:5])


@pytest.mark.parametrize("arguments", [{"bits": 9}, {"bits": 25}, {"fpr_limit": 0.0}, {"fpr_limit": 1.5}])
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match="must be in"):
        AnomalyMetrics(**arguments)


def test_aggregate_says_over_how_many():
    mean, number = aggregate({"a": {"image_auroc": 0.5, "pixel_pro": 0.25}, "b": {"image_auroc": 1.0}, "c": {}})
    assert mean == {"image_auroc": 0.75, "pixel_pro": 0.25}
    assert number == {"image_auroc": 2, "pixel_pro": 1}
    assert aggregate({}) == ({}, {})
