"""The tables of docs/comparison.md, from the results of the benchmark and the costs of `experiments/methods`.

python -m experiments.comparison.tables runs/demo/results.csv runs/real/results.csv    # keeps what the tables need
python -m experiments.comparison.tables                                                # writes the page's tables

What is kept of a benchmark is the means over the categories: `demo.csv` and `real.csv`, beside the matrices.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal, get_args

from afclip_lightning.benchmark.files import read_yaml
from afclip_lightning.benchmark.matrix import Method, load_matrix
from afclip_lightning.benchmark.probe import find_method
from afclip_lightning.benchmark.render import spread
from afclip_lightning.results import MEAN, TITLE
from afclip_lightning.results.titles import IN_FILES
from afclip_runtime.files import write_text
from afclip_runtime.files.tables import csv_text, read_rows
from experiments.comparison import fusion
from experiments.methods import table as cost_table
from experiments.pages import table_row, with_part

HERE = Path(__file__).parent
SCRIPT = "experiments/comparison/tables.py"
PAGE = HERE.parents[1] / "docs" / "comparison.md"
KEPT = ("method", "dataset", "shots", "seed", *IN_FILES)
Setting = Literal["demo", "real"]
SHOWN: dict[Setting, dict[str, tuple[str, ...]]] = {  # metrics by dataset
    "demo": {"synthetic": ("image_auroc", "image_ap", "pixel_ap", "pixel_auroc", "pixel_pro")},
    "real": {
        "leather": ("image_auroc", "pixel_ap", "pixel_auroc", "pixel_pro"),
        "hazelnut": ("image_auroc", "pixel_ap", "pixel_auroc", "pixel_pro"),
        "brain": ("image_auroc",),
    },
}
COST = {
    "trainable_parameters": "parameters",
    "gflops": "GFLOP",
    "test_8": "test",
    "step_8": "step",
}
# What a method without few-shot images is called in `cost.csv`, where it is called otherwise or is measured in a part.
COST_NAMES = {
    "AA-CLIP": "AA-CLIP, visual stage",
    "Dual-Image": "Dual-Image CLIP without adaptation",
    "PatchLogit": "Patch logit",
}
GROUPS = ("Zero-shot, each image by itself", "With few-shot images", "Scores use other test images")
FEW_SHOT = " few-shot"  # ends the name of a method that a matrix lists again, for the sets with few-shot images


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        group: Its place in `GROUPS`.
        method: Its name.
        shots: Normal images per category.
        trains: Whether it is fitted on the training set.
        planned: How many seeds its matrix has for it.
        values: Values in percent, one per seed, by dataset and metric.
    """

    group: int
    method: str
    shots: int
    trains: bool
    planned: int
    values: Mapping[tuple[str, str], Sequence[float]]

    @property
    def seeds(self) -> int:
        """Returns the number of seeds."""
        return max(map(len, self.values.values()))


def keep(source: Path, setting: Setting) -> None:
    """Writes the part of a benchmark's results.csv that the tables need, beside its matrix."""
    kept: dict[tuple[str, ...], dict[str, str]] = {}
    for _, row in read_rows(source):
        if row["category"] == MEAN:
            kept.setdefault(tuple(row[column] for column in KEPT[:4]), {})[row["metric"]] = f"{float(row['value']):.7f}"
    lines = [[*key, *(metrics.get(metric, "") for metric in IN_FILES)] for key, metrics in sorted(kept.items())]
    write_text(HERE / f"{setting}.csv", csv_text(KEPT, lines))


def group_of(name: str, method: Method, shots: int) -> int:
    """Returns the group of a method with this number of few-shot images."""
    cls = find_method(name, [read_yaml(HERE.parents[1] / config) for config in method.configs])
    with_others = {"always": True, "with few-shot images": shots > 0, "without few-shot images": shots == 0}
    if cls.needs_references or with_others.get(str(cls.uses_test_set), False):
        return 2
    return 1 if shots else 0


