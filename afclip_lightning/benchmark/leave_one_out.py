"""A benchmark's leave-one-out table: heads are tested on a dataset that was left out of their training."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean

from afclip_lightning.benchmark.matrix import Matrix
from afclip_lightning.benchmark.render import NONE, Grid, spread
from afclip_lightning.benchmark.table import Measurement
from afclip_lightning.results import MEAN, METRICS, SHOWN, TITLE

Values = Mapping[str, Mapping[str, Mapping[int, float]]]  # in percent, by held-out set, metric and seed


def leave_one_out_table(rows: Sequence[Measurement], matrix: Matrix) -> list[Grid]:
    """Returns the table: for each method, a row per held-out dataset and a row of their mean, mean ± SD over seeds.

    A mean needs all datasets. It is computed for each seed, so that its deviation is the deviation of the mean.

    Args:
        rows: The benchmark's table.
        matrix: The benchmark's matrix.

    Returns:
        One table, or none if the matrix leaves nothing out.
    """
    held = {row.test[0]: row.label for row in matrix.rows[len(matrix.transfers) :]}
    groups: dict[tuple[str, int, str], dict[str, dict[str, dict[int, float]]]] = {}
    methods = list(matrix.methods)
    for row in sorted(rows, key=lambda row: (methods.index(row.method), row.shots, row.backbone)):
        if row.category == MEAN and row.dataset in held and row.train in ("", held[row.dataset]):
            values = groups.setdefault((row.method, row.shots, row.backbone), {})
            values.setdefault(row.dataset, defaultdict(dict))[row.metric][row.seed] = 100 * row.value
    measured = {metric for values in groups.values() for part in values.values() for metric in part}
    columns = [metric for metric in METRICS if metric in SHOWN or metric in measured]
    body = []
    for (method, shots, backbone), values in groups.items():
        facts, last = (method, str(shots)), backbone.partition(" (")[0] or NONE
        for name in filter(values.__contains__, held):
            seeds = {seed for metric in values[name].values() for seed in metric}
            cells = [spread(list(values[name].get(metric, {}).values())) for metric in columns]
            body.append((*facts, name, str(len(seeds)), *cells, last))
        cells = [spread(_means(values, list(held), metric)) for metric in columns]
        body.append((*facts, f"mean of {len(held)}", NONE, *cells, last))
    header = ("method", "shots", "left out", "seeds", *(TITLE[metric] for metric in columns), "backbone")
    about = "Heads are fitted on all the other sets together and tested on the one that is left out."
    return [Grid("Leave one set out", header, tuple(body), 3, below=(about,))] if body else []


def _means(values: Values, held: Sequence[str], metric: str) -> list[float]:
    """Returns the mean over all held-out datasets, for each seed that all of them have."""
    parts = [values.get(name, {}).get(metric, {}) for name in held]
    return [mean(part[seed] for part in parts) for seed in parts[0] if all(seed in part for part in parts)]
