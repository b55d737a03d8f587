"""Results as rows: the table a person reads, CSV and JSON."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from afclip_lightning.columns import MEAN, METRICS, TITLES
from afclip_lightning.files import write_json, write_text
from afclip_lightning.metrics import TOLERANCE, Curve, Result, aggregate

Key = tuple[str, str]  # dataset, category


class ImageScore(NamedTuple):
    """What a test said of one image.

    Attributes:
        dataset: Name of the dataset.
        category: Name of the category.
        image: Its path.
        label: 1 = anomalous, 0 = normal.
        score: Its image score.
        map_max: Highest value of its anomaly map.
        mask_known: Whether its pixel labels are known.
    """

    dataset: str
    category: str
    image: str
    label: int
    score: float
    map_max: float
    mask_known: bool


@dataclass(frozen=True)
class Row:
    """The metrics of one category, or their mean over a dataset's categories.

    Attributes:
        dataset: Name of the dataset.
        category: Name of the category, or `mean`.
        normal: Normal test images.
        anomalous: Anomalous test images.
        metrics: Value in [0, 1] of each metric that is defined.
        categories: For a mean: over how many categories each metric's mean is.
        error_bounds: How far binning can have moved each pixel metric.
        thresholds: Score from which on the best F1 calls an image or a pixel anomalous.
    """

    dataset: str
    category: str
    normal: int
    anomalous: int
    metrics: Mapping[str, float]
    categories: Mapping[str, int] = field(default_factory=dict)
    error_bounds: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: str, category: str, result: Result) -> "Row":
        """Returns the row of one category."""
        return cls(
            dataset,
            category,
            result.normal,
            result.anomalous,
            result.metrics,
            error_bounds=result.error_bounds,
            thresholds=result.thresholds,
        )


def with_means(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows with, behind each dataset's categories, their mean."""
    result: list[Row] = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        part = [row for row in rows if row.dataset == dataset]
        mean, counts = aggregate({row.category: row.metrics for row in part})
        normal, anomalous = sum(row.normal for row in part), sum(row.anomalous for row in part)
        result += [*part, Row(dataset, MEAN, normal, anomalous, mean, counts)]
    return result


def render(rows: Sequence[Row], tolerance: float = TOLERANCE) -> str:
    """Returns an aligned Markdown table in percent; `n/a` where a metric is not defined.

    A mean says over how many categories it is, `mean of 6`, and where a metric leaves some out, over how many that one
    is: `91.2 (5)`. Below the table stands what binning may have moved by more than the tolerance.
    """
    header = ["dataset", "category", "normal", "anomalous", *TITLES]
    lines = [header]
    for row in rows:
        total = sum(r.dataset == row.dataset and r.category != MEAN for r in rows)
        category = f"{MEAN} of {total}" if row.category == MEAN else row.category
        cells = [row.dataset, category, str(row.normal), str(row.anomalous)]
        for metric in METRICS:
            value, over = row.metrics.get(metric), row.categories.get(metric, total)
            cell = "n/a" if value is None else f"{100 * value:.1f}"
            cells.append(f"{cell} ({over})" if value is not None and row.category == MEAN and over < total else cell)
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def text(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if i < 2 else ":") for i, w in enumerate(widths)) + "|"
    table = [text(lines[0]), rule, *(text(line) for line in lines[1:])]
    return "\n".join([*table, *_imprecise(rows, tolerance)])


def _imprecise(rows: Sequence[Row], tolerance: float) -> list[str]:
    """Returns the lines below the table on error bounds over the tolerance."""
    found = [
        f"- {row.dataset}/{row.category}: {title} by up to {100 * row.error_bounds[metric]:.2g}"
        for row in rows
        for metric, title in zip(METRICS, TITLES, strict=True)
        if row.error_bounds.get(metric, 0) > tolerance
    ]
    if not found:
        return []
    remedy = "exact evaluation sorts instead"
    return ["", f"Binning may have moved these by more than {100 * tolerance:g} ({remedy}):", "", *found]


def to_csv(rows: Sequence[Row]) -> str:
    """Returns the table as CSV, values in [0, 1]; what is not defined is left empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["dataset", "category", "normal", "anomalous", *METRICS])
    for row in rows:
        values = [row.metrics.get(metric, "") for metric in METRICS]
        writer.writerow([row.dataset, row.category, row.normal, row.anomalous, *values])
    return buffer.getvalue()


def to_json(rows: Sequence[Row], title: str) -> dict[str, Any]:
    """Returns the table for JSON, values in [0, 1]; what is not defined is left out."""
    entries = [
        {
            "dataset": row.dataset,
            "category": row.category,
            "normal": row.normal,
            "anomalous": row.anomalous,
            "metrics": dict(row.metrics),
            **(
                {"categories": dict(row.categories)}
                if row.category == MEAN
                else {"error_bounds": dict(row.error_bounds), "thresholds": dict(row.thresholds)}
            ),
        }
        for row in rows
    ]
    return {"title": title, "rows": entries}


def write(rows: Sequence[Row], folder: Path, name: str, title: str, tolerance: float = TOLERANCE) -> None:
    """Writes `<name>.csv`, `<name>.json` and `<name>.md`.

    Args:
        rows: The table.
        folder: The run folder.
        name: Stem of the files.
        title: What was tested, with its backbone.
        tolerance: See `render`.
    """
    write_text(folder / f"{name}.csv", to_csv(rows))
    write_json(folder / f"{name}.json", to_json(rows, title))
    write_text(folder / f"{name}.md", f"{title}\n\n{render(rows, tolerance)}\n")


def write_scores(scores: Sequence[ImageScore], path: Path) -> None:
    """Writes the scores of all images as CSV; numbers in full, so that a threshold decides alike when they are read."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(ImageScore._fields)
    writer.writerows((*score[:-1], int(score.mask_known)) for score in scores)
    write_text(path, buffer.getvalue())


def write_curves(curves: Mapping[Key, Mapping[str, Curve]], pro_limit: float, path: Path) -> None:
    """Writes the curves of all categories as JSON, to 5 decimals.

    Args:
        curves: By dataset and category: the curves that are defined.
        pro_limit: False-positive rate up to which the PRO curve goes.
        path: The file.
    """

    def rounded(curve: Curve) -> dict[str, list[float]]:
        return {axis: [round(value, 5) for value in values] for axis, values in curve._asdict().items()}

    entries = [
        {"dataset": dataset, "category": category, "curves": {name: rounded(curve) for name, curve in drawn.items()}}
        for (dataset, category), drawn in curves.items()
    ]
    write_text(path, json.dumps({"pro_limit": pro_limit, "categories": entries}) + "\n")
