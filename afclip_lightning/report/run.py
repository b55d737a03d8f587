"""The page of a test run: tables, curves, scores, missed anomalies and false alarms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from afclip_lightning.report import charts
from afclip_lightning.report.charts import Chart, Histogram, Line
from afclip_lightning.report.page import Card, Group, percent
from afclip_lightning.report.page import render as render_page
from afclip_lightning.report.run_files import Case, Run
from afclip_lightning.results import FIXED, LEVEL, MEAN, METRICS, RULE_OF_THREE, TITLE, Row, any_point, columns_of
from afclip_runtime.files import shown
from afclip_runtime.inspection.calibration import Calibration
from afclip_runtime.thresholds import is_anomalous

FACTS = (
    ("method", "Method"),
    ("trainable_parameters", "Trainable parameters"),
    ("backbone", "Backbone"),
    ("started", "Started"),
    ("git_revision", "Git revision"),
    ("python", "Python"),
    ("platform", "Platform"),
)
"""Facts of a run on the page: key in `run.json`, title."""


PARTS = {"results": METRICS, "fixed": tuple(FIXED)}
"""Tables of the page that have intervals, with the metrics of each."""


@dataclass(frozen=True)
class Threshold:
    """The score above which an image is called anomalous; see `is_anomalous`.

    Attributes:
        value: The score.
        source: Source of the threshold, in words.
        fitted: Whether it was chosen by the same labels that it is judged with.
    """

    value: float
    source: str
    fitted: bool = False


@dataclass(frozen=True)
class Decisions:
    """The decisions of a threshold on a category's images.

    Attributes:
        threshold: The threshold.
        missed: Number of anomalous images not above the threshold.
        false_alarms: Number of normal images above the threshold.
        normal: Number of normal images.
        anomalous: Number of anomalous images.
    """

    threshold: Threshold
    missed: int
    false_alarms: int
    normal: int
    anomalous: int


@dataclass(frozen=True)
class Section:
    """The section of one category. Unknown parts are `None`.

    Attributes:
        row: Line of the results table.
        decisions: Decisions of the threshold.
        charts: Curves of the category.
        histogram: Histogram of its scores.
        groups: Pictures of the category.
    """

    row: Row
    decisions: Decisions | None
    charts: list[Chart] | None
    histogram: Histogram | None
    groups: list[Group] | None

    @property
    def anchor(self) -> str:
        """Returns the anchor of the section in links."""
        return shown(f"{self.row.dataset}/{self.row.category}")


def calibrated(file: Path) -> Threshold:
    """Returns the threshold of a calibration.

    Raises:
        DatasetError: The file cannot be read.
    """
    found = Calibration.read(file).image
    return Threshold(found.value, f"{file.name}: {found.method} of {found.n} images")


def sections(run: Run, threshold: Threshold | None = None) -> list[Section]:
    """Returns the section of each category.

    Args:
        run: The run.
        threshold: Score above which an image is called anomalous; by default that of each category's best F1.
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
        columns=[(metric, TITLE[metric]) for metric in columns_of(run.rows)],
        intervals=any(row.intervals for row in run.rows),
        level=f"{100 * LEVEL:g}",
        agree={part: RULE_OF_THREE if any_point(run.rows, names) else "" for part, names in PARTS.items()},
        points=[(row, level, point) for row in run.rows for level, point in row.operating_points.items()],
    )


def _best(row: Row) -> Threshold | None:
    best = row.thresholds.get("image_f1_max")
    return None if best is None else Threshold(best, "best F1 on these labels", fitted=True)


def _section(run: Run, row: Row, threshold: Threshold | None) -> Section:
    key = row.dataset, row.category
    scores = None if run.scores is None else run.scores.get(key)
    decisions = None
    if scores and threshold:
        alarms, found = (sum(is_anomalous(score, threshold.value) for score in part) for part in scores)
        missed = len(scores[1]) - found
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
    """Returns the ROC, precision-recall and PRO charts that are defined."""

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
    if decisions and decisions.normal and decisions.anomalous and "image_roc" in curves:
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
    """Returns the cases in groups. Each case is in one group."""

    def is_wrong(case: Case) -> bool:
        return threshold is not None and is_anomalous(case.card.score, threshold.value) != bool(case.label)

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
        else:  # their number is unknown
            groups = [Group("Missed", "", missed), Group("False alarms", "", alarms)]
    right = [case for case in cases if not is_wrong(case)]
    side = "of those on the right side of the threshold" if threshold else "by their scores"
    extremes = [
        Group(kind.capitalize(), side, [case.card for case in right if case.kind == kind]) for kind in ("worst", "best")
    ]
    return groups + [group for group in extremes if group.cards]
