"""A benchmark's table as bar charts, one figure per metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

from afclip_lightning.benchmark.published import Published
from afclip_lightning.benchmark.render import TITLE, Measured
from afclip_runtime.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOW = 1.0  # percent; a lower bar would be invisible


def plot(results: Sequence[Measured], published: Sequence[Published], folder: Path) -> list[Path]:
    """Writes the figure of each metric that was measured. Needs matplotlib.

    Returns:
        The files.
    """
    paths = []
    for metric in TITLE:
        if any(key[2] == metric for result in results for key in result.values):
            paths.append(folder / f"{metric}.png")
            with atomic_path(paths[-1]) as temporary:
                draw(results, published, metric).savefig(temporary, dpi=120, format="png")
    return paths


def draw(results: Sequence[Measured], published: Sequence[Published], metric: str) -> Figure:
    """Returns a figure with one bar per method and test set. Marks show the published numbers of the method.

    A bar is the mean over seeds, its line the standard deviation. A bar that is too low to be seen is replaced by its
    number. Results on another backbone than the papers' have no marks. Names include the backbone if it is known.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    turbo = colormaps["turbo"]
    printed = {(row.label, row.shots, row.dataset, row.metric): row.value for row in reversed(published)}
    keys = [(r, key) for r in results for key in r.values if key[2] == metric]
    datasets = list(dict.fromkeys(key[1] for _, key in keys))
    bars = list(dict.fromkeys((result.name, key[0]) for result, key in keys))
    figure = Figure(figsize=(max(6.0, 1.5 + 0.28 * len(datasets) * (len(bars) + 1)), 4.5), layout="constrained")
    axes = figure.add_subplot()
    width, marks = 1 / (len(bars) + 1), []
    for number, (name, shots) in enumerate(bars):
        mine = {key[1]: (r, list(r.values[key].values())) for r, key in keys if (r.name, key[0]) == (name, shots)}
        places = [datasets.index(dataset) + number * width for dataset in mine]
        values = [values for _, values in mine.values()]
        errors = [stdev(v) if len(v) > 1 else 0.0 for v in values]
        label = name if shots == "0" else f"{name}, {shots} shots"
        color = turbo((number + 0.5) / len(bars))
        axes.bar(places, list(map(mean, values)), width, yerr=errors, label=label, color=color)
        for place, (dataset, (result, measured)) in zip(places, mine.items(), strict=True):
            found = [printed.get((label, shots, dataset, metric)) for label in result.labels if result.comparable]
            marks += [(place, value) for value in found if value is not None][:1]
            if mean(measured) < LOW:
                axes.text(place, 1, f"{mean(measured):.1f}", ha="center", va="bottom", rotation=90, fontsize="x-small")
    if marks:
        axes.plot(*zip(*marks, strict=True), "k_", markersize=10, label="published")
    axes.set_xticks([i + (len(bars) - 1) * width / 2 for i in range(len(datasets))], datasets, rotation=20, ha="right")
    axes.set_ylabel(f"{TITLE[metric]} in percent")
    axes.set_ylim(0, 100)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=4, fontsize="small", frameon=False)
    return figure
