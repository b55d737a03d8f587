"""Curves and histograms as SVG paths, for pages that need no script and no library to draw them."""

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
        name: What it is of: `image` or `pixel`.
        path: SVG path in the plot area.
        value: The number that sums it up, as text; empty if there is none.
    """

    name: str
    path: str
    value: str


@dataclass(frozen=True)
class Chart:
    """Curves over one pair of axes, both of which begin at 0; y ends at 1.

    Attributes:
        title: What the chart is called.
        x_label: What is to the right.
        y_label: What is upwards.
        x_max: Where x ends.
        lines: The curves.
        point: Where the threshold is on the image curve, in the plot area; `None` if it is not known.
    """

    title: str
    x_label: str
    y_label: str
    x_max: float
    lines: tuple[Line, ...]
    point: tuple[float, float] | None = None


@dataclass(frozen=True)
class Histogram:
    """Scores of anomalous images above the middle line, of normal ones below it, at one scale.

    Attributes:
        anomalous: SVG path of the bars above.
        normal: SVG path of the bars below.
        low: Score at the left end.
        high: Score at the right end.
        peak: Images in the highest bar.
        threshold: Where the threshold is, from the left; `None` if there is none.
    """

    anomalous: str
    normal: str
    low: float
    high: float
    peak: int
    threshold: float | None


@dataclass(frozen=True)
class Bars:
    """How often values occur.

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
    """Returns where a point is in the plot area, for x in [0, x_max] and y in [0, 1]."""
    return round(WIDTH * x / x_max, 1), round(HEIGHT * (1 - y), 1)


def line_path(x: Sequence[float], y: Sequence[float], x_max: float = 1.0, steps: bool = False) -> str:
    """Returns a curve as an SVG path in the plot area.

    Args:
        x: `[n]`, in [0, x_max].
        y: `[n]`, in [0, 1].
        x_max: Where the x axis ends.
        steps: Each y holds back to the x before, as average precision takes it, instead of a straight line between.
    """
    points = [place(a, b, x_max) for a, b in zip(x, y, strict=True)]
    separator = "V{1}H{0}" if steps else "L{0} {1}"
    first, *rest = (point for point, _ in groupby(points))  # what falls on one place is drawn once
    return f"M{first[0]} {first[1]}" + "".join(separator.format(*point) for point in rest)


def histogram(normal: Sequence[float], anomalous: Sequence[float], threshold: float | None) -> Histogram:
    """Returns the scores of normal and anomalous images in `BINS` bins of one width.

    Args:
        normal: Scores of the normal images.
        anomalous: Scores of the anomalous ones; together there is at least one.
        threshold: Shown, and within the range if it is a number.
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
    """Returns how often values occur, in `BINS` bins of one width.

    Args:
        counts: How often, by value; there is at least one.
    """
    low, high = min(counts), max(counts)
    width = (high - low) / BINS or 1.0
    heights = [0] * BINS
    for value, count in counts.items():
        heights[min(int((value - low) / width), BINS - 1)] += count
    peak, bar = max(heights), WIDTH / BINS
    # a bar of few beside one of thousands is still seen
    sizes = [(i, max(count / peak * HEIGHT, 1.0)) for i, count in enumerate(heights) if count]
    path = "".join(f"M{i * bar:.1f} {HEIGHT}v{-size:.1f}h{bar - 1:.1f}v{size:.1f}z" for i, size in sizes)
    return Bars(path, low, low + BINS * width, peak)


def strip_place(share: float, decades: int) -> float:
    """Returns where a share in [0, 1] is on a logarithmic axis that ends at 1; what is too small, at its beginning."""
    if share <= 10.0**-decades:
        return 0.0
    return round(STRIP_WIDTH * (1 + math.log10(share) / decades), 1)


def strip_path(shares: Sequence[float], decades: int) -> str:
    """Returns shares as dots on that axis, an SVG path to be stroked with round ends; equal ones lie over each other.

    Args:
        shares: In [0, 1].
        decades: Of the axis.
    """
    places = Counter(strip_place(share, decades) for share in shares)
    rows = (0.5, 0.25, 0.75)  # one dot above another where they would hide each other
    dots = [(x, rows[i % len(rows)] * STRIP_HEIGHT) for i, x in enumerate(sorted(places))]
    return "".join(f"M{x:g} {y:g}h0" for x, y in dots)
