"""The final normalisation and projection of a tower as tensors, for heads that merge their last matrix with them."""

from typing import NamedTuple

from torch import Tensor, nn

from afclip_lightning.backbones.towers import ClipVisionTower, TimmVisionTower, VisionTower


class NormedProjection(NamedTuple):
    """A layer normalisation followed by a matrix.

    Attributes:
        weight: `[C]`, weight of the normalisation.
        bias: `[C]`, bias of the normalisation.
        eps: Added to the variance.
        matrix: `[D, C]`.
        shift: `[D]`, bias after the matrix, or `None`.
    """

    weight: Tensor
    bias: Tensor
    eps: float
    matrix: Tensor
    shift: Tensor | None

    def folded(self) -> tuple[Tensor, Tensor]:
        """Returns the matrix `[D, C]` and the shift `[D]` after a normalisation without weight and bias."""
        shift = self.matrix @ self.bias
        return self.matrix * self.weight, shift if self.shift is None else shift + self.shift


def normed_projection(tower: VisionTower) -> NormedProjection | None:
    """Returns the tensors of the tower's `project`, or `None` if it is more than a layer normalisation and a matrix."""
    visual = tower.visual
    if type(tower) is ClipVisionTower:
        norm, matrix, shift = visual.ln_post, visual.proj.T, None
    elif type(tower) is TimmVisionTower:
        layers = [visual.trunk.fc_norm, visual.trunk.head, *visual.head.children()]
        layers = [layer for layer in layers if not isinstance(layer, nn.Identity | nn.Dropout)]
        if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
            return None
        norm, matrix, shift = visual.trunk.norm, layers[0].weight, layers[0].bias
    else:
        return None
    if not isinstance(norm, nn.LayerNorm) or norm.bias is None:
        return None
    return NormedProjection(norm.weight, norm.bias, norm.eps, matrix, shift)
