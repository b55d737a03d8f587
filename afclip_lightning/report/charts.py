"""Curves and histograms as SVG paths. Pages need neither a script nor a library to draw them."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

WIDTH, HEIGHT = 216, 150
"""Size of the plot area; x to the right, y downwards from its upper left corner."""
BINS = 32
STRIP_WIDTH, STRIP_HEIGHT = 240, 18
"""Size of a line of dots; x to the right, y downwards."""


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: Level of the scores: `image` or `pixel`.
        path: SVG path in the plot area.
        value: Metric that summarises the curve, as text; empty if there is none.
    """

    name: str
    path: str
    value: str


@dataclass(frozen=True)
class Chart:
    """Curves over one pair of axes. Both axes begin at 0, and y ends at 1.

    Attributes:
        title: Title of the chart.
        x_label: Label of the x axis.
        y_label: Label of the y axis.
        x_max: End of the x axis.
        lines: The curves.
        point: Position of the threshold on the image curve, in the plot area; `None` if it is unknown.
    """

    title: str
    x_label: str
    y_label: str
    x_max: float
    lines: tuple[Line, ...]
    point: tuple[float, float] | None = None


@dataclass(frozen=True)
class Histogram:
    """Scores of anomalous images above the middle line, and of normal images below it, at the same scale.

    Attributes:
        anomalous: SVG path of the bars above.
        normal: SVG path of the bars below.
        low: Score at the left end.
        high: Score at the right end.
        peak: Number of images in the highest bar.
        threshold: Distance of the threshold from the left; `None` if there is none.
    """

    anomalous: str
    normal: str
    low: float
    high: float
    peak: int
    threshold: float | None


@dataclass(frozen=True)
class Bars:
    """A histogram of values.

    Attributes:
        path: SVG path of the bars, in the plot area.
        low: Value at the left end.
        high: Value at the right end.
        peak: Count of the highest bar.
    """

    path: str
    low: float
    high: float
    peak: int


def place(x: float, y: float, x_max: float = 1.0) -> tuple[float, float]:
    """Returns the position of a point in the plot area, for x in [0, x_max] and y in [0, 1]."""
    return round(WIDTH * x / x_max, 1), round(HEIGHT * (1 - y), 1)


def line_path(x: Sequence[float], y: Sequence[float], x_max: float = 1.0, steps: bool = False) -> str:
    """Returns a curve as an SVG path in the plot area.

    Args:
        x: `[n]`, in [0, x_max].
        y: `[n]`, in [0, 1].
        x_max: End of the x axis.
        steps: Whether the curve is a step function, in which each y holds back to the x before it, as in average
            precision. Otherwise its points are joined by straight lines.
    """
    points = [place(a, b, x_max) for a, b in zip(x, y, strict=True)]
    separator = "V{1}H{0}" if steps else "L{0} {1}"
    first, *rest = (point for point, _ in groupby(points))  # points at the same position are drawn once
    return f"M{first[0]} {first[1]}" + "".join(separator.format(*point) for point in rest)


def histogram(normal: Sequence[float], anomalous: Sequence[float], threshold: float | None) -> Histogram:
    """Returns the scores of normal and anomalous images in `BINS` bins of equal width.

    Args:
        normal: Scores of the normal images.
        anomalous: Scores of the anomalous images. There is at least one score in all.
        threshold: Threshold to show. The range is extended to it.
    """
    shown = [*normal, *anomalous, *([] if threshold is None else [threshold])]
    low, high = min(shown), max(shown)
    width = (high - low) / BINS or 1.0
    counts = [[0] * BINS for _ in range(2)]
    for row, scores in zip(counts, (normal, anomalous), strict=True):
        for score in scores:
            row[min(int((score - low) / width), BINS - 1)] += 1
    peak = max(map(max, counts))
    bar, middle = WIDTH / BINS, HEIGHT / 2

    def bars(row: list[int], sign: int) -> str:
        sizes = [(i, sign * count / peak * (middle - 4)) for i, count in enumerate(row) if count]
        return "".join(f"M{i * bar:.1f} {middle:g}v{size:.1f}h{bar - 1:.1f}v{-size:.1f}z" for i, size in sizes)

    at = None if threshold is None else round(WIDTH * (threshold - low) / (BINS * width), 1)
    return Histogram(bars(counts[1], -1), bars(counts[0], 1), low, low + BINS * width, peak, at)


def bars(counts: Mapping[float, int]) -> Bars:
    """Returns the histogram of values, in `BINS` bins of equal width.

    Args:
        counts: Count of each value. There is at least one.
    """
    low, high = min(counts), max(counts)
    width = (high - low) / BINS or 1.0
    heights = [0] * BINS
    for value, count in counts.items():
        heights[min(int((value - low) / width), BINS - 1)] += count
    peak, bar = max(heights), WIDTH / BINS
    # a bar of a few values stays visible beside one of thousands
    sizes = [(i, max(count / peak * HEIGHT, 1.0)) for i, count in enumerate(heights) if count]
    path = "".join(f"M{i * bar:.1f} {HEIGHT}v{-size:.1f}h{bar - 1:.1f}v{size:.1f}z" for i, size in sizes)
    return Bars(path, low, low + BINS * width, peak)


def strip_place(share: float, decades: int) -> float:
    """Returns the position of a share in [0, 1] on a logarithmic axis that ends at 1.

    Too small shares are at its start.
    """
    if share <= 10.0**-decades:
        return 0.0
    return round(STRIP_WIDTH * (1 + math.log10(share) / decades), 1)


def strip_path(shares: Sequence[float], decades: int) -> str:
    """Returns shares as dots on that axis: an SVG path for strokes with round ends.

    Dots that would hide each other are drawn in rows.

    Args:
        shares: Shares in [0, 1].
        decades: Decades of the axis.
    """
    places = Counter(strip_place(share, decades) for share in shares)
    rows = (0.5, 0.25, 0.75)  # heights of the rows, for dots that would hide each other
    dots = [(x, rows[i % len(rows)] * STRIP_HEIGHT) for i, x in enumerate(sorted(places))]
    return "".join(f"M{x:g} {y:g}h0" for x, y in dots)
