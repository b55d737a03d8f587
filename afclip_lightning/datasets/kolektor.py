"""KolektorSDD: electrical commutators, in the two splits that papers use."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from afclip_lightning.data.images import list_folders, list_images, pair_masks, read_mask
from afclip_lightning.data.published import Counts
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.datasets.tiled_layout import Tile, TiledLayout

LICENCE = "CC BY-NC-SA 4.0"
CLASS_NAME = "electrical commutator"


class KolektorSDD(MVTecLayout):
    """KolektorSDD as AnomalyCLIP's authors split it: 181 normal and 74 anomalous test images, with masks.

    Only their copy has this split: it cannot be made from the original set. A mask has the stem of its image, alone or
    with `_mask` or `_label`. `KolektorSDDThirds` is the other split; the numbers of the two do not compare, and since
    both hold the same photographs, one must not be trained on to test on the other.

    Reference: Tabernik et al., Segmentation-Based Deep-Learning Approach for Surface-Defect Detection, 2020.
    """

    name = "sdd"
    published_counts: Mapping[str, Counts] = {"electrical commutators": (None, 181, 74)}
    published = tuple(published_counts)
    class_names: Mapping[str, str] = {"electrical commutators": CLASS_NAME}
    mask_suffixes = ("", "_mask", "_label")
    required = ("test/good", "ground_truth")
    layout = """
electrical commutators/train/good/*            normal images (for few-shot)
electrical commutators/test/{good,<defect>}/*  normal and anomalous images
electrical commutators/ground_truth/<defect>/*
"""
    source = "The copy that github.com/zqhang/AnomalyCLIP links to; the original is at vicos.si."
    licence = LICENCE


class KolektorSDDThirds(TiledLayout):
    """KolektorSDD as DRA, InCTRL and AdaCLIP split it: 286 normal and 54 anomalous test images, with masks.

    Each of the 399 photographs is cut in three along its height; a third is anomalous if its part of the label is, and
    a quarter of the normal thirds is held out for testing.

    Reference: Tabernik et al., Segmentation-Based Deep-Learning Approach for Surface-Defect Detection, 2020.
    """

    name = "sdd_thirds"
    published_counts: Mapping[str, Counts] = {"electrical_commutators": (None, 286, 54)}
    published = tuple(published_counts)
    class_names: Mapping[str, str] = {"electrical_commutators": CLASS_NAME}
    raw_folder = "KolektorSDD"
    raw_layout = "kos01/Part0.jpg and kos01/Part0_label.bmp, … kos02/ …"
    source = "KolektorSDD from vicos.si, unpacked into the folder `raw`; the tiles are cut from it."
    licence = LICENCE

    def find_tiles(self, raw: Path) -> list[Tile]:
        """Returns three tiles a photograph, sorted by path, from top to bottom.

        Raises:
            DatasetError: A photograph has no label, or a label no photograph.
        """
        tiles = []
        for folder in (p for p in list_folders(raw) if p.name.startswith("kos")):
            files = list_images(folder)
            labels = [path for path in files if path.stem.endswith("_label")]
            images = [path for path in files if path not in labels]
            for image, label in pair_masks(images, labels, suffixes=("_label",)).items():
                tiles += _thirds(image, label)
        return sorted(tiles, key=lambda tile: (tile.image, tile.box))


def _thirds(image: Path, label: Path) -> list[Tile]:
    mask = read_mask(label)
    height, width = mask.shape
    edges = [height * i // 3 for i in range(4)]
    boxes = [(0, top, width, bottom) for top, bottom in pairwise(edges)]
    return [Tile(image, box, "defect" if mask[box[1] : box[3]].any() else "", (label,)) for box in boxes]
