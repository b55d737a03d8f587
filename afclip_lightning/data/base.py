"""The contract of a dataset, and what datasets share: checks, names, few-shot images."""

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
    """What a run takes as its data: one dataset, or several of which some are trained on and others tested on."""

    train_sampling: TrainSampling = "by_size"  # how often training sees an image of each of several datasets

    @property
    @abstractmethod
    def training_sets(self) -> list["AnomalyDataModule"]:
        """Returns the datasets that are trained on, each by its `train_split`; that there is none is an error."""

    @property
    @abstractmethod
    def test_sets(self) -> list["AnomalyDataModule"]:
        """Returns the datasets that are tested on, in the order of the test loaders."""

    @property
    @abstractmethod
    def parts(self) -> list["AnomalyDataModule"]:
        """Returns all the datasets, those that are trained on too."""

    def connect(
        self: Data,
        preprocess: "Preprocess",
        loading: Loading | None = None,
        store: "FeatureStore | None" = None,
        few_shot_dir: Path | None = None,
    ) -> Data:
        """Says to all the datasets how images are read and for which backbone; returns this, which has loaders then.

        Args:
            preprocess: Turns images and masks into tensors: that of the backbone, `model.preprocess`.
            loading: How images are read.
            store: Where the features of images may lie.
            few_shot_dir: Folder of few-shot images chosen by hand; without it they are selected at random.
        """
        for part in self.parts:
            part.preprocess, part.loading = preprocess, loading or Loading()
            part.store, part.few_shot_dir = store, few_shot_dir
        return self

    def evaluate_at(self, own_size: bool, tiling: Tiling | None = None) -> None:
        """Says at which size tested images are looked at, in the loaders made from now on.

        Args:
            own_size: Whether masks are wanted at each image's own size, beside that of the backbone.
            tiling: How the images are seen in tiles; `None` where they are not.
        """
        for part in self.parts:
            part.own_size, part.tiling = own_size, tiling

    def train_dataloader(self) -> "DataLoader[Batch]":
        """Returns the shuffled loader of the training datasets; see `training_loader`."""
        from afclip_lightning.data.training import training_loader

        return training_loader(self.training_sets, self.train_sampling)

    @abstractmethod
    def check(self, stage: str = "fit") -> None:
        """Checks that what a stage reads is on disk in its layout; cheap, reads no image.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            DatasetError: Says which folder was looked for, what it should contain and how to get it.
        """

    @abstractmethod
    def few_shot(self, k_shot: int, seed: int) -> dict[tuple[str, str], list[Sample]]:
        """Returns k normal training images per tested category: `(dataset, category)` to samples, sorted by path.

        Raises:
            DatasetError: A category has fewer normal training images than `k_shot`.
        """

    @abstractmethod
    def pair(self, pairing: Pairing) -> None:
        """Gives each tested image references from its own category, in the test loaders made from now on.

        Raises:
            DatasetError: A category has too few images.
        """


