"""A benchmark's tables for readers: the results, and the results beside the published numbers, in the papers' form."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev

from afclip_lightning.benchmark.matrix import Matrix
from afclip_lightning.benchmark.published import Published, architecture, comparable, members
from afclip_lightning.benchmark.table import Measurement
from afclip_lightning.benchmark.uncertainty import OVER, Line, Uncertainty, line_of
from afclip_lightning.results import FIXED, LEVEL, MEAN, METRICS, SHOWN, TITLE, TITLE_OF_ALL
from afclip_runtime.errors import shown

NONE = "–"
# These list datasets downwards and methods across, and print the metrics of a level together; the others list methods
# downwards.
BY_DATASET = {
    "AF-CLIP, Table 1",
    "FAPrompt, Table 1",
    "FAPrompt, Table 2",
    "KAnoCLIP, Table 1",
    "KAnoCLIP, Table 2",
}
Key = tuple[str, str, str]  # shots, dataset, metric


@dataclass(frozen=True)
class Grid:
    """A table of text.

    Attributes:
        title: Title of the table.
        header: Names of the columns.
        rows: Texts of the cells, one per column.
        left: Number of columns on the left that hold names.
        notes: Sentences below the title that a reader must know.
        below: Explanations below the table, one sentence each.
        bold: Rows and columns of the cells that are printed in bold.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int
    notes: tuple[str, ...] = ()
    below: tuple[str, ...] = ()
    bold: frozenset[tuple[int, int]] = frozenset()

    def lines(self, escape: Callable[[str], str], bold: str) -> list[list[str]]:
        """Returns the header and the rows in the syntax of a format.

        Args:
            escape: Escapes a text for the format.
            bold: Syntax of bold text, with `{}` for the text.
        """
        cells = [[escape(cell) for cell in row] for row in (self.header, *self.rows)]
        for row, column in self.bold:
            cells[row + 1][column] = bold.format(cells[row + 1][column])
        return cells


@dataclass(frozen=True)
class Measured:
    """The results of a method of the matrix.

    Attributes:
        method: Name of the method.
        labels: Names of the method in the published numbers.
        values: Means over categories by seed, in percent.
        backbones: Descriptions of its backbones, usually one.
    """

    method: str
    labels: tuple[str, ...]
    values: Mapping[Key, Mapping[int, float]]
    backbones: tuple[str, ...] = ()

    @property
    def comparable(self) -> bool:
        """Whether it ran on a backbone of the published numbers."""
        return all(comparable(backbone, self.labels) for backbone in self.backbones)

    @property
    def name(self) -> str:
        """The method with its architecture, if that is known."""
        return ", ".join([self.method, *dict.fromkeys(filter(None, map(architecture, self.backbones)))])

    def over_seeds(self, key: Key, published: list[Published]) -> list[float]:
        """Returns the value of each seed; for `industrial` and `medical`, of the seeds that all their datasets have."""
        shots, dataset, metric = key
        if dataset not in ("industrial", "medical"):
            return list(self.values.get(key, {}).values())
        parts = [self.values.get((shots, name, metric), {}) for name in members(published, dataset, metric)]
        return [mean(part[seed] for part in parts) for seed in parts[0] if all(seed in part for part in parts)]


def measured(rows: Sequence[Measurement], matrix: Matrix) -> list[Measured]:
    """Returns the results of each method, in the order of the matrix.

    If heads of several transfers were tested on one dataset, the first transfer of the matrix counts. Heads of
    `leave_one_out` are left out, because no paper reports them.
    """
    trains = ["", *(transfer.label for transfer in matrix.transfers)]
    result = []
    for name, method in matrix.methods.items():
        values: dict[Key, dict[int, float]] = defaultdict(dict)
        mine = [row for row in rows if row.method == name and row.category == MEAN and row.train in trains]
        for row in sorted(mine, key=lambda row: (row.seed, trains.index(row.train))):
            values[str(row.shots), row.dataset, row.metric].setdefault(row.seed, 100 * row.value)
        backbones = tuple(dict.fromkeys(row.backbone for row in mine))
        result.append(Measured(name, tuple(method.published or [name]), values, backbones))
    return result


def spread(values: Sequence[float]) -> str:
    """Returns the mean, with the sample standard deviation if there are several values."""
    if not values:
        return NONE
    deviation = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{deviation}"


