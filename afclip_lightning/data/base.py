"""The interface of datasets, and their common parts: checks, names, few-shot images."""

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from afclip_lightning.data.appearance import Appearance
from afclip_lightning.data.few_shot import given_few_shot, record_of, select_few_shot
from afclip_lightning.data.left_out import LeftOut, sentences, unread
from afclip_lightning.data.lightning_base import LightningDataModule, rank_zero_warn
from afclip_lightning.data.loader_hooks import LoaderHooks
from afclip_lightning.data.loading_options import Loading
from afclip_lightning.data.names import (
    ClassNames,
    Names,
    check_class_names,
    checked_class_names,
    checked_names,
    normal_form,
)
from afclip_lightning.data.published import Published
from afclip_lightning.data.references import Pairing
from afclip_lightning.discovery import descendants
from afclip_lightning.types import Batch, Sample, Split, TrainSampling
from afclip_runtime.errors import DatasetError, DatasetNotFoundError, indented
from afclip_runtime.images.find import survey
from afclip_runtime.types import Tiling

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from afclip_lightning.backbones.preprocess import Preprocess
    from afclip_lightning.backbones.store import FeatureStore

Data = TypeVar("Data", bound="AnomalyData")


class AnomalyData(LightningDataModule, ABC):
    """The data of a run: one dataset, or several, some for training and others for testing."""

    train_sampling: TrainSampling = "by_size"  # how images are drawn from several training datasets

    @property
    @abstractmethod
    def training_sets(self) -> list["AnomalyDataModule"]:
        """Returns the datasets that are trained on, each with its `train_split`. It is an error if there is none."""

    @property
    @abstractmethod
    def test_sets(self) -> list["AnomalyDataModule"]:
        """Returns the datasets that are tested on, in the order of the test loaders."""

    @property
    @abstractmethod
    def parts(self) -> list["AnomalyDataModule"]:
        """Returns all datasets, including those that are trained on."""

    def connect(
        self: Data,
        preprocess: "Preprocess",
        loading: Loading | None = None,
        store: "FeatureStore | None" = None,
        few_shot_dir: Path | None = None,
    ) -> Data:
        """Sets the preprocessing and the loading options of all datasets, so that loaders can be made. Returns itself.

        Args:
            preprocess: Preprocessing of the backbone, `model.preprocess`, which turns images and masks into tensors.
            loading: Options of reading images.
            store: Feature store, if there is one.
            few_shot_dir: Folder of few-shot images chosen by hand; without it they are selected at random.
        """
        for part in self.parts:
            part.preprocess, part.loading = preprocess, loading or Loading()
            part.store, part.few_shot_dir = store, few_shot_dir
        return self

    def evaluate_at(self, own_size: bool, tiling: Tiling | None = None) -> None:
        """Sets the size at which test images are evaluated, for loaders that are made from now on.

        Args:
            own_size: Whether masks are also read at each image's own size.
            tiling: Tiling of the images; `None` for no tiles.
        """
        for part in self.parts:
            part.own_size, part.tiling = own_size, tiling

    def train_dataloader(self) -> "DataLoader[Batch]":
        """Returns the shuffled loader of the training datasets; see `training_loader`."""
        from afclip_lightning.data.training import training_loader

        return training_loader(self.training_sets, self.train_sampling)

    @abstractmethod
    def check(self, stage: str = "fit") -> None:
        """Checks that the data of a stage is on disk in its layout. It is fast and reads no image.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            DatasetError: A folder is missing. The message says what it should contain and how to get it.
        """

    @abstractmethod
    def few_shot(self, k_shot: int, seed: int) -> dict[tuple[str, str], list[Sample]]:
        """Returns k normal training images per tested category: `(dataset, category)` to samples, sorted by path.

        Raises:
            DatasetError: A category has fewer normal training images than `k_shot`.
        """

    @abstractmethod
    def pair(self, pairing: Pairing) -> None:
        """Gives each test image references from its own category, in test loaders that are made from now on.

        Raises:
            DatasetError: A category has too few images.
        """