class AnomalyDataModule(Published, Appearance, LoaderHooks, AnomalyData):
    """One dataset. A subclass names it, says how it lies on disk and lists its samples.

    No image is read before a loader is walked, so that building a module costs nothing.

    Training reads the *test* split by default: the protocol of zero-shot anomaly detection trains a small head on the
    labelled test images of an auxiliary dataset and tests on other datasets.

    Args:
        root: Folder of the dataset; by default that of a published one, see `default_root`.
        categories: Categories to use; all of the dataset by default.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Loader processes; 0 loads in the main process.
        class_names: What prompts call categories; replaces or extends the dataset's own.

    Attributes, beside those of `Published` and `LoaderHooks`:
        few_shot_record: The few-shot images of each `(dataset, category)` so far, and where they are from, for the
            run folder.
        left_out_files: What each split that was set up does not read of the files in its folders; see `left_out`.
        name: Name of the dataset in metric keys and tables.
        class_names: What a prompt calls a category, where that is not the category's name with spaces for underscores.

    Raises:
        ValueError: An argument is out of its range, or the dataset is one's own and no root is given.
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
        """Returns where the dataset lies unless a root is given: its folder in `AFCLIP_DATA`, or in `data`.

        Raises:
            ValueError: It is one's own, and its folder has no name that is known.
        """
        if not (folder := self.folder or self.name):
            raise ValueError("root must be given: only a published dataset has one by default")
        return Path(os.environ.get("AFCLIP_DATA") or "data").expanduser() / folder

    @classmethod
    def variants(cls, root: Path) -> list["AnomalyDataModule"]:
        """Returns the datasets of this class that `root` might hold, for `check` to say what a folder looks like."""
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
        """Returns whether nothing at all lies at `root`: no such folder, or an empty one."""
        return not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir()))

    def missing(self) -> list[Path]:
        """Returns the folders and files that must be there and are not: by default one folder per category."""
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
        """Returns what a prompt calls the category: `metal nut` for `metal_nut`, `woven fabric` for `Woven_001`."""
        return self.class_names.get(normal_form(category), category.replace("_", " "))

    def check(self, stage: str = "fit") -> None:
        """Checks that the dataset is on disk in its layout, for whatever stage; cheap, reads no image.

        Raises:
            DatasetError: Says which folder was looked for, what it should contain and how to get it.
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
        """Checks the names of the categories and what prompts call them.

        Raises:
            DatasetError: A category has a name that means something else in tables, or a class name is for none of
                them.
        """
        # What another set's config says of its own categories stays when a set of one's own is put in its place. The
        # command line has loaded all sets by then; in Python a name is judged by the sets that were imported.
        sets = descendants(AnomalyDataModule)
        elsewhere = {name for cls in sets for name in (*getattr(cls, "published", ()), *cls.class_names)}
        used = {category: self.class_name_of(category) for category in self.selected_categories()}
        for warning in check_class_names(self.name, self.find_categories(), used, set(self.class_names), elsewhere):
            rank_zero_warn(warning)

    @property
    def archive_root(self) -> Path:
        """Returns the folder that what was downloaded is unpacked to."""
        return self.root

    @property
    def archive_layout(self) -> str:
        """Returns what that folder must contain, as a few lines for a person."""
        return self.layout

    def lacking(self, folder: Path) -> int | None:
        """Returns how much the dataset lacks if `folder` is what was downloaded; `None` if it has nothing there."""
        here = copy.copy(self)
        here.root = folder
        return len(here.missing()) if here.find_categories() else None

    def on_unpacked(self) -> None:
        """Makes what is made of the files that were unpacked to `archive_root`; nothing by default."""

    def folders_of(self, category: str, split: Split) -> list[Path]:
        """Returns the folders of which every image should be one of the category's, or its mask; none by default."""
        return []

    def files_of(self, category: str, split: Split) -> set[Path]:
        """Returns the images and masks in the category's folders that are read, or are left out on purpose.

        Raises:
            DatasetError: They cannot be listed.
        """
        samples = self.find_samples(category, split)
        return {path for sample in samples for path in (sample.image_path, sample.mask_path) if path}

    def left_out(self, split: Split) -> list[LeftOut]:
        """Returns what lies in the dataset's folders and is not read though it might be an image; opens no file.

        Text, tables, archives and hidden files are not meant.
        """
        found = []
        for category in self.selected_categories():
            if not (folders := self.folders_of(category, split)):
                continue
            read: set[Path] | None = None  # while files are unpaired, which is an error of its own
            with suppress(DatasetError):
                read = self.files_of(category, split)
            for folder in folders:
                found += unread(survey(folder), read)
        return found

    def doubts(self, split: Split) -> list[str]:
        """Returns a sentence on each folder that is read in one way and might be meant in another; none by default."""
        return []

    def notes(self) -> list[str]:
        """Returns sentences on what is worth knowing of the files and may be meant so; none by default."""
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
        """Returns k normal training images per category, of `few_shot_dir` or selected; `few_shot_record` has them.

        The selection is random, by the seed, the same on every machine. Each category has its own stream, so that it
        does not depend on which other categories are in use.

        Args:
            k_shot: Images per category.
            seed: Seed of the selection.

        Returns:
            `(dataset, category)` to the samples, sorted by path.

        Raises:
            DatasetError: A category has fewer normal training images than `k_shot`, or `few_shot_dir` has not just as
                many.
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
            DatasetError: The dataset is not as it must be, or files are skipped in training on several processes.
        """
        from afclip_lightning.distributed import processes  # which loads torch

        if stage == "fit" and self.loading.on_error == "skip" and processes() > 1:
            # one whose whole batch is left out would make a step less, and the others would wait for it for ever
            raise DatasetError(
                "on_error is skip, which several processes cannot train with: one may have nothing left to do where "
                "the others wait for it. Train on one device, or mend the files (`datasets check` lists them) and set "
                "--loading.on_error raise."
            )
        self.check(stage)
        self.samples("test")
        for split in dict.fromkeys(("test", self.train_split) if stage == "fit" else ("test",)):
            self._warn_of_left_out(split)

    def _warn_of_left_out(self, split: Split) -> None:
        """Warns, once, of what a split does not read, and of what it may read wrongly."""
        if split in self.left_out_files:
            return
        self.left_out_files[split] = self.left_out(split)
        said = [*sentences(self.left_out_files[split], self.root), *self.doubts(split)]
        if said:
            more = "`datasets check` lists all of it."
            rank_zero_warn(f"{self.name}, {split} split: {'; '.join(said)}. {more}")
