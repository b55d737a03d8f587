"""Runs of the command line that run once, and tables of their results."""

import csv
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from afclip_lightning.engine.app import main as afclip

METRICS = ("image_auroc", "image_ap", "pixel_ap", "pixel_auroc", "pixel_pro")


def run(command: str, folder: Path, arguments: Sequence[str]) -> None:
    """Runs one command into a folder, unless its results exist.

    Raises:
        RuntimeError: The command failed.
    """
    if (folder / "results.csv").exists():
        return
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--pictures.count=0"]
    code = afclip([command, *arguments, f"--out={folder}", *quiet])
    if code:
        raise RuntimeError(f"{command} into {folder} ended with {code}")


def mean_rows(path: Path) -> dict[str, dict[str, float]]:
    """Returns the means over the categories in a results table, in percent: dataset to metric, absent ones left out."""
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["category"] == "mean"]
    return {row["dataset"]: {m: 100 * float(row[m]) for m in METRICS if row.get(m)} for row in rows}


def table(lines: Iterable[tuple[str, Sequence[Path]]]) -> dict[str, str]:
    """Returns a Markdown table per dataset: one line per title, mean ± standard deviation over the results files."""
    rows: dict[str, list[str]] = defaultdict(
        lambda: ["| | I-AUROC | I-AP | P-AP | P-AUROC | PRO |", "|---|---:|---:|---:|---:|---:|"]
    )
    for title, paths in lines:
        runs = [mean_rows(path) for path in paths]
        for dataset in runs[0]:
            cells = []
            for metric in METRICS:
                values = [run[dataset][metric] for run in runs if metric in run[dataset]]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "n/a")
            rows[dataset].append(f"| {title} | " + " | ".join(cells) + " |")
    return {dataset: "\n".join(lines) for dataset, lines in rows.items()}