class AnomalyDataModule(Published, Appearance, LoaderHooks, AnomalyData):
    """One dataset. A subclass defines its name and its layout on disk, and lists its samples.

    Building the module is cheap: images are read only when a loader is iterated.

    Training reads the *test* split by default. The protocol of zero-shot anomaly detection trains a small head on the
    labelled test images of an auxiliary dataset and tests on other datasets.

    Args:
        root: Folder of the dataset. For published datasets there is a default; see `default_root`.
        categories: Categories to use; by default all categories of the dataset.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Number of loader processes; 0 loads in the main process.
        class_names: Names of categories in prompts. They replace or extend the dataset's own class names.

    Attributes, in addition to those of `Published` and `LoaderHooks`:
        few_shot_record: The few-shot images of each `(dataset, category)` so far, and their source, for the run folder.
        left_out_files: Files in the folders of each split that are not read, once it is set up; see `left_out`.
        name: Name of the dataset in metric keys and tables.
        class_names: Name of a category in prompts, where it is not the category's name with spaces for underscores.

    Raises:
        ValueError: An argument is out of its range, or no root is given and the dataset has no default.
    """

    name: str = ""
    class_names: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        root: str | Path | None = None,
        categories: Names = None,
        train_split: Split = "test",
        batch_size: int = 8,
        num_workers: int = 2,
        class_names: ClassNames = None,
    ) -> None:
        super().__init__(train_split, batch_size, num_workers)
        self.root = self.default_root() if root is None else Path(root).expanduser()
        self.categories = checked_names("categories", categories)
        self.class_names = {**self.class_names, **checked_class_names(class_names)}
        self.few_shot_record: dict[tuple[str, str], dict[str, Any]] = {}
        self.left_out_files: dict[Split, list[LeftOut]] = {}

    def default_root(self) -> Path:
        """Returns the default root of a published dataset: its folder in `AFCLIP_DATA`, or in `data`.

        Raises:
            ValueError: The dataset is not a published one, so that it has no default.
        """
        if not (folder := self.folder or self.name):
            raise ValueError("root must be given: only a published dataset has one by default")
        return Path(os.environ.get("AFCLIP_DATA") or "data").expanduser() / folder

    @classmethod
    def variants(cls, root: Path) -> list["AnomalyDataModule"]:
        """Returns the datasets of this class that `root` might hold, so that `check` can name them."""
        return [cls(root)]

    @abstractmethod
    def find_categories(self) -> list[str]:
        """Returns the dataset's categories in their published order, whether or not they are on disk."""

    @abstractmethod
    def find_samples(self, category: str, split: Split) -> list[Sample]:
        """Returns the samples of one category and split, sorted by path.

        Raises:
            DatasetError: A mask has no image or an image no mask.
        """

    @property
    def parts(self) -> list["AnomalyDataModule"]:
        """Returns this dataset alone."""
        return [self]

    training_sets = test_sets = parts

    def is_absent(self) -> bool:
        """Returns whether `root` does not exist or is empty."""
        return not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir()))

    def missing(self) -> list[Path]:
        """Returns the required folders and files that are missing. By default, one folder per category is required."""
        return [path for path in (self.root / c for c in self.selected_categories()) if not path.is_dir()]

    def selected_categories(self) -> list[str]:
        """Returns the categories in use.

        Raises:
            DatasetError: A chosen category is not one of the dataset's.
        """
        known = self.find_categories()
        if self.categories is None:
            return known
        for category in self.categories:
            if category not in known:
                raise DatasetError(
                    f"{self.name} under {self.root} has no category {category!r}. It has: {', '.join(known) or 'none'}."
                )
        return self.categories

    def class_name_of(self, category: str) -> str:
        """Returns the name of a category in prompts: `metal nut` for `metal_nut`, `woven fabric` for `Woven_001`."""
        return self.class_names.get(normal_form(category), category.replace("_", " "))

    def check(self, stage: str = "fit") -> None:
        """Checks that the dataset is on disk in its layout, for any stage. It is fast and reads no image.

        Raises:
            DatasetError: A folder is missing. The message says what it should contain and how to get it.
        """
        problem = ""
        if not self.root.is_dir():
            problem = f"{self.root} is not a folder" if self.root.exists() else f"the folder {self.root} does not exist"
        elif not self.find_categories():
            problem = f"{self.root} has no category folder"
        elif missing := self.missing():
            problem = f"not there: {', '.join(map(str, missing[:3]))}" + (" …" if len(missing) > 3 else "")
        if problem:
            raise DatasetNotFoundError(self, problem)
        self.check_names()

    def check_names(self) -> None:
        """Checks the names of the categories and their class names.

        Raises:
            DatasetError: A category has a name with another meaning in tables, or a class name belongs to no category.
        """
        # If the user's dataset replaces that of a config, class names of the old one may remain. They are accepted if
        # they belong to a known dataset: the command line has loaded all of them, Python those that were imported.
        sets = descendants(AnomalyDataModule)
        elsewhere = {name for cls in sets for name in (*getattr(cls, "published", ()), *cls.class_names)}
        used = {category: self.class_name_of(category) for category in self.selected_categories()}
        for warning in check_class_names(self.name, self.find_categories(), used, set(self.class_names), elsewhere):
            rank_zero_warn(warning)

    @property
    def archive_root(self) -> Path:
        """Returns the folder into which the download is unpacked."""
        return self.root

    @property
    def archive_layout(self) -> str:
        """Returns the layout of that folder, as text of a few lines."""
        return self.layout

    def lacking(self, folder: Path) -> int | None:
        """Returns how much is missing if `folder` is the download; `None` if it contains nothing of the dataset."""
        here = copy.copy(self)
        here.root = folder
        return len(here.missing()) if here.find_categories() else None

    def on_unpacked(self) -> None:
        """Processes the files that were unpacked to `archive_root`. Does nothing by default."""

    def folders_of(self, category: str, split: Split) -> list[Path]:
        """Returns the folders that should only hold images and masks of the category; none by default."""
        return []

    def files_of(self, category: str, split: Split) -> set[Path]:
        """Returns the images and masks in the category's folders that are read, or are left out on purpose.

        Raises:
            DatasetError: The images cannot be listed.
        """
        samples = self.find_samples(category, split)
        return {path for sample in samples for path in (sample.image_path, sample.mask_path) if path}

    def left_out(self, split: Split) -> list[LeftOut]:
        """Returns unread files in the dataset's folders that might be images. No file is opened.

        Text, tables, archives and hidden files are ignored.
        """
        found = []
        for category in self.selected_categories():
            if not (folders := self.folders_of(category, split)):
                continue
            read: set[Path] | None = None  # if files are unpaired, which is a separate error
            with suppress(DatasetError):
                read = self.files_of(category, split)
            for folder in folders:
                found += unread(survey(folder), read)
        return found

    def doubts(self, split: Split) -> list[str]:
        """Returns one sentence per folder whose meaning is ambiguous; none by default."""
        return []

    def notes(self) -> list[str]:
        """Returns remarks on the files that are not problems, one sentence each; none by default."""
        return []

    def samples(self, split: Split) -> list[Sample]:
        """Returns the samples of all categories in use, category after category.

        Raises:
            DatasetError: A category has no image in this split, or a file is unpaired.
        """
        found: list[Sample] = []
        for category in self.selected_categories():
            part = self.find_samples(category, split)
            if not part:
                raise DatasetError(
                    f"{self.name}: category {category!r} under {self.root} has no {split} image.\n"
                    f"Expected:\n{indented(self.layout)}"
                )
            found.extend(part)
        return self.as_read(found)

    def make_samples(
        self,
        category: str,
        split: Split,
        normal: Sequence[Path],
        anomalous: Sequence[Path],
        masks: Mapping[Path, Path] | None,
        mask_threshold: int | None = None,
    ) -> list[Sample]:
        """Returns one sample per image, sorted by path, the same on every machine.

        Args:
            category: Category of all the images.
            split: Split of all the images.
            normal: Normal images.
            anomalous: Anomalous images.
            masks: Mask of every anomalous image; `None` if the pixel labels are not known.
            mask_threshold: Highest value of the mask files that is still normal; see `Sample`.
        """
        samples = [Sample(self.name, category, split, image, label=0) for image in normal]
        for image in anomalous:
            mask = None if masks is None else masks[image]
            samples.append(Sample(self.name, category, split, image, 1, mask, masks is not None, mask_threshold))
        return sorted(samples, key=lambda sample: sample.image_path.as_posix())

    def few_shot(self, k_shot: int, seed: int) -> dict[tuple[str, str], list[Sample]]:
        """Returns k normal training images per category, from `few_shot_dir` or selected at random.

        The selection depends on the seed and is the same on every machine. Each category has its own random stream, so
        that its selection does not depend on the other categories. `few_shot_record` keeps the images.

        Args:
            k_shot: Images per category.
            seed: Seed of the selection.

        Returns:
            `(dataset, category)` to the samples, sorted by path.

        Raises:
            DatasetError: A category has fewer normal training images than `k_shot`, or the number of its images in
                `few_shot_dir` is not `k_shot`.
            ValueError: `k_shot` is less than 1.
        """
        if k_shot < 1:
            raise ValueError(f"k_shot must be at least 1, got {k_shot}")
        found: dict[tuple[str, str], list[Sample]] = {}
        for category in self.selected_categories():
            root = self.few_shot_dir or self.root
            if self.few_shot_dir is None:
                normal = [sample for sample in self.find_samples(category, "train") if sample.label == 0]
                chosen = select_few_shot(normal, k_shot, seed, category, f"{self.name}/{category} under {root}")
            else:
                alone = len(self.selected_categories()) == 1
                images = given_few_shot(root, self.name, category, k_shot, alone)
                chosen = self.make_samples(category, "train", images, [], None)
            found[self.name, category] = self.as_read(chosen)
            self.few_shot_record[self.name, category] = record_of(chosen, root, None if self.few_shot_dir else seed)
        return found

    def setup(self, stage: str) -> None:
        """Checks the dataset and lists its test split, so that a file without its mask stops a run before it trains.

        Lightning calls this on every process.

        Raises:
            DatasetError: The dataset is not as it must be, or several processes train with `on_error: skip`.
        """
        from afclip_lightning.distributed import processes  # it imports torch

        if stage == "fit" and self.loading.on_error == "skip" and processes() > 1:
            # A process whose whole batch is left out would make a step less, and the others would wait for it forever.
            raise DatasetError(
                "on_error is skip, which several processes cannot train with: one may have nothing left to do where "
                "the others wait for it. Train on one device, or fix the files (`datasets check` lists them) and set "
                "--loading.on_error raise."
            )
        self.check(stage)
        self.samples("test")
        for split in dict.fromkeys(("test", self.train_split) if stage == "fit" else ("test",)):
            self._warn_of_left_out(split)

    def _warn_of_left_out(self, split: Split) -> None:
        """Warns once of files that a split does not read, and of folders that it may read wrongly."""
        if split in self.left_out_files:
            return
        self.left_out_files[split] = self.left_out(split)
        said = [*sentences(self.left_out_files[split], self.root), *self.doubts(split)]
        if said:
            more = "`datasets check` lists all of it."
            rank_zero_warn(f"{self.name}, {split} split: {'; '.join(said)}. {more}")
