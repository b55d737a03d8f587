import sys

import numpy as np
import pytest

from afclip_lightning.metrics import AnomalyMetrics, UndefinedMetricError

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


@pytest.fixture
def metrics() -> AnomalyMetrics:
    rng = np.random.default_rng(0)
    masks = (rng.random((4, 20, 20)) < 0.1).astype(np.uint8)
    metrics = AnomalyMetrics(fpr_limit=0.2, tolerance=1)
    metrics.update(rng.standard_normal(masks.shape) + masks, masks)
    return metrics


def test_the_curves_are_those_of_the_metrics(metrics, tmp_path):
    figure, axes = metrics.plot()
    values = metrics.compute()
    roc, precision_recall, pro = axes
    for axis, key in ((roc, "pixel_auroc"), (precision_recall, "pixel_ap"), (pro, "pixel_pro")):
        assert axis.get_title().endswith(f" {values[key]:.4f}")
    x, y = roc.lines[0].get_data()
    assert np.trapezoid(y, x) == pytest.approx(values["pixel_auroc"], abs=1e-9)
    recall, precision = precision_recall.lines[0].get_data()
    assert np.diff(recall, prepend=0) @ precision == pytest.approx(values["pixel_ap"], abs=1e-9)
    fpr, overlap = pro.lines[0].get_data()
    assert (fpr[0], overlap[0], fpr[-1], overlap[-1]) == (0, 0, 1, 1)
    figure.savefig(tmp_path / "curves.png")
    matplotlib.pyplot.close(figure)


def test_on_axes_of_ones_own(metrics):
    figure, own = matplotlib.pyplot.subplots(3)
    assert metrics.plot(own)[0] is figure
    assert all(len(axis.lines) for axis in own)
    with pytest.raises(ValueError, match="three axes, got 2"):
        metrics.plot(own[:2])
    matplotlib.pyplot.close(figure)


def test_nothing_to_draw():
    with pytest.raises(UndefinedMetricError):
        AnomalyMetrics().plot()


def test_without_matplotlib_the_way_to_get_it_is_named(metrics, monkeypatch):
    monkeypatch.delitem(sys.modules, "afclip_lightning.metrics.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'afclip_lightning\[plots\]'"):
        metrics.plot()
