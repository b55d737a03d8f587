"""Mean ranks of methods as a critical-difference diagram. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from afclip_lightning.benchmark.comparison import Ranked
from afclip_lightning.metrics.significance import cliques
from afclip_lightning.results import TITLE_OF_ALL
from afclip_runtime.errors import shown
from afclip_runtime.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")
LINE = 0.28  # inches between names
GAP = 0.16  # inches between the bars of groups


def write(ranked: Ranked, folder: Path) -> list[Path]:
    """Writes the diagram as SVG and PNG and returns the files. Equal ranks give equal bytes."""
    from matplotlib import rc_context

    paths = [folder / f"ranks_{ranked.metric}_{ranked.over}.{kind}" for kind in FORMATS]
    for path, kind in zip(paths, FORMATS, strict=True):
        with atomic_path(path) as temporary, rc_context({"svg.hashsalt": "ranks", "svg.fonttype": "none"}):
            draw(ranked).savefig(
                temporary,
                format=kind,
                dpi=200,
                bbox_inches="tight",
                metadata={"Date": None} if kind == "svg" else None,
            )
    return paths


def draw(ranked: Ranked) -> Figure:
    """Returns an axis of mean ranks with the methods on it, the best on the left.

    Bars join the methods that do not differ significantly; the bar at the top is as long as the critical difference.

    Reference: Demšar, JMLR 7 (2006), figure 1.
    """
    from matplotlib.figure import Figure

    ranks, reach = ranked.ranking.ranks, ranked.ranking.critical_difference
    count = len(ranks)
    order = [int(i) for i in np.argsort(ranks, kind="stable")]
    bars = cliques(ranks, reach)
    left = (count + 1) // 2  # the better half has its names on the left
    below = GAP * (len(bars) + 1)  # inches from the axis to the first name
    height = 0.9 + below + LINE * left
    longest = max(len(shown(name)) for name in ranked.names)
    margin = 0.4 + 0.085 * (longest + 7)
    width = 2 * margin + max(4.0, 0.7 * count)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((margin / width, 0, 1 - 2 * margin / width, 1))
    axes.set_xlim(1, count)
    axes.set_ylim(-(height - 0.75), 0.75)  # inches, 0 at the axis
    axes.axis("off")

    def line(x: list[float], y: list[float], width: float = 1.0) -> None:
        axes.plot(x, y, color="black", linewidth=width, clip_on=False, solid_capstyle="butt")

    def write_at(x: float, y: float, text: str, ha: str, va: str = "center", size: int = 10) -> None:
        axes.text(x, y, shown(text), ha=ha, va=va, fontsize=size, parse_math=False)

    line([1, count], [0, 0])
    for rank in range(1, count + 1):
        line([rank, rank], [0, 0.08])
        write_at(rank, 0.12, str(rank), "center", "bottom", 9)
    end = 1 + min(reach, count - 1)
    line([1, end], [0.42, 0.42])
    for x in (1, end):
        line([x, x], [0.38, 0.46])
    beyond = "" if reach <= count - 1 else ", longer than the axis"
    title = f"{TITLE_OF_ALL[ranked.metric]}, {ranked.count} {ranked.over}: critical difference {reach:.2f}{beyond}"
    write_at(1, 0.5, f"{title}, Friedman p = {ranked.ranking.p_value:.2g}", "left", "bottom", 9)
    for number, bar in enumerate(bars, 1):
        line([ranks[bar[0]] - 0.02, ranks[bar[-1]] + 0.02], [-GAP * number, -GAP * number], 3.5)
    span = (count - 1) / (width - 2 * margin)  # ranks per inch
    for place, method in enumerate(order):
        on_left = place < left
        row = place if on_left else count - 1 - place
        y = -(below + LINE * (row + 0.5))
        x = 1 - 0.1 * span if on_left else count + 0.1 * span
        line([float(ranks[method]), float(ranks[method]), x], [0, y, y])
        name, mean_rank = ranked.names[method], f"{ranks[method]:.2f}"
        if on_left:
            write_at(x - 0.06 * span, y, f"{name}  {mean_rank}", "right")
        else:
            write_at(x + 0.06 * span, y, f"{mean_rank}  {name}", "left")
    return figure
