"""MVTec 3D-AD: ten objects seen by a 3D sensor. Only the colour images are read."""

from pathlib import Path
from typing import ClassVar

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.defect_types import with_defect_types
from afclip_lightning.data.images import pair_masks
from afclip_lightning.types import Sample, Split
from afclip_runtime.errors import DatasetError
from afclip_runtime.images.find import list_folders, walk_images

NORMAL = "good"
COLOUR, MASK = "rgb", "gt"


class MVTec3D(AnomalyDataModule):
    """MVTec 3D-AD: 10 categories, 249 normal and 948 anomalous test images, with masks; colour only, without depth.

    An image is `rgb/000.png`, and its mask is `gt/000.png`. The coordinates in `xyz` and the empty masks of normal
    images are not read. Thresholds are computed from `validation/good`. The layout is taken from public loaders; it was
    not compared with the archive itself.

    Args:
        root: Folder of the dataset.
        categories: Categories to use; all by default.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Number of loader processes; 0 loads in the main process.
        class_names: Names of categories in prompts. They replace or extend the dataset's own class names.

    Raises:
        ValueError: An argument is out of its range.

    Reference: Bergmann et al., The MVTec 3D-AD Dataset, VISAPP 2022, arXiv 2112.09045.
    """

    title = "MVTec 3D-AD (colours)"
    paper = "bergmann2022mvtec3d"
    url = "https://www.mvtec.com/research-teaching/datasets/mvtec-3d-ad"
    name = "mvtec_3d"
    published: ClassVar[tuple[str, ...]] = (
        "bagel",
        "cable_gland",
        "carrot",
        "cookie",
        "dowel",
        "foam",
        "peach",
        "potato",
        "rope",
        "tire",
    )
    published_total = (2656, 249, 948)
    layout = """
<category>/train/good/rgb/000.png            normal images (for few-shot)
<category>/validation/good/rgb/000.png       normal images (for thresholds)
<category>/test/{good,<defect>}/rgb/000.png  normal and anomalous images
<category>/test/<defect>/gt/000.png          masks
"""
    source = "MVTec 3D-AD from mvtec.com (research, datasets), unpacked into this folder."
    licence = "CC BY-NC-SA 4.0"

    def find_categories(self) -> list[str]:
        """Returns the published categories."""
        return list(self.published)

    def missing(self) -> list[Path]:
        """Returns the missing folders of the categories in use."""
        wanted = [self.root / c / "test" / NORMAL / COLOUR for c in self.selected_categories()]
        return [folder for folder in wanted if not folder.is_dir()]

    def find_samples(self, category: str, split: Split) -> list[Sample]:
        """Returns the samples of one category and split, sorted by path.

        Raises:
            DatasetError: A mask has no image or an anomalous image no mask.
        """
        folder = self.root / category / split
        normal = walk_images(folder / NORMAL / COLOUR)
        masks: dict[Path, Path] = {}
        for kind in (kind for kind in list_folders(folder) if kind.name != NORMAL):
            masks |= pair_masks(walk_images(kind / COLOUR), walk_images(kind / MASK), suffixes=("",))
        samples = self.make_samples(category, split, normal, list(masks), masks)
        return with_defect_types(samples, {image: image.relative_to(folder).parts[0] for image in masks})

    def folders_of(self, category: str, split: Split) -> list[Path]:
        """Returns the folders of the split that hold colour images and their masks."""
        kinds = list_folders(self.root / category / split)
        return [kind / part for kind in kinds for part in ((COLOUR,) if kind.name == NORMAL else (COLOUR, MASK))]

    def threshold_samples(self, category: str) -> list[Sample]:
        """Returns the normal images of `validation/good`, sorted by path.

        Raises:
            DatasetError: There is none.
        """
        folder = self.root / category / "validation" / NORMAL / COLOUR
        if not (images := walk_images(folder)):
            raise DatasetError(f"{folder} has no image, so no threshold comes from it. Unpack the whole dataset.")
        return self.as_read(self.make_samples(category, "test", images, [], None))
