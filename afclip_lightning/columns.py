"""The metrics of a results table, their names and titles, for whoever reads a table without computing one."""

METRICS = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_pro")
TITLES = ("I-AUROC", "I-AP", "I-F1", "P-AUROC", "P-AP", "P-F1", "P-PRO")
MEAN = "mean"
"""What stands for the category in a row that is the mean of a dataset's categories."""
