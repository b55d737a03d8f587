"""`python -m afclip_lightning report`: one HTML page of a run, which needs no network and no other file."""

import argparse
import base64
import csv
import hashlib
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from afclip_lightning import charts
from afclip_lightning.charts import Chart, Histogram, Line
from afclip_lightning.columns import MEAN, METRICS, TITLES
from afclip_lightning.errors import UserError
from afclip_lightning.files import write_text

DESCRIPTION = """\
Writes one HTML page of a test run: tables by category, curves, scores, pictures of what was missed and of false alarms.
It is self-contained: it opens from disk, without a network, and can be sent to others.
"""

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
T = TypeVar("T")


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
    """One test image with its pictures.

    Attributes:
        image: Its path where the run found it.
        label: 1 = anomalous, 0 = normal.
        score: Its image score.
        kind: `best` or `worst`: from which end of its category.
        mask_known: Whether its pixel labels are known.
        outline: Outline of its mask as an SVG path in the unit square; empty if there is none.
        picture: Data URI of the image.
        map: Data URI of its anomaly map in colours.
    """

    image: str
    label: int
    score: float
    kind: str
    mask_known: bool
    outline: str
    picture: str
    map: str

    @property
    def name(self) -> str:
        """Returns the end of the path, enough to find it."""
        return "/".join(Path(self.image).parts[-2:])


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
        calibrated: Threshold of `calibration.json`.
    """

    folder: Path
    title: str
    rows: list[Row]
    record: dict[str, Any] | None
    scores: dict[Key, tuple[list[float], list[float]]] | None
    curves: dict[Key, dict[str, tuple[list[float], list[float]]]] | None
    pro_limit: float
    cases: dict[Key, list[Case]] | None
    calibrated: float | None


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
class Group:
    """Cases that are shown together.

    Attributes:
        title: What they have in common.
        note: How many there are of them, or how they were chosen.
        cases: The cases.
    """

    title: str
    note: str
    cases: list[Case]


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
    title, rows = _read(table, lambda: _table(json.loads(table.read_text(encoding="utf-8"))))
    kept = _optional(folder / f"curves{suffix}.json", _curves)
    return Run(
        folder=folder,
        title=title,
        rows=rows,
        record=_optional(folder / "run.json", _json_object),
        scores=_optional(folder / f"scores{suffix}.csv", _scores),
        curves=kept and kept[1],
        pro_limit=kept[0] if kept else 1.0,
        cases=None if suffix else _optional(folder / "pictures" / "cases" / "cases.json", _cases),
        calibrated=_optional(folder / "calibration.json", lambda file: float(_json_object(file)["threshold"])),
    )


def sections(run: Run, threshold: float | None = None) -> list[Section]:
    """Returns what the page shows of each category.

    Args:
        run: The run.
        threshold: From which score on an image is called anomalous. By default that of the calibration, or else that of
            each category's best F1.
    """
    return [_section(run, row, _threshold(run, row, threshold)) for row in run.rows if row.category != MEAN]


def render(run: Run, threshold: float | None = None) -> str:
    """Returns the page.

    Args:
        run: The run.
        threshold: See `sections`.
    """
    environment = Environment(
        loader=PackageLoader("afclip_lightning"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "score": _score, "shell": shlex.join}
    script = (Path(__file__).parent / "templates" / "report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html").render(
        run=run,
        sections=sections(run, threshold),
        facts=FACTS,
        means=[row for row in run.rows if row.category == MEAN],
        columns=list(zip(METRICS, TITLES, strict=True)),
        plot=(charts.WIDTH, charts.HEIGHT),
        script=Markup(script),
        # of all scripts, the browser runs this one: no name from a file can smuggle in another
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _threshold(run: Run, row: Row, given: float | None) -> Threshold | None:
    if given is not None:
        return Threshold(given, "given with --threshold")
    if run.calibrated is not None:
        return Threshold(run.calibrated, "from calibration.json")
    if row.best_f1 is not None:
        return Threshold(row.best_f1, "best F1 on these labels", fitted=True)
    return None


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
                f"{title} {_percent(row.metrics[key])}" if (key := f"{level}_{metric}") in row.metrics else "",
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
        return threshold is not None and (case.score < threshold.value) == bool(case.label)

    groups = []
    if threshold:
        of_missed = f"{decisions.missed} of {decisions.anomalous} anomalous images" if decisions else ""
        of_alarms = f"{decisions.false_alarms} of {decisions.normal} normal images" if decisions else ""
        wrong = [case for case in cases if is_wrong(case)]
        groups += [
            Group("Missed", of_missed, [case for case in wrong if case.label]),
            Group("False alarms", of_alarms, [case for case in wrong if not case.label]),
        ]
    right = [case for case in cases if not is_wrong(case)]
    side = "of those on the right side of the threshold" if threshold else "by their scores"
    extremes = [
        Group(kind.capitalize(), side, [case for case in right if case.kind == kind]) for kind in ("worst", "best")
    ]
    return groups + [group for group in extremes if group.cases]


def _read(file: Path, parse: Callable[[], T]) -> T:
    """Returns what a parser makes of a file; says which file it was if it cannot."""
    try:
        return parse()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: cannot be read ({type(error).__name__}: {error}). Restore it, or run the test again."
        ) from error


def _optional(file: Path, parse: Callable[[Path], T]) -> T | None:
    return _read(file, lambda: parse(file)) if file.exists() else None


def _json_object(file: Path) -> dict[str, Any]:
    value = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {type(value).__name__}")
    return value


def _table(value: Mapping[str, Any]) -> tuple[str, list[Row]]:
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
    value = _json_object(file)
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
        picture, anomaly_map = (_data_uri(file.parent / Path(entry[key]).name) for key in ("picture", "map"))
        names = ("image", "label", "score", "kind", "mask_known", "outline")
        case = Case(*(entry[name] for name in names), picture, anomaly_map)
        cases.setdefault((entry["dataset"], entry["category"]), []).append(case)
    return cases


def _data_uri(file: Path) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(file.read_bytes()).decode()


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f}"


def _score(value: float) -> str:
    return f"{value:.4g}"


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 2 a mistake that the message explains."""
    options = _parser().parse_args(args)
    try:
        run = read_run(options.run)
        out = options.out or run.folder / "report.html"
        write_text(out, render(run, options.threshold))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Report: {out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m afclip_lightning report",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or a table in it such as results_x.json")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page; report.html in the run folder by default")
    parser.add_argument(
        "--threshold",
        type=_finite,
        metavar="SCORE",
        help="call images anomalous from this score on; by default that of calibration.json in the run folder, or else "
        "that of the best F1 on the test labels, category by category",
    )
    return parser