def lines_of(setting: Setting) -> list[Line]:
    """Returns the lines of a setting's table, group by group, in the order of its matrix."""
    matrix = load_matrix([HERE / f"{setting}.yaml"])
    methods = {**matrix.methods, fusion.NAME: Method(configs=[fusion.CONFIG])}
    found: dict[tuple[str, int], dict[tuple[str, str], list[float]]] = {}
    for _, row in read_rows(HERE / f"{setting}.csv"):
        values = found.setdefault((row["method"], int(row["shots"])), {})
        for dataset, metrics in SHOWN[setting].items():
            for metric in metrics if row["dataset"] == dataset else ():
                values.setdefault((dataset, metric), []).extend([100 * float(row[metric])] if row[metric] else [])
    lines = [
        Line(
            group_of(name, method, shots),
            name.removesuffix(FEW_SHOT),
            shots,
            method.trains,
            len(matrix.seeds if method.seeds is None else method.seeds),
            found[name, shots],
        )
        for name, method in methods.items()
        for shots in method.shots
        if (name, shots) in found
    ]
    return sorted(lines, key=lambda line: line.group)  # stable


def cost_of(method: str, shots: int, costs: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Returns the cells on cost with this number of few-shot images; empty without measurement."""
    cost = costs.get(f"{method}, {shots} shot" if shots else COST_NAMES.get(method, method), {})
    parameters, *others = (cost.get(column, "") for column in COST)
    return [f"{int(parameters):,}" if parameters else "", *others]


def render(setting: Setting) -> str:
    """Returns a setting's table as Markdown."""
    costs = cost_table.read()
    columns = [(dataset, metric) for dataset, metrics in SHOWN[setting].items() for metric in metrics]
    several = len(SHOWN[setting]) > 1
    titles = [f"{dataset}: {TITLE[metric]}" if several else TITLE[metric] for dataset, metric in columns]
    head = ["few-shot images", "seeds", *titles, *COST.values()]
    text = [f"| | {' | '.join(head)} |", "|---|" + "---:|" * len(head)]
    lines = lines_of(setting)
    for group, members in groupby(lines, key=lambda line: line.group):
        text.append(table_row([f"**{GROUPS[group]}**", *[""] * len(head)]))
        for line in members:
            cells = [spread(line.values.get(column, [])) for column in columns]
            name = f"{line.method} †" if line.trains else line.method
            text.append(
                table_row([name, str(line.shots), str(line.seeds), *cells, *cost_of(line.method, line.shots, costs)])
            )
    known = {line.method for line in lines}
    names = dict.fromkeys(name.removesuffix(FEW_SHOT) for name in load_matrix([HERE / f"{setting}.yaml"]).methods)
    missing = [name for name in names if name not in known]
    if missing:
        text += ["", f"In the matrix and not measured yet: {', '.join(missing)}."]
    if fewer := list(
        dict.fromkeys(f"{line.method} ({line.seeds} of {line.planned})" for line in lines if line.seeds < line.planned)
    ):
        text += ["", f"With fewer seeds than the matrix has for them: {', '.join(fewer)}."]
    return "\n".join(text) + "\n"


def render_fusion(setting: Setting) -> str:
    """Returns the gain of a setting's fusion over its best member, as Markdown."""
    values = {line.method: line.values for line in lines_of(setting) if line.shots == 0}
    columns = [(dataset, metric) for dataset, metrics in SHOWN[setting].items() for metric in metrics]
    return fusion.render(values, columns) or "Not measured yet.\n"


def in_page(page: str) -> str:
    """Returns the page with the tables in their places."""
    for setting in get_args(Setting):
        page = with_part(page, setting, SCRIPT, render(setting))
        page = with_part(page, f"fusion, {setting}", SCRIPT, render_fusion(setting))
    return page


def main() -> None:
    """Stores the results named on the command line, and writes the page's tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*", help="results.csv of the demo, and of the real sets")
    for setting, source in zip(get_args(Setting), parser.parse_args().results, strict=False):
        keep(source, setting)
    write_text(PAGE, in_page(PAGE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
