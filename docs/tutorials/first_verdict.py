# %% [markdown]
# # First image to verdict
#
# A model gives an image a score and a map. A threshold makes a verdict of the score. This page uses
# `PatchRarity`, a method that trains nothing, on the tiny CLIP that comes with the package. That model knows
# drawn pictures only: for photos, write `load("real")`.

# %%
from pathlib import Path

import numpy as np
from PIL import Image

from afclip_lightning import load
from afclip_lightning.datasets.synthetic import Synthetic

Synthetic("drawn", ["metal"], train_normal=8, test_normal=4, test_anomalous=4).prepare_data()  # sheets of brushed metal
normal = sorted(Path("drawn/metal/train/good").glob("*.png"))
anomalous = sorted(path for path in Path("drawn/metal/test").rglob("*.png") if path.parent.name != "good")

BACKBONE = {"backbone.model": "tiny-8-112", "backbone.weights": "embedded", "backbone.image_size": 112}
model = load("PatchRarity", arguments={**BACKBONE, "layers": [2, 4, 6, 8]})
result = model.predict(anomalous[0])
print(f"score {result.score:.3f}, verdict {result.anomalous}, map {result.anomaly_map.shape}")

# %% [markdown]
# The verdict is `None`: there is no threshold yet. The highest score of eight normal images is a simple one.
# The command `afclip calibrate` does better: it has a rate of false alarms, an interval and checks of the
# images.

# %%
scores = [model.predict(path).score for path in normal]
model.threshold = max(scores)
model.pixel_threshold = float(
    np.quantile(np.concatenate([model.predict(path).anomaly_map.ravel() for path in normal]), 0.999)
)
print(f"normal images score {min(scores):.3f} to {max(scores):.3f}")

# %%
for path in anomalous:
    result = model.predict(path)
    print(
        f"{path.parent.name:<12} score {result.score:.3f} anomalous {result.anomalous}, {len(result.regions)} regions"
    )

# %% [markdown]
# The overlay has the map in colours, and the contours of the regions above the pixel threshold.

# %%
shown = [model.predict(path) for path in anomalous]
Image.fromarray(np.hstack([result.overlay() for result in shown])).save("overlays.png")
