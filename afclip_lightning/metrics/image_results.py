"""Metrics of some of a category's images, from what is kept of each: of all, or of one defect type."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from afclip_lightning.metrics.aupimo import aupimo
from afclip_lightning.metrics.curves import UndefinedMetricError
from afclip_lightning.metrics.histogram import exact_counts
from afclip_lightning.metrics.image_counts import CategoryCounts, ImageRecord
from afclip_lightning.metrics.result import Result, result_of


def result_of_images(records: Sequence[ImageRecord], fpr_limit: float = 0.3) -> Result:
    """Returns all metrics of some images, AUPIMO among them; those of images are exact, those of pixels have bounds.

    Args:
        records: At least one image.
        fpr_limit: Limit of integration of `pixel_pro`, in (0, 1].
    """
    images = CategoryCounts.of(records)
    normal, anomalous = (images.scores[images.labels == label] for label in (0, 1))
    scored, masked = not np.isnan(images.scores).any(), bool(images.masked.all())
    result = result_of(
        exact_counts(normal, anomalous), images.pixel_counts(), scored=scored, masked=masked, fpr_limit=fpr_limit
    )
    with suppress(UndefinedMetricError):
        found = aupimo(images)
        result = replace(
            result,
            metrics=result.metrics | {"pixel_aupimo": found.mean},
            error_bounds=result.error_bounds | {"pixel_aupimo": found.error_bound},
        )
    return result


def results_by_type(
    records: Sequence[ImageRecord], types: Mapping[str, str], fpr_limit: float = 0.3
) -> dict[str, Result]:
    """Returns the metrics of each defect type, sorted by name: all normal images against those of the type.

    Args:
        records: The images of one category.
        types: By name of an image, its defect type; empty, or absent, where it is not known.
        fpr_limit: Limit of integration of `pixel_pro`, in (0, 1].
    """
    normal = [record for record in records if not record.label]
    by_type: dict[str, list[ImageRecord]] = {}
    for record in records:
        if record.label and (name := types.get(record.name, "")):
            by_type.setdefault(name, []).append(record)
    return {name: result_of_images([*normal, *by_type[name]], fpr_limit) for name in sorted(by_type)}
