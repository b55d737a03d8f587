"""MVTec AD: fifteen kinds of objects and textures from industrial inspection."""

from afclip_lightning.data.mvtec_layout import MVTecLayout


class MVTecAD(MVTecLayout):
    """MVTec AD: 15 categories, 467 normal and 1258 anomalous test images, with masks.

    Reference: Bergmann et al., MVTec AD, CVPR 2019.
    """

    name = "mvtec"
    published = (
        "bottle",
        "cable",
        "capsule",
        "carpet",
        "grid",
        "hazelnut",
        "leather",
        "metal_nut",
        "pill",
        "screw",
        "tile",
        "toothbrush",
        "transistor",
        "wood",
        "zipper",
    )
    required = ("test", "ground_truth")
    layout = """
bottle/train/good/000.png                      normal images (for few-shot)
bottle/test/good/000.png                       normal images
bottle/test/broken_large/000.png               anomalous images, one folder a kind of defect
bottle/ground_truth/broken_large/000_mask.png
cable/ … zipper/                               15 categories; fewer: name them in `categories`
"""
    source = """
MVTec AD from mvtec.com (research, datasets), unpacked into this folder.
Licence: CC BY-NC-SA 4.0.
"""
