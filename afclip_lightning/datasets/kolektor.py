"""KolektorSDD: electrical commutators, in the two splits of papers; KolektorSDD2: surfaces of production items."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.images import pair_masks, read_mask
from afclip_lightning.data.names import ClassNames
from afclip_lightning.data.published import Counts
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.datasets.tiled_layout import Tile, TiledLayout
from afclip_lightning.types import Sample, Split
from afclip_runtime.images.find import list_folders, list_images

LICENCE = "CC BY-NC-SA 4.0"
CLASS_NAME = "electrical commutator"


class KolektorSDD(MVTecLayout):
    """KolektorSDD as AnomalyCLIP's authors split it: 181 normal and 74 anomalous test images, with masks.

    Only their copy has this split: it cannot be made from the original dataset. A mask has the stem of its image, alone
    or with `_mask` or `_label`. `KolektorSDDThirds` is the other split. Results on the two are not comparable. Both
    contain the same photographs, so do not train on one and test on the other.

    Reference: Tabernik et al., Segmentation-Based Deep-Learning Approach for Surface-Defect Detection, 2020.
    """

    title = "KolektorSDD"
    paper = "tabernik2020ksdd"
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

    Each of the 399 photographs is cut into three parts along its height. A part is anomalous if the mask marks anything
    in it. A quarter of the normal parts is held out for testing.

    Reference: Tabernik et al., Segmentation-Based Deep-Learning Approach for Surface-Defect Detection, 2020.
    """

    title = "KolektorSDD, in thirds"
    paper = "tabernik2020ksdd"
    url = "https://www.vicos.si/resources/kolektorsdd/"
    name = "sdd_thirds"
    published_counts: Mapping[str, Counts] = {"electrical_commutators": (None, 286, 54)}
    published = tuple(published_counts)
    class_names: Mapping[str, str] = {"electrical_commutators": CLASS_NAME}
    raw_folder = "KolektorSDD"
    raw_layout = "kos01/Part0.jpg and kos01/Part0_label.bmp, … kos02/ …"
    source = "KolektorSDD from vicos.si, unpacked into the folder `raw`; the tiles are cut from it."
    licence = LICENCE

    def find_tiles(self, raw: Path) -> list[Tile]:
        """Returns three tiles per photograph, sorted by path, from top to bottom.

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


class KolektorSDD2(AnomalyDataModule):
    """KolektorSDD2: 894 normal and 110 anomalous test images of surfaces, with masks.

    The mask of an image is `NAME_GT.png` beside it. All images have a mask, and an image is anomalous if its mask marks
    anything. All masks are read once to find out. The training split has 2085 normal and 246 anomalous images. The
    layout is taken from public loaders; it was not compared with the archive itself.

    Args:
        root: Folder of the dataset.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Number of loader processes; 0 loads in the main process.
        class_names: Name of the category in prompts.

    Raises:
        ValueError: An argument is out of its range.

    Reference: Bozic et al., Mixed supervision for surface-defect detection, Computers in Industry 129 (2021).
    """

    title = "KolektorSDD2"
    paper = "bozic2021ksdd2"
    url = "https://www.vicos.si"
    name = "sdd2"
    published_counts: Mapping[str, Counts] = {"surface": (2085, 894, 110)}
    class_names: Mapping[str, str] = {"surface": "production item surface"}
    layout = """
train/10000.png, train/10000_GT.png    images and their masks; an empty mask is of a normal image
test/20000.png, test/20000_GT.png      alike
"""
    source = "KolektorSDD2 from vicos.si, unpacked into this folder."
    licence = LICENCE

    def __init__(
        self,
        root: str | Path | None = None,
        train_split: Split = "test",
        batch_size: int = 8,
        num_workers: int = 2,
        class_names: ClassNames = None,
    ) -> None:
        super().__init__(root, None, train_split, batch_size, num_workers, class_names)
        self._marks: dict[tuple[Path, int, int], bool] = {}

    def find_categories(self) -> list[str]:
        """Returns the one category."""
        return list(self.published_counts)

    def missing(self) -> list[Path]:
        """Returns the folder of test images if it is missing."""
        return [folder for folder in (self.root / "test",) if not folder.is_dir()]

    def find_samples(self, category: str, split: Split) -> list[Sample]:
        """Returns the samples of one split, sorted by path.

        Raises:
            DatasetError: An image has no mask or a mask no image, or a mask cannot be read.
        """
        files = list_images(self.root / split)
        labels = [path for path in files if path.stem.endswith("_GT")]
        pairs = pair_masks([path for path in files if path not in set(labels)], labels, suffixes=("_GT",))
        marked = {image: mask for image, mask in pairs.items() if self._is_marked(mask)}
        return self.make_samples(category, split, [i for i in pairs if i not in marked], list(marked), marked)

    def _is_marked(self, mask: Path) -> bool:
        status = mask.stat()
        key = mask, status.st_mtime_ns, status.st_size
        if key not in self._marks:
            self._marks[key] = bool(read_mask(mask).any())
        return self._marks[key]

    def folders_of(self, category: str, split: Split) -> list[Path]:
        """Returns the folder of the split."""
        return [self.root / split]

    def files_of(self, category: str, split: Split) -> set[Path]:
        """Returns the images and masks of a split, including the empty masks of normal images."""
        return set(list_images(self.root / split))


def _thirds(image: Path, label: Path) -> list[Tile]:
    mask = read_mask(label)
    height, width = mask.shape
    edges = [height * i // 3 for i in range(4)]
    boxes = [(0, top, width, bottom) for top, bottom in pairwise(edges)]
    return [Tile(image, box, "defect" if mask[box[1] : box[3]].any() else "", (label,)) for box in boxes]
