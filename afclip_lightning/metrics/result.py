"""The result of a category, from the counts of its scores: metrics, error bounds, thresholds and curves."""

from contextlib import suppress
from dataclasses import dataclass, field

from afclip_lightning.metrics import curves
from afclip_lightning.metrics.curves import Curve
from afclip_lightning.metrics.histogram import ScoreCounts
from afclip_lightning.metrics.pro import ProDefinition, pro, pro_curve, pro_error_bound, to_limit
from afclip_lightning.results import MaskCounts, Row

SMALL_LIMIT = 0.05
"""Integration limit of `pixel_pro_05`, from MVTec AD 2 (arXiv 2503.21622), where few false alarms are allowed."""


@dataclass(frozen=True)
class Result:
    """The result of a category. A metric that is not defined is absent everywhere.

    Attributes:
        metrics: `image_auroc`, `image_ap`, `image_f1_max`, `pixel_ap`, `pixel_auroc`, `pixel_f1_max`, `pixel_pro`,
            `pixel_pro_05`, each in [0, 1].
        error_bounds: Largest error of each metric by binning, and by rounding of whole numbers beyond 2^53. Empty if
            there was neither.
        thresholds: The highest threshold that reaches `image_f1_max`, and `pixel_f1_max`. Scores above it are
            anomalous.
        normal: Number of normal images.
        anomalous: Number of anomalous images.
        curves: `image_roc`, `image_pr`, `pixel_roc`, `pixel_pr` and `pixel_pro`, each where its metrics are defined.
            `pixel_pro` ends at its limit and follows the exact definition.
    """

    metrics: dict[str, float]
    error_bounds: dict[str, float]
    thresholds: dict[str, float]
    normal: int
    anomalous: int
    curves: dict[str, Curve] = field(default_factory=dict)

    def row(self, dataset: str, category: str, masks: MaskCounts | None = None) -> Row:
        """Returns the category's row of the results table; see `Row`."""
        return Row(
            dataset,
            category,
            self.normal,
            self.anomalous,
            self.metrics,
            error_bounds=self.error_bounds,
            thresholds=self.thresholds,
            masks=masks,
        )


def result_of(
    images: ScoreCounts,
    pixels: ScoreCounts,
    *,
    scored: bool = True,
    masked: bool = True,
    image_bounds: bool = False,
    pixel_bounds: bool = True,
    fpr_limit: float = 0.3,
    definition: ProDefinition = "exact",
) -> Result:
    """Returns the result of a category from the counts of its scores.

    Args:
        images: Counts of image scores.
        pixels: Counts of pixel scores.
        scored: Whether all images have scores. Otherwise there are no image metrics.
        masked: Whether the masks of all anomalous images are known. Otherwise there are no pixel metrics.
        image_bounds: Whether image scores may have been moved, so that image metrics have error bounds.
        pixel_bounds: Whether pixel scores may have been moved, so that pixel metrics have error bounds.
        fpr_limit: Integration limit of `pixel_pro`, in (0, 1].
        definition: See `pro`.
    """
    values: dict[str, float] = {}
    thresholds: dict[str, float] = {}
    bounds: dict[str, float] = {}
    drawn: dict[str, Curve] = {}
    if scored and _has_both(images):
        values, thresholds = _ranking("image", images)
        drawn = _curves("image", images)
        if image_bounds:
            bounds = _bounds("image", images)
    if masked and _has_both(pixels):
        pixel_values, pixel_thresholds = _ranking("pixel", pixels)
        values, thresholds = values | pixel_values, thresholds | pixel_thresholds
        drawn |= _curves("pixel", pixels)
        drawn["pixel_pro"] = Curve.of(*to_limit(*pro_curve(pixels), fpr_limit), width=fpr_limit)
        bounds |= _bounds("pixel", pixels) if pixel_bounds else {}
        for key, limit in (("pixel_pro", fpr_limit), ("pixel_pro_05", SMALL_LIMIT)):
            with suppress(curves.UndefinedMetricError):  # some legacy definitions are undefined
                values[key] = pro(pixels, limit, definition)
            if pixel_bounds:
                bounds[key] = pro_error_bound(pixels, limit)
    return Result(values, bounds, thresholds, int(images.normal.sum()), int(images.anomalous.sum()), drawn)


def group_metrics(groups: ScoreCounts) -> tuple[dict[str, float], dict[str, float]]:
    """Returns `group_auroc`, `group_ap`, `group_f1_max` and the threshold of the last; nothing if all have one label.

    Args:
        groups: Counts of the scores of groups of images.
    """
    return _ranking("group", groups) if _has_both(groups) else ({}, {})


def _has_both(counts: ScoreCounts) -> bool:
    return bool(counts.normal.any() and counts.anomalous.any())


def _bounds(level: str, counts: ScoreCounts) -> dict[str, float]:
    """Returns the error bounds of AUROC, AP and F1-max of the images or the pixels."""
    return {
        f"{level}_auroc": curves.auroc_error_bound(counts),
        f"{level}_ap": curves.average_precision_error_bound(counts),
        f"{level}_f1_max": curves.f1_max_error_bound(counts),
    }


def _ranking(level: str, counts: ScoreCounts) -> tuple[dict[str, float], dict[str, float]]:
    """Returns AUROC, AP and F1-max of the images or the pixels, and the threshold of F1-max."""
    f1_max, threshold = curves.f1_max(counts)
    values = {"auroc": curves.auroc(counts), "ap": curves.average_precision(counts), "f1_max": f1_max}
    return {f"{level}_{key}": value for key, value in values.items()}, {f"{level}_f1_max": threshold}


def _curves(level: str, counts: ScoreCounts) -> dict[str, Curve]:
    """Returns the ROC and the precision-recall curve of the images or the pixels."""
    return {
        f"{level}_roc": Curve.of(*curves.roc_curve(counts)),
        f"{level}_pr": Curve.of(*curves.precision_recall_curve(counts)),
    }
