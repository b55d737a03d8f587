"""Metrics of a category, or of one of its defect types, from the records of its images."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from afclip_lightning.metrics.aupimo import Aupimo, aupimo
from afclip_lightning.metrics.curves import UndefinedMetricError
from afclip_lightning.metrics.histogram import exact_counts
from afclip_lightning.metrics.image_counts import CategoryCounts, ImageRecord
from afclip_lightning.metrics.result import Result, result_of
from afclip_lightning.metrics.spro import saturated, with_spro
from afclip_lightning.results import MEAN, Key, Row, aggregate


def result_of_images(records: Sequence[ImageRecord], fpr_limit: float = 0.3) -> Result:
    """Returns all metrics of some images, including AUPIMO. Image metrics are exact, pixel metrics have error bounds.

    Args:
        records: At least one image.
        fpr_limit: Integration limit of `pixel_pro`, in (0, 1].
    """
    images = CategoryCounts.of(records)
    normal, anomalous = (images.scores[images.labels == label] for label in (0, 1))
    scored, masked = not np.isnan(images.scores).any(), bool(images.masked.all())
    result = result_of(
        exact_counts(normal, anomalous), images.pixel_counts(), scored=scored, masked=masked, fpr_limit=fpr_limit
    )
    if masked and (of_defects := saturated(records)) is not None:
        result = with_spro(result, of_defects.pixel_counts(), fpr_limit)
    with suppress(UndefinedMetricError):
        found = aupimo(images)
        result = replace(
            result,
            metrics=result.metrics | {"pixel_aupimo": found.mean},
            error_bounds=result.error_bounds | {"pixel_aupimo": found.error_bound},
        )
    return result


def aupimo_by_category(records: Mapping[Key, Sequence[ImageRecord]]) -> tuple[dict[Key, Aupimo], list[str]]:
    """Returns the AUPIMO of each category that has one, and one sentence per category that has none.

    Args:
        records: Image records by dataset and category.
    """
    found: dict[Key, Aupimo] = {}
    notes = []
    for (dataset, category), images in records.items():
        try:
            found[dataset, category] = aupimo(CategoryCounts.of(images))
        except UndefinedMetricError as error:
            notes.append(f"No AUPIMO of {dataset}/{category}: {error}.")
    return found, notes


def with_aupimo(rows: Sequence[Row], found: Mapping[Key, Aupimo]) -> list[Row]:
    """Returns the rows of categories with their AUPIMO and its error bound.

    Args:
        rows: Rows of categories, without means.
        found: AUPIMO by dataset and category.
    """
    return [
        replace(
            row,
            metrics={**row.metrics, "pixel_aupimo": found[key].mean},
            error_bounds={**row.error_bounds, "pixel_aupimo": found[key].error_bound},
        )
        if (key := (row.dataset, row.category)) in found
        else row
        for row in rows
    ]


def type_rows(
    records: Mapping[Key, Sequence[ImageRecord]], types: Mapping[str, str], fpr_limit: float = 0.3
) -> list[Row]:
    """Returns the rows by defect type of all categories (see `results_by_type`) and their means (see `type_means`)."""
    rows = [
        replace(result.row(dataset, category), defect_type=name)
        for (dataset, category), images in records.items()
        for name, result in results_by_type(images, types, fpr_limit).items()
    ]
    return [*rows, *type_means(rows)]


def type_means(rows: Sequence[Row]) -> list[Row]:
    """Returns the mean rows of each dataset whose categories all have the same two or more defect types.

    These are the mean of each type over the categories, and the mean of these means. They are the published numbers of
    MVTec LOCO AD, whose types are logical and structural anomalies.

    Args:
        rows: Rows by defect type, without means.
    """
    means = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        by_category: dict[str, list[Row]] = {}
        for row in (row for row in rows if row.dataset == dataset):
            by_category.setdefault(row.category, []).append(row)
        shared = {tuple(row.defect_type for row in part) for part in by_category.values()}
        if len(by_category) < 2 or len(shared) > 1 or len(types := shared.pop()) < 2:
            continue
        of_types = [
            _mean(dataset, [row for row in rows if row.dataset == dataset and row.defect_type == t], t) for t in types
        ]
        means += [*of_types, replace(_mean(dataset, of_types, MEAN), normal=of_types[0].normal)]
    return means


def _mean(dataset: str, rows: Sequence[Row], name: str) -> Row:
    metrics, counts = aggregate({f"{row.category}/{row.defect_type}": row.metrics for row in rows})
    normal, anomalous = sum(row.normal for row in rows), sum(row.anomalous for row in rows)
    return Row(dataset, MEAN, normal, anomalous, metrics, counts, defect_type=name)


def results_by_type(
    records: Sequence[ImageRecord], types: Mapping[str, str], fpr_limit: float = 0.3
) -> dict[str, Result]:
    """Returns the metrics of each defect type, sorted by name: all normal images against the images of the type.

    Args:
        records: The images of one category.
        types: Defect type by image name; empty or absent where it is not known.
        fpr_limit: Integration limit of `pixel_pro`, in (0, 1].
    """
    normal = [record for record in records if not record.label]
    by_type: dict[str, list[ImageRecord]] = {}
    for record in records:
        if record.label and (name := types.get(record.name, "")):
            by_type.setdefault(name, []).append(record)
    return {name: result_of_images([*normal, *by_type[name]], fpr_limit) for name in sorted(by_type)}
