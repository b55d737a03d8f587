"""What is known of a mask at the size of its image, before it is resized to the backbone's."""

from pathlib import Path

import numpy as np
import torch

from afclip_lightning.errors import shown
from afclip_lightning.metrics import count_regions, region_areas
from afclip_lightning.types import MaskFacts


def mask_facts(mask: np.ndarray, areas: bool = False) -> MaskFacts:
    """Returns what is known of a mask.

    Args:
        mask: `[H, W]`, uint8 in {0, 1}.
        areas: Whether to keep its regions.
    """
    height, width = mask.shape
    if not areas:
        return MaskFacts((height, width), int(np.count_nonzero(mask)), count_regions(mask))
    found = region_areas(mask)
    rows, columns = found.any(1).nonzero()[0], found.any(0).nonzero()[0]
    if not len(rows):
        return MaskFacts((height, width))
    part = found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    corner = int(rows[0]), int(columns[0])
    kept = torch.from_numpy(np.ascontiguousarray(part))
    return MaskFacts((height, width), int(np.count_nonzero(part)), count_regions(mask), kept, corner)


def say_mostly(where: str, count: int, first: Path) -> str:
    """Returns a sentence on masks that mark most of their picture."""
    masks = "1 mask marks" if count == 1 else f"{count} masks mark"
    return (
        f"{shown(where)}: {masks} more than half of the picture, the first is {shown(first)}. If normal and anomalous "
        "are swapped in the file, write it anew; if the defects are that large, all is well."
    )
