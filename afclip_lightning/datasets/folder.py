"""The user's own images, in folders of any names."""

from contextlib import suppress
from pathlib import Path

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.defect_types import with_defect_types
from afclip_lightning.data.images import pair_masks
from afclip_lightning.data.left_out import LeftOut, unread
from afclip_lightning.data.names import find
from afclip_lightning.types import UNKNOWN, Sample, Split
from afclip_runtime.errors import DatasetError
from afclip_runtime.images.find import survey, walk_images


class Folder(AnomalyDataModule):
    """Your own images of one category: a folder of normal images, one of anomalous images, both, or unlabelled images.

    With neither `normal_dir` nor `abnormal_dir`, all images of `root` have no label, and only `predict` accepts them.
    Each folder is read with its subfolders, except subfolders that another argument names. Subfolders of `abnormal_dir`
    are defect types, if there are several. Masks are paired with the images of `abnormal_dir` by relative path and
    stem: `bad/crack/7.jpg` with `masks/crack/7.png` or `masks/crack/7_mask.png`.

    Args:
        root: Folder to which the other folders are relative.
        normal_dir: Folder of normal test images.
        abnormal_dir: Folder of anomalous test images.
        mask_dir: Folder of masks of the anomalous images. Without it, pixel metrics are absent.
        train_dir: Folder of normal images for few-shot. Without it, there is no training split.
        name: Name of the dataset and its category, in metric keys, tables and prompts; the name of `root` by default.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Number of loader processes; 0 loads in the main process.

    Raises:
        ValueError: A folder of masks is given without `abnormal_dir`, or a folder has two roles.
    """

    source = "Your own data. Any image format, in folders that you name."
    licence = "your own"

    def __init__(
        self,
        root: str | Path | None = None,
        normal_dir: str | None = None,
        abnormal_dir: str | None = None,
        mask_dir: str | None = None,
        train_dir: str | None = None,
        name: str | None = None,
        train_split: Split = "test",
        batch_size: int = 8,
        num_workers: int = 2,
    ) -> None:
        super().__init__(root, None, train_split, batch_size, num_workers)
        if mask_dir and not abnormal_dir:
            raise ValueError(f"mask_dir is {mask_dir!r}, but there is no abnormal_dir that it belongs to")
        self.labelled = bool(normal_dir or abnormal_dir)
        unlabelled = None if self.labelled else "."
        roles = {
            "unlabelled": unlabelled,
            "normal": normal_dir,
            "anomalous": abnormal_dir,
            "mask": mask_dir,
            "train": train_dir,
        }
        self.folders = {role: find(self.root, folder) for role, folder in roles.items() if folder}
        if len(set(self.folders.values())) < len(self.folders):
            raise ValueError(f"each folder can have one role only, got {', '.join(filter(None, roles.values()))}")
        self.name = name or self.root.resolve().name
        self.layout = "\n".join(f"{folder}/**   {role} images" for role, folder in roles.items() if folder)

    @classmethod
    def variants(cls, root: Path) -> list[AnomalyDataModule]:
        """Returns nothing: the folders' names are the user's own."""
        return []

    def find_categories(self) -> list[str]:
        """Returns the only category, which has the name of the dataset."""
        return [self.name]

    def missing(self) -> list[Path]:
        """Returns the named folders that are missing."""
        return [folder for folder in self.folders.values() if not folder.is_dir()]

    def check(self, stage: str = "fit") -> None:
        """Checks that the folders exist, and that images without labels are only predicted. Reads no image.

        Raises:
            DatasetError: A folder is missing, or the stage needs labels and there are none.
        """
        super().check(stage)
        if not self.labelled and stage != "predict":
            raise DatasetError(
                f"{self.name}: the images in {self.root} have no labels, so they can be predicted and not used to "
                f"{stage}. Name normal_dir, abnormal_dir or both to say which are which."
            )

    def find_samples(self, category: str, split: Split) -> list[Sample]:
        """Returns the samples of one split, sorted by path; all training samples are normal.

        Raises:
            DatasetError: A mask has no image or an anomalous image no mask.
        """
        if split == "train":
            return self.make_samples(category, split, self._images("train"), [], None)
        if not self.labelled:
            images = self._images("unlabelled")
            return [Sample(self.name, category, split, image, UNKNOWN, mask_known=False) for image in images]
        anomalous, masks = self._images("anomalous"), None
        if "mask" in self.folders:
            roots = (self.folders["anomalous"], self.folders["mask"])
            masks = pair_masks(anomalous, self._images("mask"), roots=roots)
        samples = self.make_samples(category, split, self._images("normal"), anomalous, masks)
        places = {image: image.relative_to(self.folders["anomalous"]).parts for image in anomalous}
        return with_defect_types(samples, {image: parts[0] for image, parts in places.items() if len(parts) > 1})

    def folders_of(self, category: str, split: Split) -> list[Path]:
        """Returns the folders of a split."""
        roles = ("train",) if split == "train" else ("unlabelled", "normal", "anomalous", "mask")
        return [self.folders[role] for role in roles if role in self.folders]

    def left_out(self, split: Split) -> list[LeftOut]:
        """Returns unread files of the named folders. A folder inside another one is searched for its own role only."""
        inner = set(self.folders.values())
        read: set[Path] | None = None  # if files are unpaired, which is a separate error
        with suppress(DatasetError):
            read = self.files_of(self.name, split)
        return [
            item
            for folder in self.folders_of(self.name, split)
            for item in unread(survey(folder, inner - {folder}), read)
        ]

    def _images(self, role: str) -> list[Path]:
        """Returns the images of a role, in all subfolders without another role; none for a role without a folder."""
        if role not in self.folders:
            return []
        return walk_images(self.folders[role], leave_out=set(self.folders.values()) - {self.folders[role]})
