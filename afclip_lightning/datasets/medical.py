"""Medical datasets of one category each, for testing only. They have either image labels or masks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.images import pair_masks
from afclip_lightning.data.names import ClassNames
from afclip_lightning.data.published import facts_of
from afclip_lightning.types import Sample, Split
from afclip_runtime.images.find import list_images

Subset = Literal[
    "brainmri", "br35h", "lag", "covid19", "isic", "colondb", "clinicdb", "kvasir", "cvc300", "endo", "tn3k"
]


@dataclass(frozen=True)
class SubsetFacts:
    """Layout and facts of one medical dataset.

    Attributes:
        folder: Its folder in the folder of all datasets.
        category: Its only category.
        anomalous: Folder of the anomalous images.
        source: Source of the dataset.
        licence: Licence, as far as it is known.
        counts: Published numbers of normal and anomalous images; `None` if they are not published.
        normal: Folder of the normal images; `None` if there are none.
        masks: Folder of the masks; `None` if there are none.
        mask_suffix: Part of a mask's stem after the stem of its image.
        mask_threshold: Highest value of a mask file that is still normal; see `Sample`.
        copy: Folder inside the archive with the same files, used if the files are not beside it.
        class_name: Name of the category in prompts; empty if it is the category's name.
        paper: Key of its paper in docs/references.bib; empty if there is none.
    """

    folder: str
    category: str
    anomalous: str
    source: str
    licence: str
    counts: tuple[int, int] | None
    normal: str | None = None
    masks: str | None = None
    mask_suffix: str = ""
    mask_threshold: int | None = None
    copy: str | None = None
    class_name: str = ""
    paper: str = ""

    @property
    def labels(self) -> str:
        """Returns the kind of labels: images if there are normal ones, pixels if there are masks."""
        return ", ".join([*(["image"] if self.normal else []), *(["pixel"] if self.masks else [])])

    @property
    def layout(self) -> str:
        """Returns the folders as text."""
        lines = [f"{self.anomalous}/*   anomalous images"]
        lines += [f"{self.normal}/*   normal images"] if self.normal else []
        lines += [f"{self.masks}/*   one mask per image, <image>{self.mask_suffix}.*"] if self.masks else []
        return "\n".join(lines)


def _polyps(folder: str, source: str, licence: str, count: int, paper: str = "") -> SubsetFacts:
    # The edges of these masks are smoothed, and some copies are JPEG: "any non-zero value" would widen the region.
    return SubsetFacts(
        folder, "colon", "images", source, licence, (0, count), masks="masks", mask_threshold=127, paper=paper
    )


SUBSETS: dict[Subset, SubsetFacts] = {
    "brainmri": SubsetFacts(
        "BrainMRI",
        "brain",
        "yes",
        "Kaggle, navoneel, brain MRI images for brain tumor detection.",
        "not stated",
        (98, 155),
        normal="no",
        copy="brain_tumor_dataset",
    ),
    "br35h": SubsetFacts(
        "Br35H",
        "brain",
        "yes",
        "Kaggle, ahmedhamada0, Br35H; its folder `pred` is not used.",
        "see its source",
        (1500, 1500),
        normal="no",
    ),
    # The attention maps in the archive show where doctors looked, not where the disease is. They are not masks.
    "lag": SubsetFacts(
        "LAG",
        "retina",
        "suspicious_glaucoma/image",
        "LAG, from the authors on request: github.com/smilell/AG-CNN. Which of its images a paper tested on is not "
        "published, so there are no counts to compare with.",
        "academic use only; must not be uploaded again",
        None,
        normal="non_glaucoma/image",
        class_name="retinal fundus",
        paper="li2019lag",
    ),
    # The masks of later releases show the lungs, not the disease, so they are not used.
    "covid19": SubsetFacts(
        "COVID-19",
        "chest",
        "COVID-19",
        "Kaggle, tawsifurrahman, COVID-19 radiography, the early release whose folders have these names; later ones "
        "hold other images. The other folders are not used.",
        "see its source",
        (1341, 219),
        normal="NORMAL",
        class_name="chest X-ray",
    ),
    "isic": SubsetFacts(
        "ISIC2016",
        "skin",
        "ISBI2016_ISIC_Part1_Test_Data",
        "ISIC archive, challenge of 2016, task 1, test data and ground truth.",
        "CC-0 as far as known; see its source",
        (0, 379),
        masks="ISBI2016_ISIC_Part1_Test_GroundTruth",
        mask_suffix="_Segmentation",
    ),
    "colondb": _polyps(
        "CVC-ColonDB",
        "CVC-ColonDB, in the polyp collection figshare 21221579.",
        "research, see its source",
        380,
        "tajbakhsh2016colondb",
    ),
    "clinicdb": _polyps(
        "CVC-ClinicDB",
        "CVC-ClinicDB, in the polyp collection figshare 21221579.",
        "research, see its source",
        612,
        "bernal2015clinicdb",
    ),
    "kvasir": _polyps(
        "Kvasir",
        "Kvasir-SEG, from Simula or the polyp collection figshare 21221579.",
        "research and education as far as known; see its source",
        1000,
        "jha2020kvasir",
    ),
    "cvc300": _polyps("CVC-300", "CVC-300, in the polyp collection figshare 21221579.", "research, see its source", 60),
    "endo": _polyps(
        "Endo", "EndoTect 2020, test images of the segmentation task.", "see its source", 200, "hicks2021endotect"
    ),
    "tn3k": SubsetFacts(
        "TN3K",
        "thyroid",
        "test-image",
        "TN3K, from github.com/haifangong/TRFE-Net.",
        "not clear for the images; see its source",
        (0, 614),
        masks="test-mask",
        mask_threshold=127,  # the masks are JPEG
        class_name="thyroid ultrasound",
        paper="gong2021tn3k",
    ),
}


class Medical(AnomalyDataModule):
    """One medical dataset. None of them has training images, so none can be tested few-shot.

    `brainmri` (98 normal, 155 anomalous), `br35h` (1500, 1500), `covid19` (1341, 219) and `lag` have no masks: their
    pixel metrics are absent. `isic` (379), `colondb` (380), `clinicdb` (612), `kvasir` (1000), `cvc300` (60), `endo`
    (200) and `tn3k` (614) have no normal images: their image metrics are absent.

    Only the folders in `layout` are read. Other folders are ignored.

    Args:
        subset: The dataset. This is also its name in metric keys and tables.
        root: Folder of the dataset; its default root by default.
        batch_size: Images per batch, in training and in testing.
        num_workers: Number of loader processes; 0 loads in the main process.
        class_names: Names of categories in prompts. They replace or extend the dataset's own class names.

    Raises:
        ValueError: There is no such subset, or an argument is out of its range.
    """

    def __init__(
        self,
        subset: Subset,
        root: str | Path | None = None,
        batch_size: int = 8,
        num_workers: int = 2,
        class_names: ClassNames = None,
    ) -> None:
        self.facts = facts = facts_of(subset, SUBSETS)
        own = {facts.category: facts.class_name} if facts.class_name else {}
        self.name, self.folder = subset, facts.folder  # first, because the default root depends on them
        super().__init__(
            root, batch_size=batch_size, num_workers=num_workers, class_names={**own, **(class_names or {})}
        )
        self.title, self.paper, self.labels = facts.folder, facts.paper, facts.labels
        self.layout = facts.layout
        self.source = facts.source
        self.licence = facts.licence
        self.published_counts = {facts.category: (None, *facts.counts)} if facts.counts else {}

    @classmethod
    def variants(cls, root: Path) -> list[AnomalyDataModule]:
        """Returns one dataset per subset."""
        return [cls(subset, root) for subset in get_args(Subset)]

    def find_categories(self) -> list[str]:
        """Returns the set's only category."""
        return [self.facts.category]

    def missing(self) -> list[Path]:
        """Returns the required folders that are missing."""
        wanted = [self._folder / part for part in (self.facts.anomalous, self.facts.normal, self.facts.masks) if part]
        return [path for path in wanted if not path.is_dir()]

    def folders_of(self, category: str, split: Split) -> list[Path]:
        """Returns the folders that are read. Files beside them do not belong to this dataset."""
        facts = self.facts
        parts = () if split == "train" else (facts.normal, facts.anomalous, facts.masks)
        return [self._folder / part for part in parts if part]

    def find_samples(self, category: str, split: Split) -> list[Sample]:
        """Returns the test samples, sorted by path. The training split is empty.

        Raises:
            DatasetError: A mask has no image or an image no mask.
        """
        if split == "train":
            return []
        facts, folder = self.facts, self._folder
        normal = list_images(folder / facts.normal) if facts.normal else []
        anomalous = list_images(folder / facts.anomalous)
        masks = pair_masks(anomalous, list_images(folder / facts.masks), (facts.mask_suffix,)) if facts.masks else None
        return self.make_samples(category, split, normal, anomalous, masks, facts.mask_threshold)

    @property
    def _folder(self) -> Path:
        inner = self.root / (self.facts.copy or "")
        return self.root if (self.root / self.facts.anomalous).is_dir() or not inner.is_dir() else inner
