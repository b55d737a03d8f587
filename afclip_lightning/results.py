"""Results as rows: the table a person reads, CSV and JSON."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from afclip_lightning.files import write_json, write_text
from afclip_lightning.metrics import aggregate

METRICS = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_pro")
TITLES = ("I-AUROC", "I-AP", "I-F1", "P-AUROC", "P-AP", "P-F1", "P-PRO")
MEAN = "mean"


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
    """

    dataset: str
    category: str
    normal: int
    anomalous: int
    metrics: Mapping[str, float]
    categories: Mapping[str, int] = field(default_factory=dict)


def with_means(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows with, behind each dataset's categories, their mean."""
    result: list[Row] = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        part = [row for row in rows if row.dataset == dataset]
        mean, counts = aggregate({row.category: row.metrics for row in part})
        normal, anomalous = sum(row.normal for row in part), sum(row.anomalous for row in part)
        result += [*part, Row(dataset, MEAN, normal, anomalous, mean, counts)]
    return result


def render(rows: Sequence[Row]) -> str:
    """Returns an aligned Markdown table in percent; `n/a` where a metric is not defined.

    A mean that leaves out categories says over how many it is: `91.2 (5)`.
    """
    header = ["dataset", "category", "normal", "anomalous", *TITLES]
    lines = [header]
    for row in rows:
        total = sum(r.dataset == row.dataset and r.category != MEAN for r in rows)
        cells = [row.dataset, row.category, str(row.normal), str(row.anomalous)]
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
    return "\n".join([text(lines[0]), rule, *(text(line) for line in lines[1:])])


def write(rows: Sequence[Row], folder: Path, name: str, title: str) -> None:
    """Writes `<name>.csv`, `<name>.json` and `<name>.md`; a metric that is not defined is left empty or out.

    Args:
        rows: The table.
        folder: The run folder.
        name: Stem of the files.
        title: What was tested, with its backbone.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["dataset", "category", "normal", "anomalous", *METRICS])
    for row in rows:
        values = [row.metrics.get(metric, "") for metric in METRICS]
        writer.writerow([row.dataset, row.category, row.normal, row.anomalous, *values])
    write_text(folder / f"{name}.csv", buffer.getvalue())
    entries = [
        {
            "dataset": row.dataset,
            "category": row.category,
            "normal": row.normal,
            "anomalous": row.anomalous,
            "metrics": dict(row.metrics),
            **({"categories": dict(row.categories)} if row.category == MEAN else {}),
        }
        for row in rows
    ]
    write_json(folder / f"{name}.json", {"title": title, "rows": entries})
    write_text(folder / f"{name}.md", f"{title}\n\n{render(rows)}\n")
