# %% [markdown]
# # Write a method
#
# A method takes frozen features and returns a score and a map. This one trains nothing: it measures how far
# each patch is from the mean patch of its image. In the package it would be a file of its own,
# `afclip_lightning/methods/off_centre.py`; [Contributing](../../CONTRIBUTING.md#a-method) says which files go
# with it. The types of the arguments are needed: by them the command line reads a
# [config](../training.md#options-and-configs).

# %%
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.scoring import upsample_and_smooth
from afclip_lightning.datasets.synthetic import Synthetic
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.metrics import AnomalyMetrics
from afclip_lightning.types import AnomalyPrediction


class OffCentre(AnomalyMethod):
    """Half the cosine distance of each patch to the mean patch of its image. Nothing is trained."""

    def __init__(self, backbone: ClipBackbone, layer: int = 8):
        super().__init__(backbone, backbone.spec([layer]), optimizer=None)
        self.save_hyperparameters(ignore=["backbone"], logger=False)

    def score(self, features, batch):
        patches = F.normalize(features.tokens[0][:, 1:].float(), dim=-1)  # the first token is the class token
        distance = (1 - F.cosine_similarity(patches, patches.mean(dim=1, keepdim=True), dim=-1)) / 2  # [B, N]
        patch_map = distance.unflatten(1, features.grid)
        anomaly_map = upsample_and_smooth(patch_map, self.spec.image_size, sigma=4.0)
        return AnomalyPrediction(distance.amax(dim=1), anomaly_map)


# %% [markdown]
# The backbone is the tiny CLIP of the package. A dataset has loaders once `connect` gives it the preprocessing of
# the backbone.

# %%
method = OffCentre(ClipBackbone(model="tiny-8-112", weights="embedded", image_size=112))
data = Synthetic("drawn", ["metal"], train_normal=2, test_normal=8, test_anomalous=8, num_workers=0)
data.prepare_data()
loader = data.connect(method.preprocess).test_dataloader()

metrics, rows = AnomalyMetrics(), []
with torch.no_grad():
    for batch in loader:
        features = method.backbone.encode_image(batch.image, method.spec)
        prediction = method.score(features, batch)
        metrics.update(prediction.anomaly_map, batch.mask, prediction.pred_score, batch.label)
        rows += list(zip(batch.image, batch.mask, prediction.anomaly_map, strict=True))
for name, value in metrics.compute().items():
    print(f"{name}: {float(value):.3f}")


# %% [markdown]
# Look at the maps before you trust a number: image, mask and map of three defects.


# %%
def grey(plane):
    plane = plane.float() - plane.float().min()
    return (255 * plane / plane.max().clamp(min=1e-9)).byte().numpy()


defects = [row for row in rows if row[1].any()][:3]
sheet = [np.hstack([grey(image.mean(0)), grey(mask), grey(anomaly_map)]) for image, mask, anomaly_map in defects]
Image.fromarray(np.vstack(sheet)).resize((672, 672)).save("maps.png")
