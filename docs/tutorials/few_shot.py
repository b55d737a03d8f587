# %% [markdown]
# # Few-shot on your own product
#
# Eight normal images of a product are enough to compare each new image with them. For photos, replace the
# folders with yours, and the tiny CLIP with a DINOv2 ([backbones](../backbones.md)). The command `afclip adapt`
# does this for the ready model.

# %%
from pathlib import Path

import numpy as np
from PIL import Image

from afclip_lightning import load
from afclip_lightning.datasets.synthetic import Synthetic
from afclip_lightning.metrics import AnomalyMetrics

Synthetic("drawn", ["circuit_board"], train_normal=8, test_normal=10, test_anomalous=10).prepare_data()
good = sorted(Path("drawn/circuit_board/train/good").glob("*.png"))
tested = sorted(Path("drawn/circuit_board/test").rglob("*.png"))
labels = np.array([path.parent.name != "good" for path in tested])

BACKBONE = {"backbone.model": "tiny-8-112", "backbone.weights": "embedded", "backbone.image_size": 112}
LAYERS = {"layers": [2, 4, 6, 8]}


# %% [markdown]
# `PatchRarity` sees each image by itself. `NearestNeighbours` compares its patches with those of the normal
# images. A circuit board has many parts that occur once, and `PatchRarity` takes them for anomalies. The gain
# depends on the product: on the drawn toothbrush there is none.


# %%
def scores_of(model):
    return np.array([result.score for result in model.predict_many(tested)])


alone = scores_of(load("PatchRarity", arguments={**BACKBONE, **LAYERS}))
model = load("NearestNeighbours", arguments={**BACKBONE, **LAYERS, "k_shot": 8}, few_shot=good)
compared = scores_of(model)
for name, scores in (("zero-shot, PatchRarity", alone), ("8-shot, NearestNeighbours", compared)):
    order = scores[labels][:, None] > scores[~labels]
    print(f"{name}: {order.mean():.0%} of the pairs of a defect and a normal image are in the right order")

# %% [markdown]
# That share of pairs is the image AUROC, and 50 % is chance. With 10 images of each kind, its standard error is about
# 12 percentage points (formula of Hanley and McNeil), so the 35 % of `PatchRarity` do not differ significantly from
# chance. Test a decision on more images, with [intervals](../intervals.md). With masks, `AnomalyMetrics` also measures
# the maps:

# %%
masks = [Path(str(path).replace("/test/", "/ground_truth/").replace(".png", "_mask.png")) for path in tested]
results = model.predict_many(tested)
metrics = AnomalyMetrics()
metrics.update(
    np.stack([result.anomaly_map for result in results]),
    np.stack([np.array(Image.open(mask)) > 0 if mask.exists() else np.zeros((224, 224), bool) for mask in masks]),
    compared,
    labels.astype(int),
)
for name, value in metrics.compute().items():
    print(f"{name}: {float(value):.3f}")

# %% [markdown]
# The overlays of the three images with the highest scores:

# %%
worst = [results[i] for i in np.argsort(compared)[-3:]]
Image.fromarray(np.hstack([result.overlay() for result in worst])).save("highest_scores.png")
