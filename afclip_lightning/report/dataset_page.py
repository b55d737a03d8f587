"""The page of a dataset: numbers, sizes and depths of images, areas of defects, and pictures."""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from afclip_lightning.data.overview import KINDS_IN_ORDER, SPLITS, Group, Kind, Look, Overview
from afclip_lightning.report import contact_sheet
from afclip_lightning.report.charts import Bars, bars, strip_path, strip_place
from afclip_lightning.report.contact_sheet import how_many, share, summary
from afclip_lightning.report.page import data_uri
from afclip_lightning.report.page import render as render_page
from afclip_lightning.types import Split
from afclip_runtime.files import write_text

PAGE, SHEET = "dataset.html", "contact_sheet.png"
LISTED = 40  # maximum number of problems on the page
FREQUENT = 8  # maximum number of listed sizes
DECADES = 6  # decades of the axis of areas, which ends at 100 %
PATCH, INPUT = 14, 518  # pixels: side of a patch and of the input of the papers' backbone


@dataclass(frozen=True)
class Count:
    """The number of images with a common property.

    Attributes:
        what: The property.
        images: Number of images.
        width: Width of its bar in percent; 0 without a bar.
    """

    what: str
    images: int
    width: float


@dataclass(frozen=True)
class Balance:
    """A category's line in the table of the balance.

    Attributes:
        category: The category.
        counts: Numbers of images by split and kind, in the order of the columns.
        anomalous: Share of anomalous images among those with a label; `None` without labels.
        parts: Parts of its bar: meaning, CSS class of the colour, and width in percent.
    """

    category: str
    counts: list[int]
    anomalous: float | None
    parts: list[tuple[str, str, float]]


@dataclass(frozen=True)
class Areas:
    """A defect type's line in the table of areas.

    Attributes:
        category: The category.
        defect_type: Defect type; empty if the set names none.
        masks: Number of measured masks.
        images: Number of images of the type.
        low: Smallest marked share.
        middle: Median marked share.
        high: Largest marked share.
        dots: All shares on the axis, as an SVG path.
        middle_place: Position of the median on the axis.
    """

    category: str
    defect_type: str
    masks: int
    images: int
    low: float
    middle: float
    high: float
    dots: str
    middle_place: float


@dataclass(frozen=True)
class Picture:
    """A picture of the gallery.

    Attributes:
        path: Path of the image.
        name: Name of its file.
        picture: Data URI; empty if the image could not be read.
        size: Width and height of the picture, the coordinates of the outline.
        outline: Outline of the mask as an SVG path.
        close_up: Data URI of the largest region; empty if that is not small.
        area: Marked share, as text; empty if unknown.
        problem: Reason why a file could not be read.
    """

    path: str
    name: str
    picture: str
    size: tuple[int, int]
    outline: str
    close_up: str
    area: str
    problem: str


def write(folder: Path, overview: Overview) -> tuple[Path, Path]:
    """Writes the page and the contact sheet, and returns their paths.

    Raises:
        UserError: A file cannot be written.
    """
    page, sheet = folder / PAGE, folder / SHEET
    contact_sheet.write(sheet, overview)
    write_text(page, render(overview))
    return page, sheet


def render(overview: Overview) -> str:
    """Returns the page.

    Args:
        overview: Overview of the dataset.
    """
    columns = _columns(overview)
    marked = [value for group in overview.groups for value in group.marked]
    return render_page(
        "dataset.html",
        overview=overview,
        sheet=SHEET,
        summary=summary(overview),
        columns=columns,
        balance=_balance(overview, columns),
        sizes=_most(Counter({f"{w} × {h}": count for (w, h), count in overview.sizes.items()}), FREQUENT),
        sizes_there=len(overview.sizes),
        sides=_sides(overview),
        depths=_most(overview.depths, FREQUENT),
        endings=_most(overview.endings, FREQUENT),
        areas=[_areas(group) for group in overview.groups if group.marked],
        ticks=[(strip_place(10.0**power, DECADES), f"{100 * 10.0**power:g}") for power in range(-DECADES, 1)],
        patch=strip_place((PATCH / INPUT) ** 2, DECADES),
        patch_of=(PATCH, INPUT, share((PATCH / INPUT) ** 2)),
        measured=len(marked),
        below_patch=sum(0 < value < (PATCH / INPUT) ** 2 for value in marked),
        empty=sum(value == 0 for value in marked),
        categories=[
            (category, [(group, [_picture(look) for look in group.shown]) for group in groups])
            for category, groups in groupby(overview.groups, key=lambda group: group.category)
        ],
        listed=LISTED,
        share=share,
        how_many=how_many,
    )


def _columns(overview: Overview) -> list[tuple[Split, Kind]]:
    """Returns the splits and kinds with images. Test and normal come first."""
    there = {key for row in overview.counts.values() for key in row}
    return [(split, kind) for split in SPLITS for kind in KINDS_IN_ORDER if (split, kind) in there]


def _balance(overview: Overview, columns: Sequence[tuple[Split, Kind]]) -> list[Balance]:
    most = max(row.total() for row in overview.counts.values())
    rows = []
    for category, row in overview.counts.items():
        kinds: Counter[str] = Counter()
        for (_, kind), count in row.items():
            kinds[kind] += count
        labelled = kinds["normal"] + kinds["anomalous"]
        parts = [
            (f"{split}, {kind}", f"{split} {kind.replace(' ', '-')}", 100 * row[split, kind] / most)
            for split, kind in columns
            if row[split, kind]
        ]
        anomalous = kinds["anomalous"] / labelled if labelled else None
        rows.append(Balance(category, [row[key] for key in columns], anomalous, parts))
    return rows


def _most(counts: Counter[str], most: int) -> list[Count]:
    """Returns the most frequent entries, and the sum of the others."""
    rows = counts.most_common(most)
    named = sum(count for _, count in rows)
    highest = max((count for _, count in rows), default=1)
    found = [Count(what, count, 100 * count / highest) for what, count in rows]
    return [*found, Count(f"{len(counts) - most} others", counts.total() - named, 0.0)] if len(counts) > most else found


def _sides(overview: Overview) -> list[tuple[str, str, Bars]]:
    """Returns histograms of the longer side and of the shape, each with its title and the label of its x axis."""
    if len(overview.sizes) < 2:
        return []
    longer = Counter[float]()
    shape = Counter[float]()
    for (width, height), count in overview.sizes.items():
        longer[float(max(width, height))] += count
        shape[width / height] += count
    found = [("Longer side", "pixels", longer), ("Shape", "width over height", shape)]
    return [(title, label, bars(values)) for title, label, values in found if len(values) > 1]


def _areas(group: Group) -> Areas:
    marked, middle = group.marked, group.median or 0.0
    return Areas(
        group.category,
        group.defect_type,
        len(marked),
        group.images,
        marked[0],
        middle,
        marked[-1],
        strip_path(marked, DECADES),
        strip_place(middle, DECADES),
    )


def _picture(look: Look) -> Picture:
    path = look.sample.image_path
    height, width = (1, 1) if look.picture is None else look.picture.shape[:2]
    return Picture(
        str(path),
        path.name,
        "" if look.picture is None else _jpeg(look.picture),
        (width, height),
        "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in line) + "Z" for line in look.outline),
        "" if look.close_up is None else _jpeg(look.close_up),
        "" if look.marked is None else share(look.marked),
        look.problem.removeprefix(f"{path}: "),
    )


def _jpeg(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=82)
    return data_uri(buffer.getvalue())
