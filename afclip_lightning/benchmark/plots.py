"""A benchmark's table as bars: a figure a metric."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from afclip_lightning.benchmark.published import Published
from afclip_lightning.benchmark.render import TITLE, Measured
from afclip_lightning.files import atomic_path


def plot(results: Sequence[Measured], published: Sequence[Published], folder: Path) -> list[Path]:
    """Draws, for each metric, a bar a method and test set, with what the method's own tables print as a mark over it.

    A bar is the mean over seeds, its line the standard deviation. Needs matplotlib.

    Returns:
        The pictures.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    paths, turbo = [], colormaps["turbo"]
    printed = {(row.label, row.shots, row.dataset, row.metric): row.value for row in reversed(published)}
    for metric, title in TITLE.items():
        keys = [(r, key) for r in results for key in r.values if key[2] == metric]
        if not keys:
            continue
        datasets = list(dict.fromkeys(key[1] for _, key in keys))
        bars = list(dict.fromkeys((result.method, key[0]) for result, key in keys))
        figure = Figure(figsize=(max(6.0, 1.5 + 0.28 * len(datasets) * (len(bars) + 1)), 4.5), layout="constrained")
        axes = figure.add_subplot()
        width, marks = 1 / (len(bars) + 1), []
        for number, (method, shots) in enumerate(bars):
            mine = {
                key[1]: (r, list(r.values[key].values())) for r, key in keys if (r.method, key[0]) == (method, shots)
            }
            places = [datasets.index(name) + number * width for name in mine]
            values = [values for _, values in mine.values()]
            errors = [stdev(v) if len(v) > 1 else 0.0 for v in values]
            label = method if shots == "0" else f"{method}, {shots} shots"
            axes.bar(
                places,
                list(map(mean, values)),
                width,
                yerr=errors,
                label=label,
                color=turbo((number + 0.5) / len(bars)),
            )
            for place, (name, (result, _)) in zip(places, mine.items(), strict=True):
                found = [printed.get((label, shots, name, metric)) for label in result.labels]
                marks += [(place, value) for value in found if value is not None][:1]
        if marks:
            axes.plot(*zip(*marks, strict=True), "k_", markersize=10, label="published")
        axes.set_xticks(
            [i + (len(bars) - 1) * width / 2 for i in range(len(datasets))], datasets, rotation=20, ha="right"
        )
        axes.set_ylabel(f"{title} in percent")
        axes.set_ylim(0, 100)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper center", ncols=4, fontsize="small", frameon=False)
        path = folder / f"{metric}.png"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=120, format="png")
        paths.append(path)
    return paths
