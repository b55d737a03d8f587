"""Patch rarity: the plain zero-shot baseline that a new head must be compared with."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_exporting

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.arguments import require_layers, require_not_negative, require_shares
from afclip_lightning.components.scoring import upsample_and_smooth
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures


def patch_rarity(tokens: Tensor, share: float) -> Tensor:
    """Returns the rarity of each patch among the patches of its own image, `[B, N]`, in [0, 1], float32.

    It is half the cosine distance to the nearest other patches, averaged over them.

    Args:
        tokens: `[B, 1 + N, C]` with N at least 2. The class token is left out.
        share: Share of the N - 1 other patches that count as the nearest, in (0, 1]. At least one counts.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        patches = F.normalize(tokens[:, 1:].float(), dim=-1)
        count = patches.shape[1]
        nearest = max(1, round(share * (count - 1)))
        itself = torch.eye(count, dtype=torch.bool, device=patches.device)
        # per image, since the similarities of a whole batch would be the largest tensor; a graph has no such loop
        images = [patches] if is_exporting() else patches.split(1)
        similarity = [
            (image @ image.mT).masked_fill_(itself, -torch.inf).topk(nearest, dim=-1).values.mean(dim=-1)
            for image in images
        ]
    return (1 - torch.cat(similarity)) / 2


class PatchRarity(AnomalyMethod):
    """Rarity of a patch within its own image, on the backbone's features. Nothing is trained, no other image is seen.

    What most of the image shows counts as normal. The score of a patch is half its mean cosine distance to the nearest
    other patches of the image, a `share` of them, averaged over the blocks. The image score is the maximum over its
    patches. No text is used, so that any vision tower works: CLIP's, or DINOv2's with an untrained text tower.

    The rule is ours. MuSc compares the patches of *different* images in a similar way. It fails on a defect that covers
    more than `share` of the image, because the defect resembles itself. It also fails on a part that occurs once, such
    as the neck of a bottle.

    Args:
        backbone: The frozen CLIP.
        layers: Tapped blocks, counted from 1.
        share: Share of the other patches that count as the nearest, in (0, 1].
        map_sigma: Standard deviation of the Gaussian filter of the map, in pixels. 0 does not filter.

    Raises:
        ValueError: An argument is out of its range, or the image has only one patch.
    """

    title = "Patch rarity"
    parity = "a rule of this project: a plain baseline"

    def __init__(
        self,
        backbone: ClipBackbone,
        layers: Sequence[int] = (6, 12, 18, 24),
        share: float = 0.1,
        map_sigma: float = 0.0,
    ) -> None:
        require_layers(layers)
        require_not_negative(map_sigma=map_sigma)
        require_shares(share=share)
        if backbone.grid == (1, 1):
            raise ValueError(f"an image of {backbone.image_size} pixels has one patch: there are no others to compare")
        super().__init__(backbone, backbone.spec(layers), optimizer=None)
        self.save_hyperparameters(ignore=["backbone"], logger=False)
        self.share = share
        self.map_sigma = map_sigma

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the rarity of each image's rarest patch, and the upsampled map of rarities, both in [0, 1]."""
        rarity = torch.stack([patch_rarity(tokens, self.share) for tokens in features.tokens]).mean(dim=0)
        anomaly_map = upsample_and_smooth(rarity.unflatten(1, features.grid), self.spec.image_size, self.map_sigma)
        return AnomalyPrediction(rarity.amax(dim=1), anomaly_map)
