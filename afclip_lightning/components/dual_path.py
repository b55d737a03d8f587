"""Text against the two paths of a vision tower: class token of the original path, patches of the V-V path."""

import torch
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.losses import map_losses
from afclip_lightning.components.scoring import anomaly_probability, similarity_logits, upsample
from afclip_lightning.types import ClipFeatures
from afclip_runtime.types import ImageSize


def image_logits(backbone: ClipBackbone, features: ClipFeatures, pairs: Tensor, temperature: float) -> Tensor:
    """Returns the logits of the two states of the class token, `[..., B, 2]`, float32.

    The token passes no final normalisation, as in AnomalyCLIP's code and those built on it.

    Args:
        backbone: The backbone that projects the token.
        features: Features of the backbone, with the class token.
        pairs: Text embeddings `[2, D]`, or `[..., 1, 2, D]`, L2-normalised; row 0 is normal and row 1 abnormal.
        temperature: Divides the cosines.

    Reference: AnomalyCLIP, the official code.
    """
    assert features.class_token is not None  # requested by the spec
    image = backbone.embed_tokens(features.class_token, final_norm=False)
    return similarity_logits(image[:, None], pairs, temperature)[..., 0, :]


def patch_probabilities(backbone: ClipBackbone, features: ClipFeatures, pairs: Tensor, temperature: float) -> Tensor:
    """Returns the patches' probabilities of the abnormal state at each tapped block, `[L, ..., B, h, w]`, float32.

    Args:
        backbone: The backbone that projects the patches.
        features: Features of the backbone, with the V-V path.
        pairs: Text embeddings `[2, D]`, or `[..., 1, 2, D]`, L2-normalised; row 0 is normal and row 1 abnormal.
        temperature: Divides the cosines.

    Reference: AnomalyCLIP.
    """
    maps = []
    for tokens in features.vv_tokens:
        patches = backbone.embed_tokens(tokens[:, 1:])
        probability = anomaly_probability(similarity_logits(patches, pairs, temperature))
        maps.append(probability.unflatten(-1, features.grid))
    return torch.stack(maps)


def summed_map_losses(maps: Tensor, mask: Tensor, size: ImageSize) -> dict[str, Tensor]:
    """Returns the three terms of `map_losses`, each summed over the tapped blocks.

    Args:
        maps: Probabilities of the abnormal state `[L, B, h, w]`, in [0, 1].
        mask: `[B, H, W]`, in {0, 1}.
        size: Size of the image, in pixels.

    Reference: AnomalyCLIP.
    """
    terms: dict[str, Tensor] = {}
    for layer in maps:
        for name, term in map_losses(upsample(layer, size), mask).items():
            terms[name] = terms.get(name, 0) + term
    return terms
