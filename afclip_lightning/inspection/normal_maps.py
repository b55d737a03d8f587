"""Thresholds from saved maps of normal images that are not scored."""

from pathlib import Path

import torch

from afclip_lightning.metrics.fixed_thresholds import Rule
from afclip_lightning.metrics.normal_scores import NormalScores
from afclip_runtime.errors import DatasetError, UserError, shown
from afclip_runtime.images.maps import MAP_SUFFIXES, read_map
from afclip_runtime.views.roi import Roi


def thresholds_from(folder: Path, category: str, rule: Rule, roi: Roi | None = None) -> dict[str, float]:
    """Returns the thresholds `image` and `pixel` that a rule gives for the maps of normal images.

    The score of an image is the maximum of its map, as in `evaluate`.

    Args:
        folder: Folder of the maps, at any depth: one folder per category, named like it, or the maps of one category.
        category: Category of the maps. If no folder has this name, all maps are used.
        rule: Rule of the thresholds.
        roi: Pixels that count; all by default.

    Raises:
        DatasetError: The folder does not exist, or a map cannot be read.
        UserError: There are too few maps for the rule.
    """
    if not folder.is_dir():
        raise DatasetError(f"{shown(folder)} is not a folder.")
    place = folder / category if (folder / category).is_dir() else folder
    scores = NormalScores()
    for path in sorted(path for path in place.rglob("*") if path.suffix.lower() in MAP_SUFFIXES and path.is_file()):
        anomaly_map = read_map(path)
        if roi is not None:
            anomaly_map = anomaly_map[roi.inside(anomaly_map.shape[0], anomaly_map.shape[1], path)]
        scores.add(str(path), float(anomaly_map.max()), torch.from_numpy(anomaly_map))
    try:
        return scores.thresholds(rule)
    except UserError as error:
        raise UserError(f"--normal_maps {shown(place)}: {error}") from error
