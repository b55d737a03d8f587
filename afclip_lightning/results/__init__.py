"""Results as rows, in readable tables, CSV and JSON. Reading a table needs no torch."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from msgspec import Meta

from afclip_lightning.results.operating import (
    OperatingPoint,
    mean_points,
    points_as_json,
    points_flat,
    points_table,
    thresholds_of,
)
from afclip_lightning.results.tables import aligned, name_cell
from afclip_lightning.results.titles import ALSO_SHOWN, FIXED, IN_FILES, METRICS, SHOWN, TITLE, TITLE_OF_ALL
from afclip_runtime.errors import UserError, shown
from afclip_runtime.files import csv_text, write_json, write_text

Key = tuple[str, str]  # dataset, category
Count = Annotated[int, Meta(ge=0)]
Points = tuple[Sequence[float], Sequence[float]]  # x and y of a curve
Interval = tuple[float, float]  # lower and upper end

MEAN = "mean"
"""Name in the category column of a row that is the mean of a dataset's categories."""

LEVEL = 0.95
"""Confidence of intervals; a difference is called significant if its p-value is at most `1 - LEVEL`."""

RULE_OF_THREE = (
    "If both ends are equal, all samples of these images agree. Other images may not: after n images without an error, "
    "up to 3 in n other images may have one."
)
"""Note for intervals of zero length."""

TOLERANCE = 1e-4
"""Largest change of a metric by binning without a note."""

REGIONS_CHANGED = 0.05  # largest relative change of the number of regions without a note


class ImageScore(NamedTuple):
    """The scores of one test image.

    Attributes:
        dataset: Name of the dataset.
        category: Name of the category.
        image: Path of the image.
        label: 1 = anomalous, 0 = normal.
        score: Image score.
        map_max: Highest value of its anomaly map.
        mask_known: Whether its pixel labels are known.
        defect_type: Defect type in its set; empty if unknown.
        aupimo: AUPIMO of the image, in [0, 1]; `None` if it was not requested or is not defined.
        group: Name of its group, for example an object of several views; empty if it is judged alone.
    """

    dataset: str
    category: str
    image: str
    label: int
    score: float
    map_max: float
    mask_known: bool
    defect_type: str = ""
    aupimo: float | None = None
    group: str = ""


