"""MVTec LOCO AD: five scenes with logical and structural anomalies."""

from collections.abc import Mapping

from afclip_lightning.data.published import Counts
from afclip_lightning.datasets.saturated_layout import SaturatedLayout


class MVTecLOCO(SaturatedLayout):
    """MVTec LOCO AD: 5 categories, 575 normal and 993 anomalous test images (561 logical, 432 structural), with masks.

    Rows by defect type (`evaluation.defect_types`) are logical and structural anomalies, each with all normal images.
    Papers report the mean of the two. Thresholds are computed from `validation/good`.

    The layout follows the published evaluation. The counts are those that several users of the archive list. They add
    up to the paper's test set of 1568 images, but were not compared with the archive itself. The paper has 6 training
    images of splicing connectors fewer than these lists, so that number is not checked.

    Reference: Bergmann et al., Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Detection and
        Localization, IJCV 130 (2022).
    """

    title = "MVTec LOCO AD"
    paper = "bergmann2022loco"
    url = "https://www.mvtec.com/research-teaching/datasets/mvtec-loco-ad"
    labels = "image, pixel, per defect"
    name = "mvtec_loco"
    published_counts: Mapping[str, Counts] = {
        "breakfast_box": (351, 102, 173),
        "juice_bottle": (335, 94, 236),
        "pushpins": (372, 138, 172),
        "screw_bag": (360, 122, 219),
        "splicing_connectors": (None, 119, 193),
    }
    published_total = (None, 575, 993)
    published = tuple(published_counts)
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
