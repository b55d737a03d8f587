"""The page of inspected images: scores, and the most and the least anomalous ones."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta
from PIL import Image

from afclip_lightning.data.images import read_image
from afclip_lightning.report import charts
from afclip_lightning.report.charts import Histogram
from afclip_lightning.report.page import Card, Group, data_uri, inside
from afclip_lightning.report.page import render as render_page
from afclip_runtime.errors import DatasetError
from afclip_runtime.files import read_json_lines
from afclip_runtime.thresholds import ThresholdFrom

TABLE = "inspections.jsonl"
VOLUMES = "volumes.jsonl"  # verdicts on volumes, if there are any
SHOWN = 12  # maximum number of images in a gallery
LISTED = 1000  # maximum number of images in a table
SIDE = 320  # pixels of a picture's longer side


Score = Annotated[float, Meta(ge=-1e300, le=1e300)]  # bounded, so that differences are finite


@dataclass(frozen=True)
class Line:
    """A line of the table: an image. Unknown values are `None`."""

    path: str
    name: str
    score: Score | None = None
    probability: float | None = None
    threshold: Score | None = None
    threshold_from: ThresholdFrom | None = None
    verdict: Literal["anomalous", "normal", ""] | None = None
    area: float | None = None
    error: str | None = None
    method: str | None = None
    moved_to: str | None = None


@dataclass(frozen=True)
class Volume:
    """A line of the table of volumes. Unknown values are `None`."""

    volume: str
    path: str
    rule: str
    slices: int = 0
    score: Score | None = None
    verdict: Literal["anomalous", "normal"] | None = None
    anomalous_slices: int | None = None
    highest_slice: int | None = None
    map: str = ""
    error: str = ""
    method: str | None = None


@dataclass(frozen=True)
class Section:
    """The section of one method.

    Attributes:
        method: Name of the method; empty if it is the only one.
        images: Number of inspected images.
        counts: Numbers of images called `anomalous` and `normal`; empty without a threshold.
        histogram: Histogram of the scores.
        groups: The most and the least anomalous images.
        rows: Lines of the table, highest score first.
        by_default: Whether a verdict comes from the head's default threshold.
        volumes: Verdicts on volumes, highest score first; empty if there are none.
    """

    method: str
    images: int
    counts: dict[str, int]
    histogram: Histogram
    groups: list[Group]
    rows: list[Line]
    by_default: bool
    volumes: list[Volume]


def render(folder: Path, originals: bool = False) -> str:
    """Returns the page.

    Args:
        folder: Output folder of `inspect`.
        originals: Whether images without an overlay in the folder are also shown, read from their original path.

    Raises:
        UserError: The table is damaged.
    """
    lines = [line for _, line in read_json_lines(folder / TABLE, Line, cut_end=True)]
    path = folder / VOLUMES
    volumes = [volume for _, volume in read_json_lines(path, Volume)] if path.exists() else []
    scored: dict[str, list[Line]] = {}
    for line in lines:
        if line.score is not None:
            scored.setdefault(line.method or "", []).append(line)
    return render_page(
        "inspections.html",
        folder=folder.resolve().name,
        sections=[_section(folder, method, part, volumes, originals) for method, part in scored.items()],
        failed=[line for line in lines if line.error],
        listed=LISTED,
    )


def _section(folder: Path, method: str, lines: list[Line], volumes: list[Volume], originals: bool) -> Section:
    lines = sorted(lines, key=lambda line: -(line.score or 0.0))
    verdicts = [line.verdict for line in lines]
    up = [line.score for line in lines if line.score is not None and line.verdict != "normal"]
    down = [line.score for line in lines if line.score is not None and line.verdict == "normal"]
    most, least = lines[:SHOWN], lines[SHOWN:][::-1][:SHOWN]
    groups = [
        Group("Most anomalous", "highest scores first", [_card(folder, line, originals) for line in most]),
        Group("Least anomalous", "lowest scores first", [_card(folder, line, originals) for line in least]),
    ]
    return Section(
        method,
        len(lines),
        {verdict: verdicts.count(verdict) for verdict in ("anomalous", "normal")} if any(verdicts) else {},
        charts.histogram(down, up, lines[0].threshold),
        [group for group in groups if group.cards],
        lines[:LISTED],
        any(line.threshold_from == "default" for line in lines),
        sorted((v for v in volumes if (v.method or "") == method), key=lambda v: -(v.score or 0.0)),
    )


def _card(folder: Path, line: Line, originals: bool) -> Card:
    names = [f"{line.method or '.'}/overlays/{line.name}{suffix}" for suffix in (".jpg", ".png")]
    files = [path for name in names if (path := inside(folder, name))]
    picture = _thumbnail([*files, *([Path(line.moved_to or line.path)] if originals else [])])
    note = "" if line.area is None else f"{100 * line.area:.2g} % of the area"
    return Card(line.path, line.score or 0.0, line.verdict or "", picture, note=note)


def _thumbnail(files: Iterable[Path]) -> str:
    """Returns the first readable file as a small picture in text form; empty if there is none."""
    for file in files:
        try:
            return _jpeg(Image.fromarray(read_image(file, draft=2 * SIDE)))
        except DatasetError:
            continue  # the page says that there is no picture
    return ""


def _jpeg(image: Image.Image) -> str:
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return data_uri(buffer.getvalue())
