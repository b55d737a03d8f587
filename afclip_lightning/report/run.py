"""The page of a test run: tables, curves, scores, what was missed and what was a false alarm."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afclip_lightning.columns import MEAN, METRICS, TITLES
from afclip_lightning.errors import UserError
from afclip_lightning.inspection.calibration import Calibration
from afclip_lightning.report import charts
from afclip_lightning.report.charts import Chart, Histogram, Line
from afclip_lightning.report.page import Card, Group, data_uri, json_object, percent, read, read_optional
from afclip_lightning.report.page import render as render_page

FACTS = (
    ("method", "Method"),
    ("trainable_parameters", "Trainable parameters"),
    ("backbone", "Backbone"),
    ("started", "Started"),
    ("git_revision", "Git revision"),
    ("python", "Python"),
    ("platform", "Platform"),
)
"""What the page says of a run: key in `run.json`, title."""

Key = tuple[str, str]  # dataset, category


@dataclass(frozen=True)
class Threshold:
    """From which score on an image is called anomalous.

    Attributes:
        value: The score.
        source: Where it is from, in words.
        fitted: Whether it was chosen by the labels that it is judged with.
    """

    value: float
    source: str
    fitted: bool = False


@dataclass(frozen=True)
class Case:
    """One test image that pictures were kept of.

    Attributes:
        label: 1 = anomalous, 0 = normal.
        kind: `best` or `worst`: from which end of its category.
        card: How it is shown.
    """

    label: int
    kind: str
    card: Card


@dataclass(frozen=True)
class Row:
    """A line of the results table: a category, or the mean of a dataset's categories.

    Attributes:
        dataset: Name of the dataset.
        category: Name of the category, or `mean`.
        normal: Normal test images.
        anomalous: Anomalous test images.
        metrics: Those that are defined, in [0, 1].
        categories: For a mean: over how many categories each metric's is.
        best_f1: Threshold of the best F1 of the images; `None` if it is not defined.
    """

    dataset: str
    category: str
    normal: int
    anomalous: int
    metrics: Mapping[str, float]
    categories: Mapping[str, int]
    best_f1: float | None


@dataclass(frozen=True)
class Run:
    """What the files of a run folder say. What it did not keep is `None`.

    Attributes:
        folder: The run folder.
        title: What was tested.
        rows: The results table.
        record: `run.json`.
        scores: By category, the scores of its normal and of its anomalous images.
        curves: By category and name, x and y of the curves that are defined.
        pro_limit: False-positive rate up to which the PRO curve goes.
        cases: By category, the images that pictures were kept of.
    """

    folder: Path
    title: str
    rows: list[Row]
    record: dict[str, Any] | None
    scores: dict[Key, tuple[list[float], list[float]]] | None
    curves: dict[Key, dict[str, tuple[list[float], list[float]]]] | None
    pro_limit: float
    cases: dict[Key, list[Case]] | None


@dataclass(frozen=True)
class Decisions:
    """What a threshold makes of a category's images.

    Attributes:
        threshold: The threshold.
        missed: Anomalous images below it.
        false_alarms: Normal images from it on.
        normal: All normal images.
        anomalous: All anomalous images.
    """

    threshold: Threshold
    missed: int
    false_alarms: int
    normal: int
    anomalous: int


@dataclass(frozen=True)
class Section:
    """What the page shows of one category. What is not known is `None`.

    Attributes:
        row: Its line in the results table.
        decisions: What the threshold makes of it.
        charts: Its curves.
        histogram: Its scores.
        groups: Its pictures.
    """

    row: Row
    decisions: Decisions | None
    charts: list[Chart] | None
    histogram: Histogram | None
    groups: list[Group] | None

    @property
    def anchor(self) -> str:
        """Returns what the page calls the section in links."""
        return f"{self.row.dataset}/{self.row.category}"


def read_run(path: Path) -> Run:
    """Returns what a run kept.

    Args:
        path: The run folder, or one of its tables, `results_x.json`.

    Raises:
        UserError: There is no table, or a file is damaged.
    """
    table = path if path.is_file() else path / "results.json"
    folder, suffix = table.parent, table.stem.removeprefix("results")
    if not table.is_file():
        raise UserError(
            f"{path}: no results.json, so it is not the folder of a test run. Name the folder that `fit` or `test` "
            "printed, runs/<config>/<time>."
        )
    title, rows = read(table, _table)
    kept = read_optional(folder / f"curves{suffix}.json", _curves)
    return Run(
        folder=folder,
        title=title,
        rows=rows,
        record=read_optional(folder / "run.json", json_object),
        scores=read_optional(folder / f"scores{suffix}.csv", _scores),
        curves=kept and kept[1],
        pro_limit=kept[0] if kept else 1.0,
        cases=None if suffix else read_optional(folder / "pictures" / "cases" / "cases.json", _cases),
    )


def calibrated(file: Path) -> Threshold:
    """Returns the threshold of a calibration.

    Raises:
        DatasetError: The file cannot be read.
    """
    found = Calibration.read(file).image
    above = math.nextafter(found.value, math.inf)  # a calibration calls anomalous what exceeds its value
    return Threshold(above, f"{file.name}: {found.method} of {found.n} images")


def sections(run: Run, threshold: Threshold | None = None) -> list[Section]:
    """Returns what the page shows of each category.

    Args:
        run: The run.
        threshold: From which score on an image is called anomalous; by default that of each category's best F1.
    """
    return [_section(run, row, threshold or _best(row)) for row in run.rows if row.category != MEAN]


def render(run: Run, threshold: Threshold | None = None) -> str:
    """Returns the page.

    Args:
        run: The run.
        threshold: See `sections`.
    """
    return render_page(
        "run.html",
        run=run,
        sections=sections(run, threshold),
        facts=FACTS,
        means=[row for row in run.rows if row.category == MEAN],
        columns=list(zip(METRICS, TITLES, strict=True)),
    )


def _best(row: Row) -> Threshold | None:
    return None if row.best_f1 is None else Threshold(row.best_f1, "best F1 on these labels", fitted=True)


def _section(run: Run, row: Row, threshold: Threshold | None) -> Section:
    key = row.dataset, row.category
    scores = None if run.scores is None else run.scores.get(key)
    decisions = None
    if scores and threshold:
        missed = sum(score < threshold.value for score in scores[1])
        alarms = sum(score >= threshold.value for score in scores[0])
        decisions = Decisions(threshold, missed, alarms, *map(len, scores))
    curves = None if run.curves is None else run.curves.get(key)
    cases = None if run.cases is None else run.cases.get(key)
    return Section(
        row,
        decisions,
        None if curves is None else _charts(row, curves, run.pro_limit, decisions),
        charts.histogram(*scores, threshold.value if threshold else None) if scores else None,
        None if cases is None else _groups(cases, threshold, decisions),
    )


def _charts(
    row: Row, curves: Mapping[str, tuple[list[float], list[float]]], pro_limit: float, decisions: Decisions | None
) -> list[Chart]:
    """Returns the ROC, precision-recall and PRO charts, of what is defined."""

    def lines(curve: str, metric: str, title: str, x_max: float = 1.0) -> tuple[Line, ...]:
        return tuple(
            Line(
                level,
                charts.line_path(*curves[f"{level}_{curve}"], x_max, steps=curve == "pr"),
                f"{title} {percent(row.metrics[key])}" if (key := f"{level}_{metric}") in row.metrics else "",
            )
            for level in ("image", "pixel")
            if f"{level}_{curve}" in curves
        )

    on_roc = on_pr = None
    if decisions and "image_roc" in curves:
        found = decisions.anomalous - decisions.missed
        on_roc = charts.place(decisions.false_alarms / decisions.normal, found / decisions.anomalous)
        if found + decisions.false_alarms:
            on_pr = charts.place(found / decisions.anomalous, found / (found + decisions.false_alarms))
    rate = "false-positive rate"
    found_charts = [
        Chart("ROC", rate, "true-positive rate", 1.0, lines("roc", "auroc", "AUROC"), on_roc),
        Chart("Precision and recall", "recall", "precision", 1.0, lines("pr", "ap", "AP"), on_pr),
        Chart("PRO", rate, "per-region overlap", pro_limit, lines("pro", "pro", "PRO", pro_limit)),
    ]
    return [chart for chart in found_charts if chart.lines]


def _groups(cases: Sequence[Case], threshold: Threshold | None, decisions: Decisions | None) -> list[Group]:
    """Returns the cases in groups: each in one of them."""

    def is_wrong(case: Case) -> bool:
        return threshold is not None and (case.card.score < threshold.value) == bool(case.label)

    def of(title: str, wrong: list[Card], count: int, total: int, what: str) -> Group:
        more = f", {len(wrong)} of them shown" if len(wrong) < count else ""
        return Group(title, f"{count} of {total} {what} images{more}", wrong)

    groups = []
    if threshold:
        missed = [case.card for case in cases if is_wrong(case) and case.label]
        alarms = [case.card for case in cases if is_wrong(case) and not case.label]
        if decisions:
            groups = [
                of("Missed", missed, decisions.missed, decisions.anomalous, "anomalous"),
                of("False alarms", alarms, decisions.false_alarms, decisions.normal, "normal"),
            ]
        else:  # how many there are is not known
            groups = [Group("Missed", "", missed), Group("False alarms", "", alarms)]
    right = [case for case in cases if not is_wrong(case)]
    side = "of those on the right side of the threshold" if threshold else "by their scores"
    extremes = [
        Group(kind.capitalize(), side, [case.card for case in right if case.kind == kind]) for kind in ("worst", "best")
    ]
    return groups + [group for group in extremes if group.cards]


def _table(file: Path) -> tuple[str, list[Row]]:
    value = json_object(file)
    rows = [
        Row(
            str(row["dataset"]),
            str(row["category"]),
            int(row["normal"]),
            int(row["anomalous"]),
            {name: float(metric) for name, metric in row["metrics"].items()},
            row.get("categories", {}),
            row.get("thresholds", {}).get("image_f1_max"),
        )
        for row in value["rows"]
    ]
    return str(value["title"]), rows


def _scores(file: Path) -> dict[Key, tuple[list[float], list[float]]]:
    scores: dict[Key, tuple[list[float], list[float]]] = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            scores.setdefault((line["dataset"], line["category"]), ([], []))[int(line["label"])].append(
                float(line["score"])
            )
    return scores


def _curves(file: Path) -> tuple[float, dict[Key, dict[str, tuple[list[float], list[float]]]]]:
    value = json_object(file)
    curves = {
        (entry["dataset"], entry["category"]): {
            name: (curve["x"], curve["y"]) for name, curve in entry["curves"].items()
        }
        for entry in value["categories"]
    }
    return float(value["pro_limit"]), curves


def _cases(file: Path) -> dict[Key, list[Case]]:
    cases: dict[Key, list[Case]] = {}
    for entry in json.loads(file.read_text(encoding="utf-8")):
        picture, anomaly_map = (
            data_uri((file.parent / Path(entry[key]).name).read_bytes()) for key in ("picture", "map")
        )
        status = "anomalous" if entry["label"] else "normal"
        note = "" if entry["mask_known"] else "mask not known"
        card = Card(entry["image"], entry["score"], status, picture, anomaly_map, entry["outline"], note)
        case = Case(entry["label"], entry["kind"], card)
        cases.setdefault((entry["dataset"], entry["category"]), []).append(case)
    return cases
