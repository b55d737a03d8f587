"""The masks that saved maps are scored against: a file per image, or a folder with a file per defect."""

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
    """Returns a mask, `[H, W]`, uint8 in {0, 1}, and what is worth a word of its files.

    Args:
        path: The mask, or a folder of masks, of which this is the union.
        threshold: Highest value that is still normal; by default the reader's rule.

    Raises:
        DatasetError: A file cannot be read, the folder has none, or they are not of one size.
    """
    files = mask_files(path)
    found = [read(file, stored=True) for file in files]
    regions = [mask.region(threshold) for mask in found]
    return union_of(regions, files), [note for mask in found for note in mask.notes]


def spro_weight(anomaly_map: np.ndarray, folder: Path | None, saturations: Saturations) -> Tensor:
    """Returns what each pixel of a map weighs in sPRO, `[H, W]`; see `saturated_weight`.

    Args:
        anomaly_map: `[H, W]`.
        folder: Of the image's masks, of the map's size; `None` of a normal image.
        saturations: Of the image's category.

    Raises:
        DatasetError: See `read_defects`.
    """
    scores, _ = ranked(to_tensor("anomaly_map", anomaly_map))
    height, width = anomaly_map.shape
    found = read_defects(folder, saturations, (height, width)) if folder else []
    return saturated_weight(scores, as_defects(found))
