"""DTD-Synthetic: twelve textures with drawn defects."""

from collections.abc import Mapping

from afclip_lightning.datasets.mvtec_layout import MVTecLayout


class DTDSynthetic(MVTecLayout):
    """DTD-Synthetic: 12 categories, 357 normal and 947 anomalous test images, with masks.

    Reference: Aota et al., Zero-shot versus Many-shot: Unsupervised Texture Anomaly Detection, WACV 2023.
    """

    title = "DTD-Synthetic"
    paper = "aota2023dtd"
    name = "dtd"
    class_names: Mapping[str, str] = {
        "Woven_001": "woven fabric",
        "Woven_068": "woven fabric",
        "Woven_104": "woven fabric",
        "Woven_125": "woven fabric",
        "Woven_127": "woven fabric",
        "Stratified_154": "stratified texture",
        "Blotchy_099": "blotchy texture",
        "Marbled_078": "marbled texture",
        "Perforated_037": "perforated texture",
        "Mesh_114": "mesh",
        "Fibrous_183": "fibrous texture",
        "Matted_069": "matted texture",
    }
    published = tuple(class_names)
    published_total = (None, 357, 947)
    required = ("test", "ground_truth")
    source = "DTD-Synthetic, by the link of its authors (Aota et al., WACV 2023), unpacked into this folder."
    licence = "not clear; the DTD pictures that it is made from are for research"
