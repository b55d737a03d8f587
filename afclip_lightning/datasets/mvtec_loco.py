"""MVTec LOCO AD: five scenes with logical and structural anomalies."""

from collections.abc import Mapping

from afclip_lightning.datasets.saturated_layout import SaturatedLayout


class MVTecLOCO(SaturatedLayout):
    """MVTec LOCO AD: 5 categories, 575 normal and 993 anomalous test images (561 logical, 432 structural), with masks.

    Rows by defect type (`evaluation.defect_types`) are logical and structural anomalies, each with all normal images;
    what papers print is the mean of the two. Thresholds come from `validation/good`.

    Layout and totals follow the readme and the published evaluation; they were not compared with the archive itself.
    The paper has 1772 training images, the archive that goes round 1778, so that no number of these is compared.

    Reference: Bergmann et al., Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Detection and
        Localization, IJCV 130 (2022).
    """

    name = "mvtec_loco"
    published = ("breakfast_box", "juice_bottle", "pushpins", "screw_bag", "splicing_connectors")
    published_total = (None, 575, 993)
    class_names: Mapping[str, str] = {
        "pushpins": "box of pushpins",
        "screw_bag": "bag of screws",
    }
    validation = "validation/good"
    layout = """
<category>/train/good/000.png                    normal images (for few-shot)
<category>/validation/good/000.png               normal images (for thresholds)
<category>/test/good/000.png                     normal images
<category>/test/{logical,structural}_anomalies/000.png
<category>/ground_truth/{logical,structural}_anomalies/000/000.png, 001.png …   one mask per defect
<category>/defects_config.json                   how much of each kind of defect has to be found
"""
    source = "MVTec LOCO AD from mvtec.com (research, datasets), unpacked into this folder."
    licence = "CC BY-NC-SA 4.0"
