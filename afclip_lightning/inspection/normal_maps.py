"""Thresholds from saved maps of normal images that are not scored."""

from pathlib import Path

import torch

from afclip_lightning.metrics.fixed_thresholds import Rule
from afclip_lightning.metrics.normal_scores import NormalScores
from afclip_runtime.errors import DatasetError, UserError, shown
from afclip_runtime.images.maps import MAP_SUFFIXES, read_map
from afclip_runtime.views.roi import Roi


def thresholds_from(folder: Path, category: str, rule: Rule, roi: Roi | None = None) -> dict[str, float]:
    """Returns the thresholds of `image` and `pixel` that a rule gives of the maps of normal images.

    The score of an image is the maximum of its map, as where maps are scored.

    Args:
        folder: Holds the maps, at whatever depth: those of each category in a folder of its name, or all of one.
        category: Whose maps are meant; if there is no folder of this name, all are.
        rule: The rule.
        roi: Which pixels count; all by default.

    Raises:
        DatasetError: There is no folder, or a map that cannot be read.
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
