"""VisA: twelve kinds of objects, in its original layout or in the converted one-class layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.images import file_inside
from afclip_lightning.data.left_out import LeftOut
from afclip_lightning.data.names import ClassNames, Names
from afclip_lightning.data.published import Counts
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.types import Sample, Split
from afclip_runtime.errors import DatasetError
from afclip_runtime.files import read_rows

SplitFile = Literal["1cls", "2cls_highshot", "2cls_fewshot"]
COLUMNS = ("object", "split", "label", "image", "mask")
ANOMALOUS_OF: Mapping[str, int] = {"2cls_highshot": 40, "2cls_fewshot": 80}
"""Anomalous test images per category of the two-class splits."""


class VisA(MVTecLayout):
    """VisA: 12 categories, 962 normal and 1200 anomalous test images, with masks.

    If `split_csv/1cls.csv` exists, it defines the splits. Otherwise the folders of the converted layout define them.
    The masks hold small class numbers and look black. Any non-zero value is anomalous.

    The two-class splits also have anomalous training images: 60 (`2cls_highshot`) or 20 (`2cls_fewshot`) of the 100 of
    a category. The others are test images. Half of the test images of `2cls_fewshot` are training images of
    `2cls_highshot`, so test a head only on the split on which it was trained.

    Args:
        root: Folder of the dataset.
        split: Table of `split_csv`: `1cls` (training images are normal), `2cls_highshot` or `2cls_fewshot`.
        name: Name in metric keys and tables.
        categories: Categories to use; all by default.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Number of loader processes; 0 loads in the main process.
        class_names: Names of categories in prompts. They replace or extend the dataset's own class names.

    Raises:
        ValueError: An argument is out of its range.

    Reference: Zou et al., SPot-the-Difference Self-Supervised Pre-training, ECCV 2022.
    """

    title = "VisA"
    paper = "zou2022visa"
    url = "https://github.com/amazon-science/spot-diff"
    name = "visa"
    published_counts: Mapping[str, Counts] = {
        "candle": (900, 100, 100),
        "capsules": (542, 60, 100),
        "cashew": (450, 50, 100),
        "chewinggum": (453, 50, 100),
        "fryum": (450, 50, 100),
        "macaroni1": (900, 100, 100),
        "macaroni2": (900, 100, 100),
        "pcb1": (904, 100, 100),
        "pcb2": (901, 100, 100),
        "pcb3": (905, 101, 100),
        "pcb4": (904, 101, 100),
        "pipe_fryum": (450, 50, 100),
    }
    published_total: Counts = (8659, 962, 1200)
    published = tuple(published_counts)
    class_names: Mapping[str, str] = {
        "chewinggum": "chewing gum",
        "macaroni1": "macaroni",
        "macaroni2": "macaroni",
        "pcb1": "printed circuit board",
        "pcb2": "printed circuit board",
        "pcb3": "printed circuit board",
        "pcb4": "printed circuit board",
    }
    required = ("test", "ground_truth")
    layout = """
split_csv/1cls.csv                           the split; its paths start at this folder
candle/Data/Images/{Normal,Anomaly}/*.JPG
candle/Data/Masks/Anomaly/*.png
capsules/ … pipe_fryum/                      12 categories; fewer: name them in `categories`
or, converted, here or in a folder 1cls: candle/{train/good, test/{good,bad}, ground_truth/bad}/*
"""
    source = """
VisA from github.com/amazon-science/spot-diff (a tar archive on S3), unpacked into this folder.
"""
    licence = "CC BY 4.0"

    def __init__(
        self,
        root: str | Path | None = None,
        split: SplitFile = "1cls",
        name: str | None = None,
        categories: Names = None,
        train_split: Split = "test",
        batch_size: int = 8,
        num_workers: int = 2,
        class_names: ClassNames = None,
    ) -> None:
        super().__init__(root, name, categories, train_split, batch_size, num_workers, class_names)
        if split not in get_args(SplitFile):
            raise ValueError(f"split must be one of {', '.join(get_args(SplitFile))}; got {split!r}")
        self.split: SplitFile = split
        if split in ANOMALOUS_OF:
            self.published_counts = dict.fromkeys(self.published, (None, None, ANOMALOUS_OF[split]))
            self.published_total = (None, None, None)

    @property
    def table(self) -> Path:
        """Returns the path of the table in the original layout, whether or not it exists."""
        return self.root / "split_csv" / f"{self.split}.csv"

    def category_folder(self, category: str) -> Path:
        """Returns the category's folder in the converted layout."""
        converted = self.root / self.split
        return (converted if converted.is_dir() else self.root) / category

    def missing(self) -> list[Path]:
        """Returns the missing files of the layout in use; the table of the original layout if neither is found."""
        if self.table.is_file():
            return [path for path in (self.root / c for c in self.selected_categories()) if not path.is_dir()]
        converted = self.split == "1cls" and any((self.category_folder(c) / "test").is_dir() for c in self.published)
        return super().missing() if converted else [self.table]

    def folders_of(self, category: str, split: Split) -> list[Path]:
        """Returns the folders that hold the images and masks of the layout in use."""
        if not self.table.is_file():
            return super().folders_of(category, split)
        return [self.root / category / "Data"] if split == "test" else []

    def files_of(self, category: str, split: Split) -> set[Path]:
        """Returns the images and masks of the layout in use. In the original layout, they are those of both splits."""
        splits: tuple[Split, ...] = ("train", "test") if self.table.is_file() else (split,)
        return set().union(*(super(VisA, self).files_of(category, s) for s in splits))

    def left_out(self, split: Split) -> list[LeftOut]:
        """Returns unread files in the folders of the layout in use."""
        return AnomalyDataModule.left_out(self, split) if self.table.is_file() else super().left_out(split)

    def find_samples(self, category: str, split: Split) -> list[Sample]:
        """Returns the samples of one category and split, sorted by path.

        Raises:
            DatasetError: A row of the table is malformed, a mask has no image, or an image has no mask.
        """
        if not self.table.is_file():
            return super().find_samples(category, split)
        masks: dict[Path, Path | None] = {}
        for where, row in self._rows():
            if row["object"] != category or row["split"] != split:
                continue
            if row["label"] not in ("normal", "anomaly"):
                raise DatasetError(f"{where}: label must be normal or anomaly, got {row['label']!r}.")
            image = file_inside(self.root, row["image"], where)
            if image in masks:
                raise DatasetError(f"{where}: {image} is already in an earlier line. Remove one.")
            if row["mask"] and row["label"] == "normal":
                raise DatasetError(f"{where}: the image is normal, and a mask is named for it. Restore the file.")
            masks[image] = file_inside(self.root, row["mask"], where) if row["label"] == "anomaly" else None
        known = {image: mask for image, mask in masks.items() if mask}
        return self.make_samples(category, split, [image for image in masks if image not in known], list(known), known)

    def _rows(self) -> list[tuple[str, dict[str, str]]]:
        """Returns every row of the table with its position `file, line n`."""
        rows = []
        for number, cells in read_rows(self.table, remedy="Restore the file.", error=DatasetError):
            if absent := [column for column in COLUMNS if column not in cells]:
                raise DatasetError(f"{self.table}, line 1: has no column {', '.join(absent)}. Restore the file.")
            rows.append((f"{self.table}, line {number}", {column: cells[column].strip() for column in COLUMNS}))
        return rows
