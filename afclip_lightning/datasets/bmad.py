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
    """What is known of one set.

    Attributes:
        folder: Its folder in the one that holds all datasets.
        category: Its only category.
        class_name: What a prompt calls it.
        origin: The sets that it was made from.
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
    """One set of BMAD, with normal training images and masks: brain MRI, liver CT or retina OCT (RESC).

    Test images, normal and anomalous: `brain` 640 and 3075, `liver` 833 and 660, `resc` 1041 and 764. Masks lie in a
    folder `label`, or `anomaly_mask` as BMAD's own readme has it; those of normal images are not read. Images lie in a
    folder `img`, or directly where that is not there. The folder `valid` is not used.

    Args:
        subset: The set; its name in metric keys and tables is `bmad_<subset>`.
        root: Folder of the set; the published one by default.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Loader processes; 0 loads in the main process.
        class_names: What prompts call categories; replaces the set's own.

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
        self.name, self.folder = f"bmad_{subset}", facts.folder  # before the root, which they say
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
        """Returns the folders that must be there and are not."""
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
        """Returns the images and masks of the split; masks of normal images are left out on purpose."""
        masks = [self.root / split / "good" / name for name in MASK_FOLDERS]
        return super().files_of(category, split).union(*map(list_images, masks))

    @property
    def _masks(self) -> Path:
        named = [self.root / "test/Ungood" / name for name in MASK_FOLDERS]
        return next((folder for folder in named if folder.is_dir()), named[0])


def _images(folder: Path) -> list[Path]:
    return list_images(folder / "img") or list_images(folder)
