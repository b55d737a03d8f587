"""Run folders with image records, made without a run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from afclip_lightning import results
from afclip_lightning.metrics import AnomalyMetrics, region_areas
from afclip_lightning.metrics.image_counts import ImageCounts, ImageRecord
from afclip_lightning.metrics.image_records import RECORDS_FILE, write_records
from afclip_lightning.metrics.operating_points import operating_points
from afclip_lightning.results import ImageScore


def write_recorded(
    folder: Path,
    skill: float,
    *,
    seed: int = 0,
    categories: Mapping[str, tuple[int, int]] | None = None,
    root: str = "/data/drawn",
    dataset: str = "drawn",
    pro_limit: float = 0.3,
    pixels: bool = False,
    threshold: float | None = None,
) -> Path:
    """Writes a run folder and returns it.

    Args:
        folder: The folder.
        skill: How far anomalous scores are from normal ones, in standard deviations.
        seed: Seed, which differs between runs of one method.
        categories: How many normal and anomalous images they have.
        root: Where the images lay.
        dataset: Its name.
        pro_limit: Integration limit of PRO in the run.
        pixels: Whether its pixels were counted.
        threshold: Thresholds of images and pixels, if any were fixed without labels.
    """
    common, own = np.random.default_rng(5), np.random.default_rng(seed)
    rows, scores = [], []
    records: dict[tuple[str, str], list[ImageRecord]] = {}
    for category, (normal, anomalous) in (categories or {"a": (12, 16), "b": (10, 14)}).items():
        label = np.repeat([0, 1], [normal, anomalous])
        score = common.normal(0, 1, len(label)) + 0.3 * own.normal(0, 1, len(label)) + skill * label
        masks = np.zeros((len(label), 6, 6), np.uint8)
        masks[label == 1, 1:4, 2:5] = 1
        maps = np.float32(common.normal(0, 1, masks.shape) + 0.3 * own.normal(0, 1, masks.shape) + skill * masks)
        metrics = AnomalyMetrics(fpr_limit=pro_limit)
        metrics.update(maps, masks, np.float32(score), label)
        result, fixed = metrics.result(), {} if threshold is None else {"image": threshold, "pixel": threshold}
        points = operating_points(metrics, result, fixed, "mean+3sd")
        rows.append(replace(result.row(dataset, category), operating_points=points))
        for i, (kind, value) in enumerate(zip(label, np.float32(score), strict=True)):
            image = f"{root}/{category}/test/{'bad' if kind else 'good'}/{i:03}.png"
            scores.append(ImageScore(dataset, category, image, int(kind), float(value), 1.0, True))
            area = torch.from_numpy(region_areas(masks[i]))
            record = ImageRecord(image, int(kind), float(value), ImageCounts.of(torch.from_numpy(maps[i]), area))
            records.setdefault((dataset, category), []).append(record)
    folder.mkdir(parents=True)
    results.write(results.with_means(rows), folder, "results", "Test", conditions={"image_size": 6})
    results.write_scores(scores, folder / "scores.csv")
    results.write_curves({}, pro_limit, folder / "curves.json")
    if pixels:
        write_records(folder / RECORDS_FILE, records)
    return folder
