# %% [markdown]
# # Compare two methods, with intervals
#
# A test on twelve normal and twelve anomalous images is uncertain, and an interval shows how much. DeLong's test
# takes into account that both methods scored the same images. The command `afclip compare` does the same for
# whole runs, pixel metrics and many datasets ([comparing runs](../compare.md)).

# %%
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from afclip_lightning import load
from afclip_lightning.datasets.synthetic import Synthetic
from afclip_lightning.metrics.significance import delong, delong_difference

Synthetic("drawn", ["capsule"], train_normal=2, test_normal=12, test_anomalous=12).prepare_data()
tested = sorted(Path("drawn/capsule/test").rglob("*.png"))
labels = np.array([path.parent.name != "good" for path in tested]).astype(int)

BACKBONE = {"backbone.model": "tiny-8-112", "backbone.weights": "embedded", "backbone.image_size": 112}
METHODS = {"CLIP": {}, "PatchRarity": {"layers": [2, 4, 6, 8]}}
models = [load(name, arguments={**BACKBONE, **more}, category="capsule") for name, more in METHODS.items()]
scores = np.stack([[result.score for result in model.predict_many(tested)] for model in models])

# %% [markdown]
# Each AUROC with its 95 % interval, and then the difference:

# %%
auroc, covariance = delong(scores, labels)
spread = 1.96 * np.sqrt(np.diag(covariance))
for name, value, half in zip(METHODS, auroc, spread, strict=True):
    print(f"{name}: AUROC {value:.3f}, 95 % interval {max(value - half, 0):.3f} to {min(value + half, 1):.3f}")
difference = delong_difference(scores[0], scores[1], labels)
print(f"difference {difference.value:.3f}, interval {difference.low:.3f} to {difference.high:.3f}")
print(f"p = {difference.p_value:.2f}")

# %%
figure, axes = plt.subplots(figsize=(5, 1.6), layout="constrained")
axes.errorbar(auroc, list(METHODS), xerr=[spread, np.minimum(spread, 1 - auroc)], fmt="o", capsize=4)
axes.set(xlabel="AUROC with 95 % interval", xlim=(0, 1.05), ylim=(-0.5, 1.5))
figure.savefig("intervals.png", dpi=120)
