"""Metrics of groups of images: the views of an object, or the slices of a volume."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import fsum
from pathlib import Path
from typing import NamedTuple

import numpy as np

from afclip_lightning.metrics.histogram import exact_counts
from afclip_lightning.metrics.image_counts import ImageRecord
from afclip_lightning.metrics.result import group_metrics
from afclip_lightning.results import ImageScore, Key, Row
from afclip_lightning.types import GroupScore
from afclip_runtime.files import csv_text, write_text


class Group(NamedTuple):
    """Images that are judged together.

    Attributes:
        name: Name of the group in its samples. The path, if an image is judged alone.
        label: 1 = at least one image is anomalous, 0 = all images are normal.
        score: Score of the group; see `groups_of`.
        images: Number of images.
    """

    name: str
    label: int
    score: float
    images: int


def groups_of(scores: Sequence[ImageScore], rule: GroupScore = "highest") -> dict[Key, list[Group]]:
    """Returns the groups of each category, sorted by name. An image without a group is a group of one image.

    Categories in which every group is a single image are left out.

    - `highest`: the highest score of the images. This is the rule of Real-IAD's S-AUROC (Wang et al., arXiv
      2403.12580): its published command has ADEval take the highest score of an object's five views. An object is
      anomalous if one view is.
    - `mean`: the mean score of the images.

    Args:
        scores: Scores of the images of all processes.
        rule: Rule that computes the score of a group from those of its images.
    """
    members: dict[Key, dict[tuple[bool, str], list[ImageScore]]] = {}
    for image in scores:
        name = (True, image.group) if image.group else (False, image.image)
        members.setdefault((image.dataset, image.category), {}).setdefault(name, []).append(image)
    return {
        key: sorted(
            Group(name, max(i.label for i in images), _score([i.score for i in images], rule), len(images))
            for (_, name), images in groups.items()
        )
        for key, groups in members.items()
        if any(len(images) > 1 for images in groups.values())
    }


def _score(scores: Sequence[float], rule: GroupScore) -> float:
    return max(scores) if rule == "highest" else fsum(scores) / len(scores)  # independent of the order


def with_groups(rows: Sequence[Row], groups: Mapping[Key, Sequence[Group]]) -> list[Row]:
    """Returns the rows of categories with AUROC, AP and F1-max of their groups, and the threshold of F1-max.

    Args:
        rows: Rows of categories, without means.
        groups: Groups by dataset and category. A category whose groups have one label only stays as it is.
    """
    result = []
    for row in rows:
        of_row = groups.get((row.dataset, row.category), ())
        normal, anomalous = (np.array([g.score for g in of_row if g.label == label], float) for label in (0, 1))
        values, thresholds = group_metrics(exact_counts(normal, anomalous))
        result.append(replace(row, metrics={**row.metrics, **values}, thresholds={**row.thresholds, **thresholds}))
    return result


def write_groups(groups: Mapping[Key, Sequence[Group]], path: Path) -> None:
    """Writes the score of each group as CSV, sorted by dataset, category and name, with all digits.

    Args:
        groups: Groups by dataset and category.
        path: Path of the file.
    """
    lines = [(*key, *group) for key, part in groups.items() for group in part]
    write_text(path, csv_text(["dataset", "category", "group", "label", "score", "images"], lines))


def records_of(groups: Mapping[Key, Sequence[Group]]) -> dict[Key, list[ImageRecord]]:
    """Returns groups as records of images without pixels, named by their position, so that intervals can be found."""
    return {
        key: [ImageRecord(f"{i:09}", group.label, group.score, None) for i, group in enumerate(part)]
        for key, part in groups.items()
    }
