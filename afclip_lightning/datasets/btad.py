"""BTAD (beanTech): three industrial products."""

from collections.abc import Mapping

from afclip_lightning.data.published import Counts
from afclip_lightning.datasets.mvtec_layout import MVTecLayout


class BTAD(MVTecLayout):
    """BTAD: 3 categories, 451 normal and 290 anomalous test images, with masks.

    Images and masks are PNG or BMP, depending on the category. They are paired by stem.

    Reference: Mishra et al., VT-ADL, ISIE 2021.
    """

    title = "BTAD"
    paper = "mishra2021btad"
    url = "https://avires.dimi.uniud.it"
    name = "btad"
    published_counts: Mapping[str, Counts] = {"01": (None, 21, 49), "02": (None, 30, 200), "03": (None, 400, 41)}
    published_total = (1799, 451, 290)
    published = tuple(published_counts)
    class_names: Mapping[str, str] = dict.fromkeys(published_counts, "industrial product")
    normal_folder = "ok"
    required = ("test", "ground_truth")
    layout = """
01/train/ok/0000.bmp           normal images (for few-shot)
01/test/ok/0000.bmp            normal images
01/test/ko/0000.bmp            anomalous images
01/ground_truth/ko/0000.png    their masks
02/ 03/                        alike; images and masks are .bmp or .png
"""
    source = """
BTAD from avires.dimi.uniud.it; it unpacks to BTech_Dataset_transformed, which is this folder.
"""
    licence = "CC BY-NC-SA 4.0"
