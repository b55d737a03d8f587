"""DAGM 2007: ten drawn textures, with weak labels."""

from pathlib import Path
from types import MappingProxyType

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.images import pair_masks
from afclip_lightning.data.names import normal_form
from afclip_lightning.types import Sample, Split
from afclip_runtime.images.find import list_images

CLASSES = tuple(f"Class{i}" for i in range(1, 11))


class DAGM(AnomalyDataModule):
    """DAGM 2007: 10 categories, 6996 normal and 1054 anomalous test images of the folders `Test`.

    An image is anomalous if it has a mask. The masks are coarse ellipses around the defects, so pixel metrics are less
    meaningful than elsewhere. The folders `Train` also hold anomalous images; few-shot images are normal ones.

    Differs: AdaCLIP merges `Train` and `Test` and keeps as many normal images as anomalous ones, which gives other
    results.

    Reference: Wieler and Hahn, Weakly Supervised Learning for Industrial Optical Inspection, DAGM 2007.
    """

    title = "DAGM 2007"
    paper = "wieler2007dagm"
    labels = "image, weak pixel"
    name = "dagm"
    published_total = (None, 6996, 1054)
    class_names = MappingProxyType(dict.fromkeys(CLASSES, "textured surface"))
    layout = """
Class1/{Train,Test}/0001.PNG               images
Class1/{Train,Test}/Label/0001_label.PNG   masks of the anomalous ones
Class2/ … Class10/                         10 categories; fewer: name them in `categories`
"""
    source = "Kaggle, mhskjelvareid, or hci.iwr.uni-heidelberg.de; the folder that holds Class1 to Class10."
    licence = "not clear; see its source"

    def find_categories(self) -> list[str]:
        """Returns the ten categories."""
        return list(CLASSES)

    def missing(self) -> list[Path]:
        """Returns the missing folders `Test`, and the missing mask folders of existing folders `Train`."""
        splits = [
            self.root / category / split for category in self.selected_categories() for split in ("Test", "Train")
        ]
        needed = [folder for folder in splits if folder.name == "Test" or folder.is_dir()]
        return [path for folder in needed for path in (folder, folder / "Label") if not path.is_dir()]

    def folders_of(self, category: str, split: Split) -> list[Path]:
        """Returns the split's folder, which contains the folder of its masks."""
        return [self.root / category / split.capitalize()]

    def find_samples(self, category: str, split: Split) -> list[Sample]:
        """Returns the samples of one category and split, sorted by path.

        Raises:
            DatasetError: A mask has no image, or two images or masks have one name.
        """
        folder = self.root / category / split.capitalize()
        images, labels = list_images(folder), list_images(folder / "Label")
        stems = {normal_form(label.stem).removesuffix("_label") for label in labels}
        anomalous = [image for image in images if normal_form(image.stem) in stems]
        normal = [image for image in images if normal_form(image.stem) not in stems]
        masks = pair_masks(anomalous, labels, suffixes=("_label",))
        return self.make_samples(category, split, normal, anomalous, masks)
