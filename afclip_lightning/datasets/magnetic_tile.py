"""Magnetic tiles: grey photographs of one product with five kinds of defects."""

from collections.abc import Mapping

from afclip_lightning.datasets.mvtec_layout import MVTecLayout


class MagneticTile(MVTecLayout):
    """Magnetic tiles, one category, with masks: blowhole, break, crack, fray and uneven, in MVTec AD's layout.

    The authors' archive has no training and test split, and each mask is beside its image. Create the folders below
    from it. The split of the good tiles is your choice, so there are no published counts. Leave out defective tiles
    whose mask is empty.
    """

    title = "Magnetic tiles"
    paper = "huang2020magnetic"
    url = "https://github.com/abin24"
    name = "magnetic_tile"
    published = ("magnetic_tile",)
    flat = True
    class_names: Mapping[str, str] = {"magnetic_tile": "magnetic tile"}
    required = ("test/good", "test/blowhole", "ground_truth/blowhole")
    layout = """
train/good/*.jpg                        normal images (for few-shot)
test/good/*.jpg                         normal images
test/<defect>/*.jpg                     anomalous images: blowhole, break, crack, fray, uneven
ground_truth/<defect>/<image>_mask.png
"""
    source = "Magnetic tile defects from github.com/abin24, rearranged into the folders above."
    licence = "none stated; its authors ask to be cited"
