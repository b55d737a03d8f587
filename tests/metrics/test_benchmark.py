"""The benchmark measures the stated quantities, on data small enough for a test."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments/metrics/benchmark.py"
SPEC = importlib.util.spec_from_file_location("benchmark", SCRIPT)
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)


def test_the_data_are_as_described():
    maps, masks = benchmark.make_data(83, 40)
    assert masks.any((1, 2)).sum() == 63
    assert 0 < maps.min() < maps.max() < 1
    assert maps[masks == 1].mean() > maps[masks == 0].mean()


def test_all_are_measured_against_the_exact_values():
    data = benchmark.make_data(12, 120)
    exact, ours = benchmark.exact_sort(*data), benchmark.ours(*data)
    sklearn = benchmark.scikit_learn(*data)
    assert sklearn == pytest.approx({key: exact[key] for key in ("auroc", "ap")}, abs=1e-9)
    torchmetrics = benchmark.torchmetrics_of(None)(*data)
    assert torchmetrics == pytest.approx(sklearn, abs=1e-5)  # in float32
    for key, value in exact.items():
        assert abs(ours[key] - value) <= ours[f"{key}_bound"] + 1e-12
        assert ours[f"{key}_bound"] < 1e-3


def test_the_table_holds_ratios():
    values = {"auroc": 0.5, "ap": 0.25, "pro": 0.125}
    results = {
        "this project": {"seconds": 0.5, "memory": 20e6, "values": values},
        "exact, one sort (NumPy)": {"seconds": 5.0, "memory": 900e6, "values": dict(values)},
        "anomalib AUPRO": {"seconds": 2.0, "memory": 400e6, "values": {"pro": 0.1245}},
    }
    scaling = {scale: {"seconds": 0.5 * scale, "memory": 20e6} for scale in benchmark.SCALES}
    lines = benchmark.tables(results, scaling, 83).splitlines()
    assert lines[2].endswith("| 1.0× | 20 MB | 0e+00 | 0e+00 | 0e+00 |")
    assert lines[3].endswith("| 10.0× | 900 MB | reference | reference | reference |")
    assert lines[4] == "| anomalib AUPRO | PRO | 4.0× | 400 MB |  |  | 5e-04 |"
    assert lines[-1] == "| 830 | 1.00× | 20 MB |"


def test_intervals_are_of_the_same_metrics():
    data = benchmark.make_data(30, 80)
    plain, found = benchmark.ours(*data), benchmark.ours_with_intervals(*data)
    assert plain.items() - found.items() == {item for item in plain.items() if item[0].endswith("_bound")}
    for key in ("auroc", "ap", "pro", "image_auroc"):
        assert found[f"{key}_low"] < found[key] < found[f"{key}_high"]
    by_hand = benchmark.scikit_learn_samples(*data)
    assert found["auroc_low"] - 0.1 < by_hand["auroc"] < found["auroc_high"] + 0.1
