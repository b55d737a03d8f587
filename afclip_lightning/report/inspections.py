"""The page of inspected images: scores, and the most and the least anomalous ones."""

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from afclip_lightning.report import charts
from afclip_lightning.report.charts import Histogram
from afclip_lightning.report.page import Card, Group, data_uri, read
from afclip_lightning.report.page import render as render_page

TABLE = "inspections.jsonl"
COLUMNS = ("path", "score", "probability", "threshold", "verdict", "area", "error", "name")
SHOWN = 12  # images in a gallery
LISTED = 1000  # images in a table
SIDE = 320  # pixels of a picture's longer side


@dataclass(frozen=True)
class Section:
    """What the page shows of one method.

    Attributes:
        method: Its name; empty if there is one only.
        images: How many were inspected.
        counts: How many of them were called `anomalous`, and how many `normal`; empty without a threshold.
        histogram: Their scores.
        groups: The most and the least anomalous.
        rows: Lines of the table, highest score first.
    """

    method: str
    images: int
    counts: dict[str, int]
    histogram: Histogram
    groups: list[Group]
    rows: list[dict[str, Any]]


def render(folder: Path) -> str:
    """Returns the page.

    Args:
        folder: Output folder of `inspect`.

    Raises:
        UserError: Its table is damaged.
    """
    rows = read(folder / TABLE, _rows)
    scored: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["score"] is not None:
            scored.setdefault(row["method"], []).append(row)
    return render_page(
        "inspections.html",
        folder=folder.resolve().name,
        sections=[_section(folder, method, part) for method, part in scored.items()],
        failed=[row for row in rows if row["error"]],
        listed=LISTED,
    )


def _rows(file: Path) -> list[dict[str, Any]]:
    """Returns the lines of the table but a last one that was cut off."""
    whole = file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    rows = [json.loads(line) for line in whole]
    return [{"method": row.get("method") or "", **{column: row[column] for column in COLUMNS}} for row in rows]


def _section(folder: Path, method: str, rows: list[dict[str, Any]]) -> Section:
    rows = sorted(rows, key=lambda row: -row["score"])
    verdicts = [row["verdict"] for row in rows]
    up = [row["score"] for row in rows if row["verdict"] != "normal"]
    down = [row["score"] for row in rows if row["verdict"] == "normal"]
    place = folder / method / "overlays"
    most, least = rows[:SHOWN], rows[SHOWN:][::-1][:SHOWN]
    groups = [
        Group("Most anomalous", "highest scores first", [_card(place, row) for row in most]),
        Group("Least anomalous", "lowest scores first", [_card(place, row) for row in least]),
    ]
    return Section(
        method,
        len(rows),
        {verdict: verdicts.count(verdict) for verdict in ("anomalous", "normal")} if any(verdicts) else {},
        charts.histogram(down, up, rows[0]["threshold"]),
        [group for group in groups if group.cards],
        rows[:LISTED],
    )


def _card(overlays: Path, row: dict[str, Any]) -> Card:
    files = [overlays / f"{row['name']}{suffix}" for suffix in (".jpg", ".png")]
    picture = _thumbnail([*files, Path(row["path"])])
    note = "" if row["area"] is None else f"{100 * row['area']:.2g} % of the area"
    return Card(row["path"], row["score"], row["verdict"] or "", picture, note=note)


def _thumbnail(files: Iterable[Path]) -> str:
    """Returns the first of the files that can be read as a small picture, as text; empty if there is none."""
    for file in files:
        try:
            with Image.open(file) as image:
                image.draft("RGB", (2 * SIDE, 2 * SIDE))
                small = image.convert("RGB")
        except (OSError, Image.DecompressionBombError):
            continue  # the page says that there is no picture
        return _jpeg(small)
    return ""


def _jpeg(image: Image.Image) -> str:
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return data_uri(buffer.getvalue())
