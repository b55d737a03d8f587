"""Curves of the pixel metrics, drawn with matplotlib. Only this module imports it."""

from collections.abc import Sequence
from typing import cast

try:
    from matplotlib import pyplot
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("plots need matplotlib: pip install 'afclip_lightning[plots]'") from error

from afclip_lightning.metrics.curves import auroc, average_precision, precision_recall_curve, roc_curve
from afclip_lightning.metrics.histogram import ScoreCounts
from afclip_lightning.metrics.pro import pro, pro_curve


def plot_curves(
    counts: ScoreCounts, fpr_limit: float = 0.3, axes: Sequence[Axes] | None = None
) -> tuple[Figure, Sequence[Axes]]:
    """Returns a figure and its three axes, with the ROC, precision-recall and PRO curves and the areas under them.

    Args:
        counts: Counts of pixels.
        fpr_limit: Integration limit of PRO, in (0, 1]. The area up to it is shaded.
        axes: Three axes to draw on; a new figure by default.

    Raises:
        UndefinedMetricError: If there is no normal or no anomalous pixel.
        ValueError: If the number of axes is not three, or the limit is out of range.
    """
    fpr, tpr = roc_curve(counts)
    if axes is None:
        axes = list(pyplot.subplots(1, 3, figsize=(12, 4), layout="constrained")[1])
    if len(axes) != 3:
        raise ValueError(f"expected three axes, got {len(axes)}")
    roc, precision_recall, overlap = axes
    roc.plot(fpr, tpr)
    roc.set(xlabel="false-positive rate", ylabel="true-positive rate", title=f"ROC: AUROC {auroc(counts):.4f}")
    # Drawn as steps, like average precision: between two thresholds there is no precision.
    precision_recall.plot(*precision_recall_curve(counts), drawstyle="steps-pre")
    title = f"Precision-recall: AP {average_precision(counts):.4f}"
    precision_recall.set(xlabel="recall", ylabel="precision", title=title)
    fpr, pro_values = pro_curve(counts)
    overlap.plot(fpr, pro_values)
    overlap.fill_between(fpr, pro_values, where=(fpr <= fpr_limit).tolist(), alpha=0.2)
    overlap.axvline(fpr_limit, linestyle=":")
    title = f"PRO to FPR {fpr_limit:g}: {pro(counts, fpr_limit):.4f}"
    overlap.set(xlabel="false-positive rate", ylabel="per-region overlap", title=title)
    for axis in axes:
        axis.set(xlim=(0, 1), ylim=(0, 1.02))
    return cast(Figure, roc.figure), axes
