"""Foreground of an image: the patches that show the product, by the first principal component of its patches."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Morphology = Literal["grid", "column"]
MIDDLE = (0.2, 0.8)  # as shares of each side: the window that must show the product
LEAST_SHARE = 0.35  # share of that window


def first_component(patches: Tensor) -> Tensor:
    """Returns the first principal component of the patches of each image, `[B, N, C]` to `[B, N]`, float32.

    The direction is the one whose largest loading is positive, as scikit-learn has it.
    """
    with torch.autocast(patches.device.type, enabled=False):
        centred = patches.double() - patches.double().mean(dim=1, keepdim=True)
        axis = torch.linalg.eigh(centred.mT @ centred).eigenvectors[..., -1:]  # [B, C, 1]
        largest = axis.gather(1, axis.abs().argmax(dim=1, keepdim=True))
        return (centred @ (axis * largest.sign()))[..., 0].float()


def foreground(component: Tensor, grid: tuple[int, int], threshold: float, morphology: Morphology = "grid") -> Tensor:
    """Returns the patches that show the product, `[B, N]`, bool: those above a threshold, dilated, then closed.

    The sign of the component is the one whose foreground fills more than `LEAST_SHARE` of the image's centre.

    Args:
        component: Result of `first_component`.
        grid: Patch grid `(h, w)`.
        threshold: Threshold of the component, in units of the tokens. It depends on the vision tower.
        morphology: `grid` filters over the neighbours on the patch grid. `column` filters over the patches before and
            after in row-major order, as the official code of AnomalyDINO does.

    Reference: AnomalyDINO (arXiv 2405.14529); window, share and filters as in the official code.
    """
    (top, bottom), (left, right) = ((int(MIDDLE[0] * side), int(MIDDLE[1] * side)) for side in grid)
    shown = component > threshold
    share = shown.unflatten(1, grid)[:, top:bottom, left:right].flatten(1).float().mean(dim=1)
    shown = torch.where((share <= LEAST_SHARE)[:, None], -component > threshold, shown)
    window = (3, 3) if morphology == "grid" else (3, 1)
    planes = shown.float().unflatten(1, grid if morphology == "grid" else (component.shape[1], 1))[:, None]
    planes = _dilated(_dilated(planes, window), window)
    closed = -_dilated(-planes, window)
    return closed.flatten(1) > 0.5


def _dilated(planes: Tensor, window: tuple[int, int]) -> Tensor:
    return F.max_pool2d(planes, window, stride=1, padding=(window[0] // 2, window[1] // 2))
