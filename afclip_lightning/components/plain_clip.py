"""Plain CLIP: similarity of its image embedding, and of its patches, with the texts of the two states."""

import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.spec import FeatureSpec
from afclip_lightning.components.losses import image_cross_entropy
from afclip_lightning.components.scoring import anomaly_probability, similarity_logits, upsample_and_smooth
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures
from afclip_runtime.types import ImageSize


def last_patches(backbone: ClipBackbone, vv_from: int | None) -> FeatureSpec:
    """Returns the spec of the image embedding and of the last block's patches.

    Args:
        backbone: The backbone.
        vv_from: First block of the V-V path, which the patches then come from. `None` takes the original path.
    """
    last = [backbone.vision.depth]
    if vv_from is None:
        return backbone.spec(last, image_embedding=True)
    return backbone.spec(vv_layers=last, vv_from=vv_from, image_embedding=True)


def state_logits(backbone: ClipBackbone, features: ClipFeatures, text: Tensor, temperature: float) -> Tensor:
    """Returns the logits of the two states for the image embedding and the patches, `[B, 1 + N, 2]`, float32.

    Args:
        backbone: The backbone that projects the patches.
        features: Features of the backbone, with the image embedding and one tapped block of either path.
        text: `[2, D]`, or `[B, 2, D]` per image, L2-normalised. Row 0 is normal and row 1 abnormal.
        temperature: Divides the cosines.

    Reference: the baselines of WinCLIP, AnomalyCLIP and FAPrompt.
    """
    assert features.image_embedding is not None  # requested by the spec
    image = F.normalize(features.image_embedding.float(), dim=-1)[:, None]
    (tokens,) = features.vv_tokens or features.tokens
    patches = backbone.embed_tokens(tokens[:, 1:])
    return similarity_logits(torch.cat([image, patches], dim=1), text, temperature)


def prediction_of(logits: Tensor, grid: tuple[int, int], size: ImageSize, sigma: float = 0.0) -> AnomalyPrediction:
    """Returns the probability of the abnormal state of the image, and that of the patches as a map.

    Args:
        logits: Result of `state_logits`.
        grid: Patch grid.
        size: Size of the map, in pixels.
        sigma: Standard deviation of the Gaussian filter of the map, in pixels. 0 does not filter.
    """
    probability = anomaly_probability(logits)  # [B, 1 + N]
    patch_map = probability[:, 1:].unflatten(1, grid)
    return AnomalyPrediction(probability[:, 0], upsample_and_smooth(patch_map, size, sigma))


def image_loss(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Returns the cross entropy of the images whose label is known as `total`. Masks are not used.

    Args:
        logits: Result of `state_logits`.
        batch: The images.
    """
    labelled = batch.labelled
    image_ce = image_cross_entropy(logits[labelled, 0], batch.label[labelled])
    return {"total": image_ce, "image_ce": image_ce}
