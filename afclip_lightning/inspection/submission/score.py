"""Scores the public part as the server would: SegF1 of the written masks, and PRO up to 0.05 of the written maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from afclip_lightning.inspection.submission.encoding import resized
from afclip_lightning.inspection.submission.layout import Item
from afclip_lightning.inspection.submission.write import Progress
from afclip_lightning.metrics import AnomalyMetrics
from afclip_lightning.types import Sample
from afclip_runtime.errors import DatasetError
from afclip_runtime.images.reader import read


@dataclass(frozen=True)
class PublicScore:
    """Scores of the written files of a category's public part, in [0, 1].

    Attributes:
        category: The category.
        seg_f1: F1 of all its pixels at the fixed threshold; `None` without masks, or if nothing is anomalous.
        f1_max: Highest F1 of any threshold.
        pro_05: PRO up to a false-positive rate of 0.05.
        pixel_auroc: AUROC of the pixels.
        fpr: Share of the normal pixels above the threshold; `None` without masks.
    """

    category: str
    seg_f1: float | None
    f1_max: float | None
    pro_05: float | None
    pixel_auroc: float | None
    fpr: float | None


def seg_f1(hits: int, false: int, missed: int) -> float | None:
    """Returns F1 of pixels pooled over a category, in [0, 1]; `None` if no pixel is anomalous or called anomalous.

    Args:
        hits: Number of anomalous pixels above the threshold.
        false: Number of normal pixels above the threshold.
        missed: Number of anomalous pixels not above the threshold.
    """
    total = 2 * hits + false + missed
    return 2 * hits / total if total else None


def score(
    items: Sequence[Item], samples: Sequence[Sample], folder: Path, masks: bool, progress: Progress
) -> PublicScore:
    """Returns the scores of a category's public images, from the files of a submission.

    A map that is smaller than its image is upsampled bilinearly, as the server does.

    Args:
        items: The images.
        samples: Samples of the images.
        folder: Folder of the submission.
        masks: Whether the submission has masks.
        progress: See `write`.

    Raises:
        DatasetError: A file cannot be read, or a mask of the dataset has another size than its image.
    """
    known = {sample.image_path: sample for sample in samples}
    metrics = AnomalyMetrics()
    counts = np.zeros((2, 2), np.int64)  # predicted, actual
    category = items[0].category
    for item in progress(items, len(items), f"{category}, scores"):
        sample = known[item.image]
        values = read(folder / item.map_name, stored=True).values
        called = read(folder / item.mask_name, stored=True).values > 0 if masks else None
        truth = read(sample.mask_path, stored=True).region(sample.mask_threshold) if sample.mask_path else None
        shape = truth.shape if truth is not None else read(item.image).shape
        region = np.zeros(shape, bool) if truth is None else truth.astype(bool)
        if called is not None:
            if called.shape != region.shape:
                raise DatasetError(
                    f"{sample.mask_path}: the mask has another size than its image {item.image}. Replace it."
                )
            counts += np.bincount(2 * called.ravel() + region.ravel(), minlength=4).reshape(2, 2)
        at_size = resized(values, *shape).astype(np.float32)
        metrics.update(at_size[None], region[None], label=np.array([sample.label]), names=[str(item.image)])
    found = metrics.compute()
    (rest, missed), (false, hits) = counts.tolist()
    return PublicScore(
        category,
        seg_f1(hits, false, missed) if masks else None,
        found.get("pixel_f1_max"),
        found.get("pixel_pro_05"),
        found.get("pixel_auroc"),
        false / (false + rest) if masks and false + rest else None,
    )
