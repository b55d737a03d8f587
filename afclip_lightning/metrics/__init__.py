"""Evaluation of anomaly scores and maps. Metrics are streamed, their sums are exact, and each category has a state."""

from afclip_lightning.metrics.anomaly_metrics import AnomalyMetrics, NotFiniteError
from afclip_lightning.metrics.curves import (
    Curve,
    UndefinedMetricError,
    auroc,
    auroc_error_bound,
    average_precision,
    average_precision_error_bound,
    f1_max,
    f1_max_error_bound,
    precision_recall_curve,
    roc_curve,
    threshold_at_fpr,
    threshold_at_sensitivity,
)
from afclip_lightning.metrics.histogram import ScoreCounts, ScoreHistogram, exact_counts
from afclip_lightning.metrics.pro import (
    ProDefinition,
    count_regions,
    label_regions,
    pro,
    pro_curve,
    pro_error_bound,
    region_areas,
)
from afclip_lightning.metrics.result import Result

__all__ = [
    "AnomalyMetrics",
    "Curve",
    "NotFiniteError",
    "ProDefinition",
    "Result",
    "ScoreCounts",
    "ScoreHistogram",
    "UndefinedMetricError",
    "auroc",
    "auroc_error_bound",
    "average_precision",
    "average_precision_error_bound",
    "count_regions",
    "exact_counts",
    "f1_max",
    "f1_max_error_bound",
    "label_regions",
    "precision_recall_curve",
    "pro",
    "pro_curve",
    "pro_error_bound",
    "region_areas",
    "roc_curve",
    "threshold_at_fpr",
    "threshold_at_sensitivity",
]