@dataclass(frozen=True)
class MaskCounts:
    """The effect of resizing on the masks of a category's anomalous images.

    Attributes:
        masks: Number of masks.
        empty: Number of masks that are empty at the evaluated size.
        regions: Number of anomalous regions at the images' own sizes.
        regions_evaluated: Number of anomalous regions at the evaluated size: regions may vanish, merge or split.
        mostly: Number of masks that mark more than half of their picture.
    """

    masks: Count = 0
    empty: Count = 0
    regions: Count = 0
    regions_evaluated: Count = 0
    mostly: Count = 0

    def plus(self, other: "MaskCounts") -> "MaskCounts":
        """Returns the sums."""
        return MaskCounts(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Row:
    """The metrics of one category, or their mean over a dataset's categories.

    Attributes:
        dataset: Name of the dataset.
        category: Name of the category, or `mean`.
        normal: Number of normal test images.
        anomalous: Number of anomalous test images.
        metrics: Value in [0, 1] of each metric that is defined.
        categories: Number of categories in the mean of each metric, in the row of a mean.
        error_bounds: Largest possible error of each pixel metric by binning.
        thresholds: Thresholds of the best F1 of images and pixels; see `is_anomalous`.
        masks: Effect of resizing on the masks; `None` if unknown.
        intervals: Ends of the interval at `LEVEL`, in [0, 1], of each metric and of the rates at fixed thresholds
            (`image_fixed_fpr`); absent if a metric has none.
        defect_type: Defect type of the row's anomalous images, which it compares with all normal images; empty for all
            types.
        operating_points: Operating points of thresholds fixed without labels, for `image` scores and for each `pixel`.
    """

    dataset: str
    category: str
    normal: Count
    anomalous: Count
    metrics: Mapping[str, float]
    categories: Mapping[str, int] = field(default_factory=dict)
    error_bounds: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    masks: MaskCounts | None = None
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    operating_points: Mapping[str, OperatingPoint] = field(default_factory=dict)
    defect_type: str = ""


def aggregate(per_category: Mapping[str, Mapping[str, float]]) -> tuple[dict[str, float], dict[str, int]]:
    """Returns the mean of each metric over the categories where it is defined, and the number of these categories.

    Args:
        per_category: Metrics by category.
    """
    values: dict[str, list[float]] = {}
    for metrics in per_category.values():
        for key, value in metrics.items():
            values.setdefault(key, []).append(value)
    return {key: sum(v) / len(v) for key, v in values.items()}, {key: len(v) for key, v in values.items()}


def check_category(name: str, where: str = "") -> None:
    """Raises if a category has the name that tables use for the mean.

    Args:
        name: Name of the category.
        where: Beginning of the message.

    Raises:
        UserError: The category has this name.
    """
    if name == MEAN:
        raise UserError(
            f"{where}a category is called {MEAN!r}, and so is the mean of all categories in every table. Rename it, or "
            "leave it out and test it by itself under another name."
        )


def with_means(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows, with a mean after each dataset's categories."""
    result: list[Row] = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        part = [row for row in rows if row.dataset == dataset]
        mean, counts = aggregate({row.category: row.metrics for row in part})
        normal, anomalous = sum(row.normal for row in part), sum(row.anomalous for row in part)
        known = [row.masks for row in part if row.masks is not None]
        masks = reduce(MaskCounts.plus, known) if known else None
        points = mean_points([row.operating_points for row in part])
        result += [*part, Row(dataset, MEAN, normal, anomalous, mean, counts, masks=masks, operating_points=points)]
    return result


def fixed_thresholds(rows: Sequence[Row]) -> dict[Key, dict[str, float]]:
    """Returns the thresholds that were fixed without labels, by dataset and category and by level."""
    return {(row.dataset, row.category): thresholds_of(row.operating_points) for row in rows}


def with_intervals(rows: Sequence[Row], intervals: Mapping[Key, Mapping[str, Interval]]) -> list[Row]:
    """Returns the rows with the intervals of their metrics.

    Args:
        rows: The table.
        intervals: Intervals by dataset and category (or `mean`).
    """
    return [replace(row, intervals=intervals.get((row.dataset, row.category), {})) for row in rows]


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Returns the metrics that are columns of a page: those of every table, and others that a row has."""
    return [metric for metric in METRICS if metric in SHOWN or any(metric in row.metrics for row in rows)]


def shown_columns(rows: Sequence[Row]) -> list[str]:
    """Returns the metrics that are columns in a terminal. Some are columns only if a row has them."""
    return [*SHOWN, *(metric for metric in ALSO_SHOWN if any(metric in row.metrics for row in rows))]


def render(rows: Sequence[Row], tolerance: float = TOLERANCE, columns: Sequence[str] = SHOWN) -> str:
    """Returns an aligned Markdown table of some metrics in percent; `n/a` if a metric is not defined.

    A mean states its number of categories, `mean of 6`. A metric that is undefined for some of them states its own
    number: `91.2 (5)`. Below the table follow the intervals and operating points, if any, the effect of resizing on
    masks, and the metrics that binning may have changed by more than the tolerance.
    """
    header = ["dataset", "category", "normal", "anomalous", *(TITLE[metric] for metric in columns)]
    lines = [header]
    for row in rows:
        total = sum(r.dataset == row.dataset and r.category != MEAN for r in rows)
        category = f"{MEAN} of {total}" if row.category == MEAN else name_cell(row.category)
        cells = [name_cell(row.dataset), category, str(row.normal), str(row.anomalous)]
        for metric in columns:
            value, over = row.metrics.get(metric), row.categories.get(metric, total)
            cell = "n/a" if value is None else f"{100 * value:.1f}"
            cells.append(f"{cell} ({over})" if value is not None and row.category == MEAN and over < total else cell)
        lines.append(cells)
    return "\n".join(
        [*aligned(lines), *_uncertain(rows, columns, ""), *_fixed(rows), *_resized(rows), *_imprecise(rows, tolerance)]
    )


def render_types(rows: Sequence[Row], columns: Sequence[str] = SHOWN) -> list[str]:
    """Returns the lines of a table by defect type with a heading; nothing without such rows."""
    if not rows:
        return []
    lines = [["category", "defect type", "normal", "anomalous", *(TITLE[metric] for metric in columns)]]
    for row in rows:
        values = [row.metrics.get(metric) for metric in columns]
        cells = ["n/a" if value is None else f"{100 * value:.1f}" for value in values]
        names = [name_cell(f"{row.dataset}/{row.category}"), name_cell(row.defect_type)]
        lines.append([*names, str(row.normal), str(row.anomalous), *cells])
    return ["", "By defect type, all normal images against those of one type:", "", *aligned(lines)]


def _of(row: Row) -> str:
    return shown(f"{row.dataset}/{row.category}")


def interval_text(ends: Interval | None) -> str:
    """Returns an interval in percent, `88.1 to 93.9`; a dash if there is none."""
    return "–" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def _uncertain(rows: Sequence[Row], columns: Sequence[str], said: str) -> list[str]:
    """Returns the lines below a table on its intervals."""
    if not any(metric in row.intervals for row in rows for metric in columns):
        return []
    lines = [["dataset", "category", *(TITLE_OF_ALL[metric] for metric in columns)]]
    for row in rows:
        lines.append(
            [name_cell(row.dataset), name_cell(row.category), *(interval_text(row.intervals.get(m)) for m in columns)]
        )
    below = ["", RULE_OF_THREE] if any_point(rows, columns) else []
    return ["", f"{100 * LEVEL:g} % intervals{said}, by resampling the images:", "", *aligned(lines), *below]


def any_point(rows: Sequence[Row], metrics: Iterable[str]) -> bool:
    """Returns whether an interval of these metrics has zero length; see `RULE_OF_THREE`."""
    ends = (row.intervals[metric] for row in rows for metric in metrics if metric in row.intervals)
    return any(low == high for low, high in ends)


def _fixed(rows: Sequence[Row]) -> list[str]:
    """Returns the lines below the table on thresholds that were fixed without labels."""
    table = points_table([(row.dataset, row.category, row.operating_points) for row in rows])
    columns = [metric for metric in FIXED if any(metric in row.intervals for row in rows)]
    return table + _uncertain(rows, columns, " at these thresholds, as if they had been given")


def _resized(rows: Sequence[Row]) -> list[str]:
    """Returns the lines below the table on masks that are empty, or have other regions, at the evaluated size."""
    found = []
    for row in rows:
        counts = row.masks
        if row.category == MEAN or counts is None:
            continue
        if counts.empty or abs(counts.regions_evaluated - counts.regions) > REGIONS_CHANGED * counts.regions:
            empty = f"{counts.empty} of {counts.masks} masks {'is' if counts.empty == 1 else 'are'} empty, "
            regions = f"{counts.regions} regions became {counts.regions_evaluated}"
            found.append(f"- {_of(row)}: {empty if counts.empty else ''}{regions}")
    if not found:
        return []
    remedy = "--evaluation.resolution image evaluates at each image's own size"
    return ["", f"Resized to the backbone's size, masks changed ({remedy}):", "", *found]


def _imprecise(rows: Sequence[Row], tolerance: float) -> list[str]:
    """Returns the lines below the table on error bounds over the tolerance."""
    found = [
        f"- {_of(row)}: {title} by up to {100 * row.error_bounds[metric]:.2g}"
        f"{' (it is always from bins)' if metric == 'pixel_aupimo' else ''}"
        for row in rows
        for metric, title in TITLE.items()
        if row.error_bounds.get(metric, 0) > tolerance
    ]
    if not found:
        return []
    remedy = "exact evaluation sorts instead"
    return ["", f"Binning may have moved these by more than {100 * tolerance:g} ({remedy}):", "", *found]


def flat(rows: Sequence[Row]) -> tuple[list[str], list[list[str | int | float | None]]]:
    """Returns columns and lines of the table, with values in [0, 1], or `None` if undefined.

    If a metric has intervals, two more columns hold their ends: `image_auroc_low`, `image_auroc_high`. The columns of
    operating points are at the end: see `points_flat`.
    """
    point_columns, points = points_flat([row.operating_points for row in rows])
    metrics = [metric for metric in METRICS if metric in IN_FILES or any(metric in row.metrics for row in rows)]
    uncertain = [metric for metric in TITLE_OF_ALL if any(metric in row.intervals for row in rows)]
    columns = ["dataset", "category", "normal", "anomalous", *metrics]
    columns += [f"{metric}_{end}" for metric in uncertain for end in ("low", "high")]
    columns += point_columns
    lines: list[list[str | int | float | None]] = [
        [
            *(row.dataset, row.category, row.normal, row.anomalous),
            *(row.metrics.get(metric) for metric in metrics),
            *(end for metric in uncertain for end in row.intervals.get(metric, (None, None))),
            *of_row,
        ]
        for row, of_row in zip(rows, points, strict=True)
    ]
    return columns, lines


def to_csv(rows: Sequence[Row]) -> str:
    """Returns the table as CSV.

    Undefined values are empty. A column `defect_type` follows the category if rows have it.
    """
    columns, lines = flat(rows)
    if any(row.defect_type for row in rows):
        columns.insert(2, "defect_type")
        for row, line in zip(rows, lines, strict=True):
            line.insert(2, row.defect_type)
    return csv_text(columns, lines)


def to_json(rows: Sequence[Row], title: str, conditions: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the table for JSON, with values in [0, 1]. Undefined values are left out.

    Args:
        rows: The table.
        title: Title of the test.
        conditions: Conditions of the test, by name.
    """
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
            **({} if row.masks is None else {"masks": asdict(row.masks)}),
            **({"defect_type": row.defect_type} if row.defect_type else {}),
            **({"operating_points": points_as_json(row.operating_points)} if row.operating_points else {}),
            **({"intervals": {key: [*ends] for key, ends in row.intervals.items()}} if row.intervals else {}),
        }
        for row in rows
    ]
    return {"title": title, **({"conditions": dict(conditions)} if conditions else {}), "rows": entries}


