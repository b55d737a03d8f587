#!/bin/sh
# anomalib's PostProcessor calls the image normal whose score became the threshold. F1AdaptiveThreshold chooses among the scores of the
# validation images, and its F1 score counts `score >= threshold`. The label is then `score > threshold`. With one anomalous validation image,
# which all scores of normal ones are below, F1Max is 1.0, but its image is not found. With ten, one of them is missed.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip="python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target $work/packages"
$pip torch==2.15.0 lightning==2.6.6 torchmetrics==1.9.0 numpy==2.4.6
$pip --upgrade --no-deps anomalib==2.7.0
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

# the files of the post-processor and its metrics alone, without the packages that the rest of anomalib imports
root = Path(find_spec("anomalib").submodule_search_locations[0])
for name in ("anomalib", "anomalib.data", "anomalib.metrics", "anomalib.post_processing"):
    package = ModuleType(name)
    package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    sys.modules[name] = package
data, metrics = sys.modules["anomalib.data"], sys.modules["anomalib.metrics"]
data.Batch = data.InferenceBatch = SimpleNamespace
from anomalib.metrics.base import AnomalibMetric  # noqa: E402

metrics.AnomalibMetric = AnomalibMetric
from anomalib.metrics.f1_score import F1Max  # noqa: E402
from anomalib.metrics.min_max import MinMax  # noqa: E402
from anomalib.metrics.threshold.f1_adaptive_threshold import F1AdaptiveThreshold  # noqa: E402

metrics.MinMax, metrics.F1AdaptiveThreshold = MinMax, F1AdaptiveThreshold
from anomalib.post_processing.post_processor import PostProcessor  # noqa: E402


def batch(anomalous):
    """Returns a batch of 20 normal images with scores up to 0.3 and so many anomalous ones from 0.6 on."""
    scores = torch.cat([torch.linspace(0.1, 0.3, 20), torch.linspace(0.6, 0.9, anomalous)])
    empty = dict.fromkeys(("anomaly_map", "gt_mask", "pred_label", "pred_mask"))
    return SimpleNamespace(pred_score=scores, gt_label=torch.arange(len(scores)) >= 20, **empty)


print("anomalib", version("anomalib"))
for anomalous in (1, 10):
    processor, best = PostProcessor(), F1Max(fields=["pred_score", "gt_label"])
    best.update(batch(anomalous))
    processor.on_validation_batch_end(None, None, batch(anomalous))
    processor.on_validation_epoch_end(None, None)
    judged = batch(anomalous)
    processor.on_test_batch_end(None, None, judged)  # the same images
    found = int(judged.pred_label.sum())
    lowest = float(batch(anomalous).pred_score[20])
    print(f"F1Max {float(best.compute())}, threshold {float(processor.image_threshold):.2f}, lowest anomalous score {lowest:.2f};")
    print(f"  found {found} of {anomalous}")
    assert best.compute() == 1
    assert processor.image_threshold == lowest
    assert judged.pred_score[20] == 0.5
    assert found == anomalous - 1
PYTHON
