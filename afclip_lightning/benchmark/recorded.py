"""Reads runs with their image records from folders, and checks that they are on the same images."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from afclip_lightning.metrics.image_counts import ImageRecord
from afclip_lightning.metrics.image_records import read_records, records_file
from afclip_lightning.results import MEAN, Key
from afclip_lightning.results.finding import find_table
from afclip_lightning.results.operating import OperatingPoint, points_as_metrics, thresholds_of
from afclip_runtime.errors import UserError
from afclip_runtime.files import read_csv, read_json

NAMED = 3  # maximum number of images in a message


@dataclass(frozen=True)
class Recorded:
    """A run with its image records.

    Attributes:
        path: Folder or table of the run.
        records: Image records by dataset and category.
        metrics: Metrics of its table, in [0, 1], and those at its fixed thresholds, by dataset and category.
        pro_limit: False-positive rate up to which its PRO is integrated.
        size: Size at which its pixels were evaluated, in words.
        thresholds: Thresholds that were fixed without labels, by dataset and category, and by level.
    """

    path: Path
    records: Mapping[Key, Sequence[ImageRecord]]
    metrics: Mapping[Key, Mapping[str, float]]
    pro_limit: float
    size: str
    thresholds: Mapping[Key, Mapping[str, float]] = field(default_factory=dict)

    @property
    def has_pixels(self) -> bool:
        """Whether the pixels of its images were counted."""
        return any(record.counts is not None for records in self.records.values() for record in records)


@dataclass(frozen=True)
class Group:
    """The runs of one method, which differ only by their seed.

    Attributes:
        name: Name of the method in tables.
        runs: The runs, at least one.
    """

    name: str
    runs: tuple[Recorded, ...]


@dataclass(frozen=True)
class _Row:
    dataset: str
    category: str
    metrics: dict[str, float]
    operating_points: dict[str, OperatingPoint] = field(default_factory=dict)


@dataclass(frozen=True)
class _Table:
    rows: list[_Row]
    conditions: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Curves:
    pro_limit: Annotated[float, Meta(gt=0, le=1)]


@dataclass(frozen=True)
class _Score:
    dataset: str
    category: str
    image: str
    label: Annotated[int, Meta(ge=0, le=1)]
    score: float


def read_recorded(path: Path) -> Recorded:
    """Returns a test run; only with its image scores if its pixels were not counted.

    Args:
        path: Folder of the run, or one of its tables, `results_x.json`.

    Raises:
        UserError: It is not a test run, or a file of it is absent or damaged. The message names the file.
    """
    table, suffix = find_table(path)
    folder = table.parent
    results = read_json(table, _Table, finite=False)  # a threshold may be infinite
    source = folder / records_file(suffix)
    if source.exists():
        records = read_records(source)
    else:
        source = folder / f"scores{suffix}.csv"
        records = _scores(source)
    rows = {(row.dataset, row.category): row for row in results.rows if row.category != MEAN}
    metrics = {key: row.metrics | points_as_metrics(row.operating_points) for key, row in rows.items()}
    if absent := metrics.keys() ^ records.keys():
        raise UserError(
            f"{table} and {source.name} beside it are not from the same test: only one of them has "
            f"{'/'.join(min(absent))}. Test again."
        )
    size = results.conditions.get("resolution") or "backbone"
    seen = results.conditions.get("image_size")
    return Recorded(
        path,
        records,
        metrics,
        read_json(folder / f"curves{suffix}.json", _Curves).pro_limit,
        "each image's own size" if size == "image" else f"{seen} pixels" if seen else "the backbone's size",
        {key: thresholds_of(row.operating_points) for key, row in rows.items()},
    )


def _scores(path: Path) -> dict[Key, list[ImageRecord]]:
    records: dict[Key, list[ImageRecord]] = {}
    for line in read_csv(path, _Score):
        record = ImageRecord(line.image, line.label, line.score, None)
        records.setdefault((line.dataset, line.category), []).append(record)
    return records


def on_the_same_images(groups: Sequence[Group]) -> list[Group]:
    """Returns the runs with the image names of the first run, wherever their datasets were.

    Raises:
        UserError: A run is named twice, or two runs are not on the same images with the same labels. The message says
            which images differ.
    """
    runs = [run for group in groups for run in group.runs]
    places = [run.path.resolve() for run in runs]
    if twice := next((run.path for run, place in zip(runs, places, strict=True) if places.count(place) > 1), None):
        raise UserError(f"{twice} is named twice. Name each run once.")
    moved = [replace(group, runs=tuple(_moved(run, runs[0]) for run in group.runs)) for group in groups]
    for run in (run for group in moved for run in group.runs):
        _check_same(runs[0], run)
    return moved


def _moved(run: Recorded, to: Recorded) -> Recorded:
    """Returns a run with the dataset paths of another run. The same dataset has other paths on another machine."""
    records = dict(run.records)
    for dataset in {key[0] for key in records} & {key[0] for key in to.records}:
        mine, theirs = _paths(run, dataset), _paths(to, dataset)
        if set(mine) & set(theirs):
            continue
        root, new = (os.path.commonpath([os.path.dirname(path) for path in paths]) for paths in (mine, theirs))
        for key in [key for key in records if key[0] == dataset]:
            renamed = [replace(r, name=os.path.join(new, os.path.relpath(r.name, root))) for r in records[key]]
            records[key] = renamed
    return replace(run, records=records)


def _paths(run: Recorded, dataset: str) -> list[str]:
    return [record.name for key, records in run.records.items() if key[0] == dataset for record in records]


def _check_same(first: Recorded, second: Recorded) -> None:
    problem = f"{first.path} and {second.path} are not runs on the same images"
    remedy = "Compare runs of the same test set."
    mine, theirs = (
        {(*key, record.name): record.label for key, records in run.records.items() for record in records}
        for run in (first, second)
    )
    for one, images, other in ((first, mine, theirs), (second, theirs, mine)):
        if alone := sorted(images.keys() - other.keys()):
            kinds = Counter("/".join(image[:2]) for image in alone)
            raise UserError(
                f"{problem}: {len(alone)} of {len(images)} are in {one.path} alone, "
                f"{_some(image[2] for image in alone)} (of {_some(kinds)}). {remedy}"
            )
    if other_label := sorted(image for image in mine if mine[image] != theirs[image]):
        raise UserError(
            f"{first.path} and {second.path} disagree on which images are normal: {len(other_label)} images have "
            f"another label, {_some(image[2] for image in other_label)}. {remedy}"
        )


def _some(names: Iterable[str]) -> str:
    """Returns the first names, for a message."""
    listed = list(names)
    return ", ".join(listed[:NAMED]) + (", …" if len(listed) > NAMED else "")
