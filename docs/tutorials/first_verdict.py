# %% [markdown]
# # First image to verdict
#
# A model gives an image a score and an anomaly map. A threshold turns the score into a verdict. This page uses
# `PatchRarity`, a method that trains nothing, on the tiny CLIP that comes with the package. This CLIP knows
# drawn pictures only. For photos, use `load("real")`.

# %%
from pathlib import Path

import numpy as np
from PIL import Image

from afclip_lightning import load
from afclip_lightning.datasets.synthetic import Synthetic

# sheets of brushed metal
Synthetic("drawn", ["metal"], train_normal=8, test_normal=4, test_anomalous=4).prepare_data()
normal = sorted(Path("drawn/metal/train/good").glob("*.png"))
tested = sorted(Path("drawn/metal/test").rglob("*.png"))
anomalous = [path for path in tested if path.parent.name != "good"]

BACKBONE = {"backbone.model": "tiny-8-112", "backbone.weights": "embedded", "backbone.image_size": 112}
model = load("PatchRarity", arguments={**BACKBONE, "layers": [2, 4, 6, 8]})
result = model.predict(anomalous[0])
print(f"score {result.score:.3f}, verdict {result.anomalous}, map {result.anomaly_map.shape}")

# %% [markdown]
# The verdict is `None`, because there is no threshold yet. A simple threshold is the highest score of eight
# normal images. For the map, 99.9 % of the pixels of these images lie below the pixel threshold. The command
# `afclip calibrate` does better: it takes a false-positive rate, prints an interval and checks the images.

# %%
scores = [model.predict(path).score for path in normal]
model.threshold = max(scores)
model.pixel_threshold = float(
    np.quantile(np.concatenate([model.predict(path).anomaly_map.ravel() for path in normal]), 0.999)
)
print(f"normal images score {min(scores):.3f} to {max(scores):.3f}")

# %% [markdown]
# Images that the threshold has not seen: `good` ones are normal, the others are named after their defect.

# %%
for path in tested:
    result = model.predict(path)
    found = f"anomalous {result.anomalous}, {len(result.regions)} regions"
    print(f"{path.parent.name:<12} score {result.score:.3f} {found}")

# %% [markdown]
# An overlay shows the map in colours, and the contours of the regions above the pixel threshold. These are the
# anomalous images:

# %%
shown = [model.predict(path) for path in anomalous]
Image.fromarray(np.hstack([result.overlay() for result in shown])).save("overlays.png")
