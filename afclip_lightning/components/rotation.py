"""Rotated copies of few-shot images, at the input size of a backbone."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor


def rotated(image: Tensor, degrees: float, fill: Sequence[float] | None = None) -> Tensor:
    """Returns images `[S, 3, H, W]`, rotated counter-clockwise about their centre, on the CPU.

    Args:
        image: Normalised images.
        degrees: Angle of rotation.
        fill: Colour of the pixels outside the image, per channel, with nearest-neighbour interpolation (SubspaceAD:
            black corners). By default the image is mirrored at its border pixels and interpolated bilinearly, about the
            point `(W / 2, H / 2)` in pixels (AnomalyDINO).
    """
    height, width = image.shape[2:]
    middle = (width / 2, height / 2) if fill is None else ((width - 1) / 2, (height - 1) / 2)
    matrix = cv2.getRotationMatrix2D(middle, degrees, 1.0)
    how, border = (
        (cv2.INTER_LINEAR, cv2.BORDER_REFLECT_101) if fill is None else (cv2.INTER_NEAREST, cv2.BORDER_CONSTANT)
    )
    turned = [
        cv2.warpAffine(
            np.ascontiguousarray(one.permute(1, 2, 0).float().cpu().numpy()),
            matrix,
            (width, height),
            flags=how,
            borderMode=border,
            borderValue=tuple(fill or ()),
        )
        for one in image
    ]
    return torch.from_numpy(np.stack(turned)).permute(0, 3, 1, 2)
