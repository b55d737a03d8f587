"""Reads the masks that saved maps are scored against: one file per image, or a folder with one file per defect."""

from pathlib import Path

import numpy as np
from torch import Tensor

from afclip_lightning.data.defects import as_defects, read_defects
from afclip_lightning.data.images import mask_files, union_of
from afclip_lightning.metrics.scores import ranked, to_tensor
from afclip_lightning.metrics.spro import saturated_weight
from afclip_lightning.types import Saturations
from afclip_runtime.images.reader import read


def read_saved_mask(path: Path, threshold: int | None) -> tuple[np.ndarray, list[str]]:
    """Returns a mask, `[H, W]`, uint8 in {0, 1}, and notes on its files.

    Args:
        path: A mask, or a folder of masks whose union is returned.
        threshold: Highest value that is still normal; by default the reader's rule.

    Raises:
        DatasetError: A file cannot be read, the folder has no mask, or its masks differ in size.
    """
    files = mask_files(path)
    found = [read(file, stored=True) for file in files]
    regions = [mask.region(threshold) for mask in found]
    return union_of(regions, files), [note for mask in found for note in mask.notes]


def spro_weight(anomaly_map: np.ndarray, folder: Path | None, saturations: Saturations) -> Tensor:
    """Returns the weight of each pixel of a map in sPRO, `[H, W]`. See `saturated_weight`.

    Args:
        anomaly_map: `[H, W]`.
        folder: Folder of the image's masks, which have the map's size; `None` for a normal image.
        saturations: Saturation thresholds of the image's category.

    Raises:
        DatasetError: See `read_defects`.
    """
    scores, _ = ranked(to_tensor("anomaly_map", anomaly_map))
    height, width = anomaly_map.shape
    found = read_defects(folder, saturations, (height, width)) if folder else []
    return saturated_weight(scores, as_defects(found))
