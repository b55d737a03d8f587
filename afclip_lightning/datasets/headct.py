"""HeadCT: slices of the head, with and without a haemorrhage."""

from pathlib import Path
from typing import Literal

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.names import ClassNames
from afclip_lightning.datasets.listed import read_lines
from afclip_lightning.datasets.tiled_layout import hold_out
from afclip_lightning.types import Sample, Split
from afclip_runtime.errors import DatasetError
from afclip_runtime.images.find import list_images

CATEGORY = "brain"


class HeadCT(AnomalyDataModule):
    """HeadCT: 100 normal and 100 anomalous test images, without masks; pixel metrics are absent.

    Args:
        root: Folder of the dataset; its default root by default.
        test_normal: `all` tests on all normal images, so that there are no training images. `quarter` tests on a
            quarter of them, as InCTRL does (25 normal, 100 anomalous). The others are used for few-shot.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Number of loader processes; 0 loads in the main process.
        class_names: Names of categories in prompts. They replace the dataset's own class names.

    Raises:
        ValueError: An argument is out of its range.
    """

    title = "HeadCT"
    labels = "image"
    name = "headct"
    layout = """
labels.csv         a heading, then one line per image: number, 1 for a haemorrhage or 0
head_ct/000.png    (or head_ct/head_ct/000.png)
"""
    source = "Kaggle, felipekitamura, head CT hemorrhage."
    licence = "see its source"

    def __init__(
        self,
        root: str | Path | None = None,
        test_normal: Literal["all", "quarter"] = "all",
        train_split: Split = "test",
        batch_size: int = 8,
        num_workers: int = 2,
        class_names: ClassNames = None,
    ) -> None:
        if test_normal not in ("all", "quarter"):
            raise ValueError(f"test_normal must be all or quarter, got {test_normal!r}")
        super().__init__(root, None, train_split, batch_size, num_workers, {CATEGORY: "head CT", **(class_names or {})})
        self.test_normal = test_normal
        self.published_counts = {CATEGORY: (None, 100, 100) if test_normal == "all" else (75, 25, 100)}

    def find_categories(self) -> list[str]:
        """Returns the only category."""
        return [CATEGORY]

    def missing(self) -> list[Path]:
        """Returns the table and the folder of images, if they are missing."""
        return [path for path in (self.root / "labels.csv", self.root / "head_ct") if not path.exists()]

    def find_samples(self, category: str, split: Split) -> list[Sample]:
        """Returns the samples of one split, sorted by path; all training samples are normal.

        Raises:
            DatasetError: A line of the table is malformed or names a missing image, or an image is in no line.
        """
        folder = self._folder
        images = {image.stem: image for image in list_images(folder)}
        labels: dict[Path, int] = {}
        for where, line in read_lines(self.root / "labels.csv")[1:]:
            number, _, label = (part.strip() for part in line.partition(","))
            if not number.isdecimal() or label not in ("0", "1"):
                raise DatasetError(f"{where}: must be a number and 0 or 1; got {line!r}.")
            stem = f"{int(number):03}"
            if stem not in images:
                raise DatasetError(
                    f"{where}: there is no file {folder}/{stem}.png, or an earlier line has it. Restore it or remove "
                    "the line."
                )
            labels[images.pop(stem)] = int(label)
        if images:
            raise DatasetError(f"{min(images.values())}: labels.csv has no line for this image. Restore the line.")
        normal = [image for image, label in labels.items() if not label]
        train, test = ([], normal) if self.test_normal == "all" else hold_out(normal)
        if split == "train":
            return self.make_samples(category, split, train, [], None)
        return self.make_samples(category, split, test, [image for image, label in labels.items() if label], None)

    def folders_of(self, category: str, split: Split) -> list[Path]:
        """Returns the folder of the images of both splits."""
        return [self._folder] if split == "test" else []

    def files_of(self, category: str, split: Split) -> set[Path]:
        """Returns the images of the folder. An image that is not in the table is a separate error."""
        return set(list_images(self._folder))

    @property
    def _folder(self) -> Path:
        inner = self.root / "head_ct/head_ct"
        return inner if inner.is_dir() else self.root / "head_ct"
