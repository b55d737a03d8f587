"""GoodsAD: goods of a supermarket, in six kinds of packages."""

from collections.abc import Mapping

from afclip_lightning.data.published import Counts
from afclip_lightning.datasets.mvtec_layout import MVTecLayout


class GoodsAD(MVTecLayout):
    """GoodsAD (PKU-GoodsAD): 6 categories, 1328 normal and 1660 anomalous test images, with masks.

    Images have 3000 x 3000 pixels. A category holds many goods; the first three digits of a file name are the number of
    the goods. The authors state the counts, and that the layout is MVTec AD's (github.com/jianzhang96/GoodsAD). Names
    of masks were not compared with the archives themselves. A mask has the stem of its image, alone or with `_mask`.

    Reference: Zhang et al., PKU-GoodsAD: A Supermarket Goods Dataset, RA-L 9 (2024), arXiv 2307.04956.
    """

    title = "GoodsAD"
    paper = "zhang2024goodsad"
    url = "https://github.com/jianzhang96/GoodsAD"
    name = "goods_ad"
    published_counts: Mapping[str, Counts] = {
        "cigarette_box": (183, 183, 246),
        "drink_bottle": (733, 356, 425),
        "drink_can": (234, 147, 147),
        "food_bottle": (1014, 243, 361),
        "food_box": (432, 146, 251),
        "food_package": (540, 253, 230),
    }
    published_total = (3136, 1328, 1660)
    published = tuple(published_counts)
    required = ("test", "ground_truth")
    source = "GoodsAD from the links of github.com/jianzhang96/GoodsAD, an archive per category, into this folder."
    licence = "not stated; see its source"
