"""Metrics of what several images show: of objects seen in several views, of volumes seen in slices."""

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
        name: As their samples have it; of an image that is judged alone, its path.
        label: 1 = at least one of them is anomalous, 0 = all are normal.
        score: By the rule of `groups_of`.
        images: How many they are.
    """

    name: str
    label: int
    score: float
    images: int


def groups_of(scores: Sequence[ImageScore], rule: GroupScore = "highest") -> dict[Key, list[Group]]:
    """Returns the groups of each category in which one has more than one image, by name; an image alone is one too.

    - `highest`: a group is as anomalous as its most anomalous image. The rule of Real-IAD's S-AUROC (Wang et al.,
      arXiv 2403.12580), whose published command has ADEval take the highest score of an object's five views, and call
      it anomalous if one view is.
    - `mean`: the mean of its images' scores.

    Args:
        scores: What was said of the images, of all processes.
        rule: How the score of a group follows from those of its images.
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
    return max(scores) if rule == "highest" else fsum(scores) / len(scores)  # in whatever order they came


def with_groups(rows: Sequence[Row], groups: Mapping[Key, Sequence[Group]]) -> list[Row]:
    """Returns the rows of categories with AUROC, AP and F1-max of their groups, and the threshold of F1-max.

    Args:
        rows: Without means.
        groups: By dataset and category. Where all are normal, or all anomalous, nothing is added.
    """
    result = []
    for row in rows:
        of_row = groups.get((row.dataset, row.category), ())
        normal, anomalous = (np.array([g.score for g in of_row if g.label == label], float) for label in (0, 1))
        values, thresholds = group_metrics(exact_counts(normal, anomalous))
        result.append(replace(row, metrics={**row.metrics, **values}, thresholds={**row.thresholds, **thresholds}))
    return result


def write_groups(groups: Mapping[Key, Sequence[Group]], path: Path) -> None:
    """Writes what was said of each group as CSV, by dataset, category and name; scores in full.

    Args:
        groups: By dataset and category.
        path: The file.
    """
    lines = [(*key, *group) for key, part in groups.items() for group in part]
    write_text(path, csv_text(["dataset", "category", "group", "label", "score", "images"], lines))


def records_of(groups: Mapping[Key, Sequence[Group]]) -> dict[Key, list[ImageRecord]]:
    """Returns groups in the form that intervals are found from: as images without pixels, told apart by their place."""
    return {
        key: [ImageRecord(f"{i:09}", group.label, group.score, None) for i, group in enumerate(part)]
        for key, part in groups.items()
    }