def own_tables(
    rows: Sequence[Measurement], matrix: Matrix, uncertain: Mapping[str, Uncertainty] | None = None
) -> list[Grid]:
    """Returns one table of all results per test set, mean ± standard deviation over seeds.

    Args:
        rows: The benchmark's table.
        matrix: The benchmark's matrix.
        uncertain: Uncertainty of the results by test set. With it, the methods that may be the best are bold, and a
            table of intervals follows.
    """
    groups: dict[str, dict[Line, dict[str, dict[int, float]]]] = defaultdict(dict)
    methods, datasets = list(matrix.methods), list(matrix.datasets)
    for row in sorted(rows, key=lambda row: (datasets.index(row.dataset), methods.index(row.method), row.shots)):
        if row.category == MEAN:
            found = groups[row.dataset].setdefault(line_of(row), defaultdict(dict))
            found[row.metric][row.seed] = 100 * row.value
    grids = []
    for dataset, lines in groups.items():
        measured = {metric for values in lines.values() for metric in values}
        columns = [metric for metric in METRICS if metric in SHOWN or metric in measured]
        at_fixed = [metric for metric in FIXED if metric in measured]
        known = (uncertain or {}).get(dataset)
        grids += _grids(f"Measured on {dataset}", f"Intervals on {dataset}", lines, columns, known)
        if at_fixed:
            title = f"At thresholds fixed without labels on {dataset}"
            grids += _grids(title, f"Intervals at these thresholds on {dataset}", lines, at_fixed, known)
    return grids


def _grids(
    title: str,
    title_of_intervals: str,
    lines: Mapping[Line, Mapping[str, Mapping[int, float]]],
    columns: Sequence[str],
    known: Uncertainty | None,
) -> list[Grid]:
    """Returns the table of some metrics on a test set, and the table of their intervals if they are known.

    Args:
        title: Title of the first table.
        title_of_intervals: Title of the second table.
        lines: Values in percent, by line, metric and seed.
        columns: The metrics.
        known: Uncertainty of the results.
    """
    header = ("method", "trained on", "shots", "seeds", *(TITLE_OF_ALL[metric] for metric in columns), "backbone")
    body = []
    for line, metrics in lines.items():
        seeds = len({seed for values in metrics.values() for seed in values})
        cells = [spread(list(metrics.get(metric, {}).values())) for metric in columns]
        body.append(_line(line, str(seeds), cells))
    grid = Grid(title, header, tuple(body), 2)
    return [grid] if known is None else _with_intervals(grid, title_of_intervals, list(lines), columns, known)


def _line(line: Line, seeds: str, cells: Sequence[str]) -> tuple[str, ...]:
    method, train, shots, backbone = line
    return method, train or NONE, str(shots), seeds, *cells, backbone.partition(" (")[0] or NONE


def _with_intervals(
    grid: Grid, title: str, lines: Sequence[Line], columns: Sequence[str], known: Uncertainty
) -> list[Grid]:
    """Returns a table with the methods that may be the best in bold, and a table of intervals."""
    if not known.intervals:
        return [replace(grid, below=known.notes)]
    bold = frozenset(
        (i, 4 + j) for i, line in enumerate(lines) for j, metric in enumerate(columns) if (line, metric) in known.best
    )
    level = f"{100 * LEVEL:g} %"
    said = (
        f"Bold: what may be the best. With {level} confidence the truly best of a column is among them: comparisons "
        "with the best (Hsu), over samples of the images that all methods share. A column has none if its highest "
        "number is of a run that did not keep its images.",
    )
    body = []
    for line in lines:
        runs = known.runs.get(line, 0)
        found = [known.intervals.get((line, metric)) for metric in columns]
        cells = [NONE if one is None else f"[{100 * one[0]:.1f}, {100 * one[1]:.1f}]" for one in found]
        body.append((*_line(line, str(runs), cells), OVER[runs > 1] if runs else NONE))
    about = (
        f"{level} BCa intervals of the means over categories, over samples of the images; of several seeds they hold "
        "both sources of variation, images and seeds."
    )
    intervals = Grid(title, (*grid.header, "over"), tuple(body), 2, below=(about, *known.notes))
    return [replace(grid, bold=bold, below=said if bold else ()), intervals]


def paper_tables(results: Sequence[Measured], published: list[Published]) -> list[Grid]:
    """Returns the papers' tables that contain a method of the matrix: published, ours, and ours minus published.

    Test sets that a table does not contain follow at its end, without published numbers.
    """
    tables: dict[str, list[Published]] = defaultdict(list)
    for row in published:
        tables[row.table].append(row)
    labels = {label for result in results for label in result.labels}
    return [_paper_table(t, rows, results, published) for t, rows in tables.items() if labels & {r.label for r in rows}]


