"""The three sets of BMAD that have masks: brain MRI, liver CT, retina OCT."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.images import pair_masks
from afclip_lightning.data.names import ClassNames
from afclip_lightning.data.published import Counts, facts_of
from afclip_lightning.types import Sample, Split
from afclip_runtime.images.find import list_images

Subset = Literal["brain", "liver", "resc"]
MASK_FOLDERS = ("label", "anomaly_mask")


@dataclass(frozen=True)
class SubsetFacts:
    """Facts on one subset.

    Attributes:
        folder: Its folder in the folder of all datasets.
        category: Its only category.
        class_name: Name of the category in prompts.
        origin: The datasets from which it was made.
        counts: Published numbers of images.
    """

    folder: str
    category: str
    class_name: str
    origin: str
    counts: Counts


SUBSETS: dict[Subset, SubsetFacts] = {
    "brain": SubsetFacts("BMAD/Brain", "brain", "brain MRI", "BraTS 2021", (7500, 640, 3075)),
    "liver": SubsetFacts("BMAD/Liver", "liver", "liver CT", "LiTS and BTCV", (1542, 833, 660)),
    "resc": SubsetFacts("BMAD/RESC", "retina", "retinal OCT", "RESC", (4297, 1041, 764)),
}


class BMAD(AnomalyDataModule):
    """One subset of BMAD, with normal training images and masks: brain MRI, liver CT or retina OCT (RESC).

    Numbers of normal and anomalous test images: `brain` 640 and 3075, `liver` 833 and 660, `resc` 1041 and 764. Masks
    are in a folder `label`, or `anomaly_mask` as in BMAD's own readme. Masks of normal images are not read. Images are
    in a folder `img`, or directly in the folder above if `img` does not exist. The folder `valid` is not used.

    Args:
        subset: The subset. Its name in metric keys and tables is `bmad_<subset>`.
        root: Folder of the subset; its default root by default.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Number of loader processes; 0 loads in the main process.
        class_names: Names of categories in prompts. They replace the subset's own class names.

    Raises:
        ValueError: There is no such subset, or an argument is out of its range.

    Reference: Bao et al., BMAD: Benchmarks for Medical Anomaly Detection.
    """

    paper = "bao2024bmad"
    url = "https://github.com/DorisBao/BMAD"
    layout = """
train/good/*.png                           normal images (for few-shot)
test/good/img/*.png                        normal images
test/Ungood/img/*.png                      anomalous images
test/Ungood/{label,anomaly_mask}/*.png     their masks, of the same names
"""

    def __init__(
        self,
        subset: Subset,
        root: str | Path | None = None,
        train_split: Split = "test",
        batch_size: int = 8,
        num_workers: int = 2,
        class_names: ClassNames = None,
    ) -> None:
        facts = facts_of(subset, SUBSETS)
        self.name, self.folder = f"bmad_{subset}", facts.folder  # first, because the default root depends on them
        super().__init__(
            root, None, train_split, batch_size, num_workers, {facts.category: facts.class_name, **(class_names or {})}
        )
        self.title = f"BMAD, {facts.class_name}"
        self.category = facts.category
        self.published_counts = {facts.category: facts.counts}
        self.source = f"github.com/DorisBao/BMAD; made from {facts.origin}. The archive's folder of this set."
        self.licence = f"that of its origin, {facts.origin}"

    @classmethod
    def variants(cls, root: Path) -> list[AnomalyDataModule]:
        """Returns one dataset per subset."""
        return [cls(subset, root) for subset in get_args(Subset)]

    def find_categories(self) -> list[str]:
        """Returns the set's only category."""
        return [self.category]

    def missing(self) -> list[Path]:
        """Returns the required folders that are missing."""
        wanted = [self.root / "test/good", self.root / "test/Ungood", self._masks]
        return [path for path in wanted if not path.is_dir()]

    def find_samples(self, category: str, split: Split) -> list[Sample]:
        """Returns the samples of one split, sorted by path; all training samples are normal.

        Raises:
            DatasetError: A mask has no image or an anomalous image no mask.
        """
        normal = _images(self.root / split / "good")
        if split == "train":
            return self.make_samples(category, split, normal, [], None)
        anomalous = _images(self.root / "test/Ungood")
        return self.make_samples(category, split, normal, anomalous, pair_masks(anomalous, list_images(self._masks)))

    def folders_of(self, category: str, split: Split) -> list[Path]:
        """Returns the folders of the split's images and masks."""
        good = self.root / split / "good"
        return [good] if split == "train" else [good, self.root / "test/Ungood"]

    def files_of(self, category: str, split: Split) -> set[Path]:
        """Returns the images and masks of the split. Masks of normal images are left out on purpose."""
        masks = [self.root / split / "good" / name for name in MASK_FOLDERS]
        return super().files_of(category, split).union(*map(list_images, masks))

    @property
    def _masks(self) -> Path:
        named = [self.root / "test/Ungood" / name for name in MASK_FOLDERS]
        return next((folder for folder in named if folder.is_dir()), named[0])


def _images(folder: Path) -> list[Path]:
    return list_images(folder / "img") or list_images(folder)
