"""Every metric, the heading of its column, and the tables that show it."""

TITLE = {
    "image_auroc": "I-AUROC",
    "image_ap": "I-AP",
    "image_f1_max": "I-F1",
    "pixel_ap": "P-AP",
    "pixel_auroc": "P-AUROC",
    "pixel_f1_max": "P-F1",
    "pixel_pro": "P-PRO",
    "pixel_pro_05": "P-PRO@5%",
    "pixel_aupimo": "P-AUPIMO",
    "pixel_spro": "P-sPRO",
    "pixel_spro_05": "P-sPRO@5%",
    "group_auroc": "G-AUROC",
    "group_ap": "G-AP",
    "group_f1_max": "G-F1",
}
"""Every metric and the heading of its column, in the order of all tables."""

METRICS = tuple(TITLE)

SHOWN = METRICS[:7]
"""Metrics of every table, for which a terminal has room. Files and pages also show the others, if there are any."""

IN_FILES = METRICS[:9]
"""Columns of every `results.csv`. Rarer metrics follow if a row has them."""

ALSO_SHOWN = ("pixel_spro_05", "pixel_aupimo", "group_auroc")
"""Further metrics that a terminal shows if a run has them."""

FIXED = {
    "image_fixed_fpr": "I-FPR",
    "image_fixed_tpr": "I-TPR",
    "image_fixed_balanced_accuracy": "I-BA",
    "image_fixed_f1": "I-F1 fixed",
    "pixel_fixed_fpr": "P-FPR",
    "pixel_fixed_tpr": "P-TPR",
    "pixel_fixed_balanced_accuracy": "P-BA",
    "pixel_fixed_f1": "P-F1 fixed",
}
"""Rates at a threshold fixed without labels: name in files and loggers, and heading beside metrics."""

TITLE_OF_ALL = TITLE | FIXED
"""Everything that has intervals and is compared."""

RANKED = (*METRICS, *(name for name in FIXED if not name.endswith(("_fpr", "_tpr"))))
"""The metrics that show by themselves which method is better. False- and true-positive rates trade off each other."""