def _paper_table(table: str, rows: list[Published], results: Sequence[Measured], published: list[Published]) -> Grid:
    printed = {(row.label, (row.shots, row.dataset, row.metric)): row for row in rows}
    here = [result for result in results if {row.label for row in rows} & set(result.labels)]
    columns = dict.fromkeys((row.dataset, row.metric) for row in rows)
    summed = {
        name for group in {"industrial", "medical"} & {r.dataset for r in rows} for name in _sets(group, published)
    }
    theirs = {row.dataset for row in rows} | summed
    metrics, shots = {row.metric for row in rows}, {row.shots for row in rows}
    for key in (key for result in here for key in result.values):
        if key[0] in shots and key[1] not in theirs and key[2] in metrics:
            columns[key[1:]] = None
    lines: dict[tuple[str, str], dict[tuple[str, str], str]] = {}  # (shots, title) to (dataset, metric) to text
    for shot, label in dict.fromkeys((row.shots, row.label) for row in rows):
        keys = {column: (shot, *column) for column in columns}
        found = {column: printed.get((label, key)) for column, key in keys.items()}
        lines[shot, label] = {column: row.text if row else NONE for column, row in found.items()}
        for result in (result for result in here if label in result.labels):
            ours = {column: result.over_seeds(key, published) for column, key in keys.items()}
            title = f"{result.method} (ours{result.name.removeprefix(result.method)})"
            lines[shot, title] = {column: spread(values) for column, values in ours.items()}
            if not result.comparable:
                continue
            lines[shot, f"{result.method} (ours − printed)"] = {
                column: f"{mean(values) - row.value:+.1f}".replace("-", "−") if values and row else NONE
                for column, values in ours.items()
                for row in (found[column],)
            }
    notes = tuple(
        f"Not comparable: {result.method} ran on {' and '.join(result.backbones)}, which is not the paper's backbone."
        for result in here
        if result.values and not result.comparable
    )
    if table in BY_DATASET:
        return replace(_by_dataset(table, list(columns), lines), notes=notes)
    many = len(shots) > 1
    header = (*(("shots",) if many else ()), "method", *(f"{dataset} {TITLE[metric]}" for dataset, metric in columns))
    body = [(*((shot,) if many else ()), title, *cells.values()) for (shot, title), cells in lines.items()]
    return Grid(table, header, tuple(body), 2 if many else 1, notes)


def _by_dataset(
    table: str, columns: list[tuple[str, str]], lines: Mapping[tuple[str, str], Mapping[tuple[str, str], str]]
) -> Grid:
    levels: dict[tuple[str, str], list[str]] = defaultdict(list)  # (level, dataset) to metrics
    for dataset, metric in columns:
        levels[metric.partition("_")[0], dataset].append(metric)
    body = []
    for (_, dataset), metrics in sorted(levels.items(), key=lambda item: item[0][0]):  # stable: the image level first
        cells = []
        for line in lines.values():
            texts = [line[dataset, metric] for metric in metrics]
            cells.append(NONE if set(texts) == {NONE} else f"({', '.join(texts)})" if len(texts) > 1 else texts[0])
        body.append((dataset, ", ".join(TITLE[metric] for metric in metrics), *cells))
    return Grid(table, ("dataset", "metrics", *(title for _, title in lines)), tuple(body), 2)


def _sets(group: str, published: list[Published]) -> set[str]:
    return {name for metric in METRICS for name in members(published, group, metric)}


def markdown(grid: Grid, aligned: bool = False) -> str:
    """Returns a table as Markdown under its title.

    Args:
        grid: The table.
        aligned: Whether its columns are aligned in plain text too.
    """
    cells = grid.lines(lambda text: shown(text).replace("|", "\\|"), "**{}**")
    widths = [max(map(len, column)) if aligned else 0 for column in zip(*cells, strict=True)]
    rule = "|".join("-" * max(w + 2, 3) if i < grid.left else "-" * max(w + 1, 3) + ":" for i, w in enumerate(widths))
    lines = [
        "| "
        + " | ".join(
            f"{c:{'<' if i < grid.left else '>'}{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in cells
    ]
    notes = [text for note in grid.notes for text in (f"**{note}**", "")]
    below = [text for note in grid.below for text in ("", note)]
    return "\n".join([f"## {grid.title}", "", *notes, lines[0], f"|{rule}|", *lines[1:], *below])


def latex(grids: Iterable[Grid]) -> str:
    """Returns the tables as a complete LaTeX document. It needs the packages booktabs and graphicx."""
    parts = [
        r"\documentclass{article}",
        r"\usepackage[a4paper,landscape,margin=1cm]{geometry}",
        r"\usepackage{booktabs,graphicx}",
        r"\begin{document}",
    ]
    for grid in grids:
        columns = "l" * grid.left + "r" * (len(grid.header) - grid.left)
        lines = [" & ".join(cells) + r" \\" for cells in grid.lines(_escape, r"\textbf{{{}}}")]
        parts += [
            r"\begin{table}[p]",
            r"\centering",
            rf"\textbf{{{_escape(grid.title)}}}\\[1ex]",
            *(rf"\emph{{{_escape(note)}}}\\[1ex]" for note in grid.notes),
            r"\resizebox{\linewidth}{!}{%",
        ]
        parts += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        parts += [
            r"\end{tabular}}",
            *(rf"\\[1ex]\emph{{{_escape(note)}}}" for note in grid.below),
            r"\end{table}",
            r"\clearpage",
        ]
    return "\n".join([*parts, r"\end{document}", ""])


_LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