def write(
    rows: Sequence[Row],
    folder: Path,
    name: str,
    title: str,
    tolerance: float = TOLERANCE,
    conditions: Mapping[str, Any] | None = None,
    types: Sequence[Row] = (),
) -> None:
    """Writes `<name>.csv`, `<name>.json` and `<name>.md`, and with rows by defect type also `<name>_by_type.csv`.

    Args:
        rows: The table.
        folder: The run folder.
        name: Stem of the files.
        title: Title of the test, with its backbone.
        tolerance: See `render`.
        conditions: See `to_json`.
        types: Rows by defect type. They are not part of the means.
    """
    write_text(folder / f"{name}.csv", to_csv(rows))
    by_type = {"by_type": to_json(types, title)["rows"]} if types else {}
    write_json(folder / f"{name}.json", {**to_json(rows, title, conditions), **by_type})
    parts = [title, "", render(rows, tolerance, columns_of(rows)), *render_types(types, columns_of(types))]
    write_text(folder / f"{name}.md", "\n".join(parts) + "\n")
    if types:
        write_text(folder / f"{name}_by_type.csv", to_csv(types))


def write_scores(scores: Sequence[ImageScore], path: Path) -> None:
    """Writes the scores of all images as CSV, in full precision, so that thresholds give the same verdicts later."""
    write_text(
        path,
        csv_text(
            ImageScore._fields, ({**score._asdict(), "mask_known": int(score.mask_known)}.values() for score in scores)
        ),
    )


def write_curves(curves: Mapping[Key, Mapping[str, Points]], pro_limit: float, path: Path) -> None:
    """Writes the curves of all categories as JSON, to 5 decimals.

    Args:
        curves: Defined curves, by dataset and category.
        pro_limit: False-positive rate up to which the PRO curve goes.
        path: The file.
    """

    def rounded(curve: Points) -> dict[str, list[float]]:
        return {axis: [round(value, 5) for value in values] for axis, values in zip("xy", curve, strict=True)}

    entries = [
        {"dataset": dataset, "category": category, "curves": {name: rounded(curve) for name, curve in drawn.items()}}
        for (dataset, category), drawn in curves.items()
    ]
    write_text(path, json.dumps({"pro_limit": pro_limit, "categories": entries}) + "\n")
