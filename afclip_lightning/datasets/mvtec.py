"""MVTec AD: fifteen kinds of objects and textures from industrial inspection."""

from collections.abc import Mapping

from afclip_lightning.data.published import Counts
from afclip_lightning.datasets.mvtec_layout import MVTecLayout


class MVTecAD(MVTecLayout):
    """MVTec AD: 15 categories, 467 normal and 1258 anomalous test images, with masks."""

    title = "MVTec AD"
    paper = "bergmann2019mvtec"
    url = "https://www.mvtec.com/research-teaching/datasets/mvtec-ad"
    name = "mvtec"
    published_counts: Mapping[str, Counts] = {
        "bottle": (None, 20, 63),
        "cable": (None, 58, 92),
        "capsule": (None, 23, 109),
        "carpet": (None, 28, 89),
        "grid": (None, 21, 57),
        "hazelnut": (None, 40, 70),
        "leather": (None, 32, 92),
        "metal_nut": (None, 22, 93),
        "pill": (None, 26, 141),
        "screw": (None, 41, 119),
        "tile": (None, 33, 84),
        "toothbrush": (None, 12, 30),
        "transistor": (None, 60, 40),
        "wood": (None, 19, 60),
        "zipper": (None, 32, 119),
    }
    published_total = (3629, 467, 1258)
    published = tuple(published_counts)
    required = ("test", "ground_truth")
    source = "MVTec AD from mvtec.com (research, datasets), unpacked into this folder."
    licence = "CC BY-NC-SA 4.0"
