"""Reads the files of a run folder for the page of a test run, each as a typed value."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta

from afclip_lightning.report.page import Card, data_uri, inside
from afclip_lightning.results import Key, Row
from afclip_lightning.results.finding import find_table
from afclip_runtime.errors import UserError
from afclip_runtime.files import read_bytes, read_csv, read_json

T = TypeVar("T")
Label = Annotated[int, Meta(ge=0, le=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Score = Annotated[float, Meta(ge=-1e300, le=1e300)]  # bounded, so that differences are finite


@dataclass(frozen=True)
class Case:
    """One test image with stored pictures.

    Attributes:
        label: 1 = anomalous, 0 = normal.
        kind: End of its category: `best` or `worst`.
        card: Card of the image.
    """

    label: int
    kind: str
    card: Card


@dataclass(frozen=True)
class Run:
    """The contents of a run folder. Missing parts are `None`.

    Attributes:
        folder: The run folder.
        title: Title of the run.
        rows: Results table.
        by_type: Rows of the table by defect type.
        record: `run.json`.
        scores: Scores of the normal and of the anomalous images, by category.
        curves: x and y of the defined curves, by category and name.
        pro_limit: False-positive rate up to which the PRO curve goes.
        cases: Images with stored pictures, by category.
    """

    folder: Path
    title: str
    rows: list[Row]
    record: dict[str, Any] | None
    scores: dict[Key, tuple[list[float], list[float]]] | None
    curves: dict[Key, dict[str, tuple[list[float], list[float]]]] | None
    pro_limit: float
    cases: dict[Key, list[Case]] | None
    by_type: list[Row] = field(default_factory=list)


def read_run(path: Path) -> Run:
    """Returns the contents of a run folder.

    Args:
        path: The run folder, or one of its tables, `results_x.json`.

    Raises:
        UserError: There is no table, or a file is damaged.
    """
    table, suffix = find_table(path)
    folder = table.parent
    results = read_json(table, _Table)
    kept = _optional(folder / f"curves{suffix}.json", _curves)
    return Run(
        folder=folder,
        title=results.title,
        rows=results.rows,
        record=_optional(folder / "run.json", _record),
        scores=_optional(folder / f"scores{suffix}.csv", _scores),
        curves=kept and kept[1],
        pro_limit=kept[0] if kept else 1.0,
        cases=None if suffix else _optional(folder / "pictures" / "cases" / "cases.json", _cases),
        by_type=results.by_type,
    )


@dataclass(frozen=True)
class _Table:
    title: str
    rows: list[Row]
    by_type: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class _Record:
    """What the page shows of `run.json`."""

    command: list[str] = field(default_factory=list)
    versions: dict[str, str | None] = field(default_factory=dict)
    method: str | None = None
    trainable_parameters: int | None = None
    backbone: str | None = None
    started: str | None = None
    git_revision: str | None = None
    python: str | None = None
    platform: str | None = None


@dataclass(frozen=True)
class _Score:
    dataset: str
    category: str
    label: Label
    score: Score


@dataclass(frozen=True)
class _Curve:
    x: list[Share]
    y: list[Share]

    def __post_init__(self) -> None:
        if not self.x or len(self.x) != len(self.y):
            raise ValueError(f"a curve has {len(self.x)} values of x and {len(self.y)} of y")


@dataclass(frozen=True)
class _CategoryCurves:
    dataset: str
    category: str
    curves: dict[str, _Curve]


@dataclass(frozen=True)
class _Curves:
    pro_limit: Annotated[float, Meta(gt=0, le=1)]
    categories: list[_CategoryCurves]


@dataclass(frozen=True)
class _Case:
    dataset: str
    category: str
    image: str
    label: Label
    score: Score
    kind: Literal["best", "worst"]
    mask_known: bool
    outline: Annotated[str, Meta(pattern=r"^[MLZ0-9. ]*$")]
    picture: str
    map: str


def _record(file: Path) -> dict[str, Any]:
    return asdict(read_json(file, _Record))


def _scores(file: Path) -> dict[Key, tuple[list[float], list[float]]]:
    scores: dict[Key, tuple[list[float], list[float]]] = {}
    for line in read_csv(file, _Score):
        scores.setdefault((line.dataset, line.category), ([], []))[line.label].append(line.score)
    return scores


def _curves(file: Path) -> tuple[float, dict[Key, dict[str, tuple[list[float], list[float]]]]]:
    kept = read_json(file, _Curves)
    curves = {
        (entry.dataset, entry.category): {name: (curve.x, curve.y) for name, curve in entry.curves.items()}
        for entry in kept.categories
    }
    return kept.pro_limit, curves


def _cases(file: Path) -> dict[Key, list[Case]]:
    cases: dict[Key, list[Case]] = {}
    for entry in read_json(file, list[_Case]):
        picture, anomaly_map = (_jpeg(file.parent, name) for name in (entry.picture, entry.map))
        status = "anomalous" if entry.label else "normal"
        note = "" if entry.mask_known else "mask not known"
        card = Card(entry.image, entry.score, status, picture, anomaly_map, entry.outline, note)
        cases.setdefault((entry.dataset, entry.category), []).append(Case(entry.label, entry.kind, card))
    return cases


def _jpeg(folder: Path, name: str) -> str:
    """Returns a picture of a case as text.

    Raises:
        UserError: The picture is missing, lies outside of the run folder, or is not a JPEG.
    """
    path = inside(folder, name)
    if path is None:
        raise UserError(f"{folder / name}: lies outside of the run folder. A page holds only files of that folder.")
    content = read_bytes(path)
    if not content.startswith(b"\xff\xd8\xff"):
        raise UserError(
            f"{path}: is not a JPEG. Restore it, or remove {folder / 'cases.json'} for a page without pictures."
        )
    return data_uri(content)


def _optional(file: Path, read: Callable[[Path], T]) -> T | None:
    """Returns the contents of a file, or `None` if there is no file."""
    return read(file) if file.exists() else None
