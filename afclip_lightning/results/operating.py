"""Operating points of thresholds that were fixed without labels, as part of a row of the results."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from afclip_lightning.results.tables import aligned, name_cell
from afclip_lightning.results.titles import FIXED

SHOWN = {
    "image": {"fpr": "I-FPR", "tpr": "I-TPR", "balanced_accuracy": "I-BA", "f1": "I-F1", "f1_gap": "to best"},
    "pixel": {"fpr": "P-FPR", "tpr": "P-TPR", "f1": "P-F1", "f1_gap": "to best"},
}
"""Columns of the table by level, and their headings."""


@dataclass(frozen=True)
class OperatingPoint:
    """The rates of a fixed threshold on a category's images or pixels. All but the threshold are in [0, 1].

    Undefined values are `None`: `fpr` without normal scores, `tpr` without anomalous scores, and the others without
    both.

    Attributes:
        rule: Rule of the threshold: `mean+3sd`, `q0.99`, or the name of a calibration.
        threshold: Scores above it are anomalous; `None` for a mean over categories.
        fpr: False-positive rate: share of the normal scores above the threshold.
        tpr: True-positive rate, or recall: share of the anomalous scores above the threshold.
        balanced_accuracy: Mean of `tpr` and `1 - fpr`.
        f1: Harmonic mean of precision and recall. For all pixels of a category it is called SegF1.
        best_f1: F1 at the best threshold for these labels.
        f1_gap: Loss of F1 by the fixed threshold: `best_f1 - f1`.
        f1_error: Largest possible error of `f1` by binning.
    """

    rule: str
    threshold: float | None = None
    fpr: float | None = None
    tpr: float | None = None
    balanced_accuracy: float | None = None
    f1: float | None = None
    best_f1: float | None = None
    f1_gap: float | None = None
    f1_error: float = 0.0

    @property
    def rates(self) -> dict[str, float]:
        """Returns the defined values except the threshold, by name."""
        values = {key: value for key, value in asdict(self).items() if key not in ("threshold", "rule")}
        return {key: value for key, value in values.items() if value is not None}


def mean_points(parts: Sequence[Mapping[str, OperatingPoint]]) -> dict[str, OperatingPoint]:
    """Returns the means of the categories' operating points, over the categories where each value is defined."""
    found: dict[str, OperatingPoint] = {}
    for level in dict.fromkeys(level for part in parts for level in part):
        points = [part[level] for part in parts if level in part]
        values: dict[str, list[float]] = {}
        for point in points:
            for key, value in point.rates.items():
                values.setdefault(key, []).append(value)
        means = {key: sum(of_key) / len(of_key) for key, of_key in values.items()}
        found[level] = OperatingPoint(points[0].rule, **means)
    return found


def thresholds_of(points: Mapping[str, OperatingPoint]) -> dict[str, float]:
    """Returns the thresholds of operating points by level. Means have no threshold."""
    return {level: point.threshold for level, point in points.items() if point.threshold is not None}


def points_as_metrics(points: Mapping[str, OperatingPoint]) -> dict[str, float]:
    """Returns the defined values of `FIXED` by name, such as `image_fixed_fpr`."""
    rates = {f"{level}_fixed_{key}": value for level, point in points.items() for key, value in point.rates.items()}
    return {key: rates[key] for key in FIXED if key in rates}


def points_as_json(points: Mapping[str, OperatingPoint]) -> dict[str, dict[str, Any]]:
    """Returns operating points by level, without undefined values."""
    return {
        level: {key: value for key, value in asdict(point).items() if value is not None}
        for level, point in points.items()
    }


def points_flat(parts: Sequence[Mapping[str, OperatingPoint]]) -> tuple[list[str], list[list[float | None]]]:
    """Returns columns and lines of operating points for a table of numbers: `image_fixed_threshold`, `pixel_fixed_f1`.

    Args:
        parts: Operating points by level, per row. Only levels of some row have columns.
    """
    keys = ("threshold", "fpr", "tpr", "balanced_accuracy", "f1", "f1_gap")
    columns = [(level, key) for level in SHOWN if any(level in part for part in parts) for key in keys]
    lines = [[getattr(part[level], key) if level in part else None for level, key in columns] for part in parts]
    return [f"{level}_fixed_{key}" for level, key in columns], lines


def points_table(rows: Sequence[tuple[str, str, Mapping[str, OperatingPoint]]]) -> list[str]:
    """Returns the lines of a table in percent with a heading; nothing without operating points.

    Args:
        rows: Dataset, category, and operating points by level.
    """
    rules = dict.fromkeys(point.rule for *_, points in rows for point in points.values())
    if not rules:
        return []
    columns = [(level, key, head) for level, heads in SHOWN.items() for key, head in heads.items()]
    lines = [["dataset", "category", *(head for *_, head in columns)]]
    for dataset, category, points in rows:
        values = [points[level].rates.get(key) if level in points else None for level, key, _ in columns]
        cells = ["n/a" if value is None else f"{100 * value:.1f}" for value in values]
        lines.append([name_cell(dataset), name_cell(category), *cells])
    said = f"At thresholds fixed without labels ({', '.join(map(name_cell, rules))}), and how far F1 is below the best:"
    return ["", said, "", *aligned(lines)]
