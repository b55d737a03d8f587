"""Resizing of positional embeddings. The papers' codes use different rules, and the features depend on them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.backbones.spec import PosEmbedResize

OFFSET = 0.1  # in patches; DINOv2 adds it to the size, so that rounding does not change the number of patches


def resize_positional_embedding(
    table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int], rule: PosEmbedResize
) -> Tensor:
    """Returns the positional embedding for another patch grid.

    Args:
        table: `[P + h * w, C]`: P prefix rows (class token, registers), which are kept, then the grid in row-major
            order.
        grid: Native grid `(h, w)`.
        new_grid: New grid `(h, w)`.
        rule: `bilinear` (AF-CLIP, FAPrompt, AnomalyCLIP), `bicubic` without antialiasing (MuSc, AdaCLIP) or
            `bicubic_antialias` (open_clip's own, APRIL-GAN, AA-CLIP), or `bicubic_offset`, without antialiasing and
            scaled by a tenth of a patch more than the grids are apart (DINOv2's own models without registers,
            AnomalyDINO); all with corners not aligned.
    """
    if grid == new_grid:
        return table
    prefix, patches = table[: -grid[0] * grid[1]], table[-grid[0] * grid[1] :]
    planes = patches.T.reshape(1, -1, *grid)
    if rule == "bicubic_offset":
        scale = tuple((new + OFFSET) / old for new, old in zip(new_grid, grid, strict=True))
        resized = F.interpolate(planes, scale_factor=scale, mode="bicubic", align_corners=False)
        return torch.cat([prefix, resized.flatten(2)[0].T])
    mode, antialias = ("bicubic", True) if rule == "bicubic_antialias" else (rule, False)
    resized = F.interpolate(planes, size=new_grid, mode=mode, align_corners=False, antialias=antialias)
    return torch.cat([prefix, resized.flatten(2)[0].T])
