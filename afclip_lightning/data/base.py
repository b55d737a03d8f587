"""The contract of a dataset, and everything that datasets share: checks, loaders, few-shot draws."""

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from lightning import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Sampler, SequentialSampler

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.backbones.store import FeatureStore
from afclip_lightning.data.dataset import AnomalyDataset, MaskDetail
from afclip_lightning.data.few_shot import draw_few_shot, given_few_shot
from afclip_lightning.data.images import survey
from afclip_lightning.data.left_out import LeftOut, sentences, unread
from afclip_lightning.data.loader import make_loader
from afclip_lightning.data.loading import Loading
from afclip_lightning.data.names import (
    ClassNames,
    Names,
    checked_class_names,
    checked_names,
    class_name_tokens,
    normal_form,
)
from afclip_lightning.data.pairs import GroupedSampler, Pairing, draw_references
from afclip_lightning.data.sampling import SharedShuffle
from afclip_lightning.data.tiles import Tiling
from afclip_lightning.data.white import White, white_value
from afclip_lightning.discovery import descendants
from afclip_lightning.distributed import processes, rank
from afclip_lightning.errors import DatasetError, shown
from afclip_lightning.results import MEAN
from afclip_lightning.types import UNKNOWN, Batch, Sample, Split

DATA_VARIABLE = "AFCLIP_DATA"  # the folder that holds all datasets
Data = TypeVar("Data", bound="AnomalyData")
Facts = TypeVar("Facts")
LONGEST_CLASS_NAME = 48  # tokens: CLIP's text towers take 77; the sentence around it and learnable tokens have theirs
Counts = tuple[int | None, int | None, int | None]  # train normal, test normal, test anomalous; None = not published


class AnomalyData(LightningDataModule, ABC):
    """What a run takes as its data: one dataset, or several of which one is trained on and the others tested on."""

    @property
    @abstractmethod
    def training_set(self) -> "AnomalyDataModule":
        """Returns the dataset that is trained on."""

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
        preprocess: Preprocess,
        loading: Loading | None = None,
        store: FeatureStore | None = None,
        few_shot_dir: Path | None = None,
    ) -> Data:
        """Says to all the datasets how images are read, and for which backbone; loaders can be asked for then.

        Args:
            preprocess: Turns images and masks into tensors: that of the backbone, `model.preprocess`.
            loading: How images are read.
            store: Where the features of images may lie.
            few_shot_dir: Folder of few-shot images chosen by hand; they are drawn without it.

        Returns:
            This.
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
        """Returns k normal training images a tested category: `(dataset, category)` to samples, sorted by path.

        Raises:
            DatasetError: A category has fewer normal training images than `k_shot`.
        """

    @abstractmethod
    def pair(self, pairing: Pairing) -> None:
        """Gives each tested image references from its own category, in the test loaders made from now on.

        Raises:
            DatasetError: A category has too few images.
        """


class AnomalyDataModule(AnomalyData):
    """One dataset. A subclass names it, says how it lies on disk and lists its samples.

    No image is read before a loader is walked, so that building a module costs nothing.

    Training reads the *test* split by default: the protocol of zero-shot anomaly detection trains a small head on the
    labelled test images of an auxiliary dataset and tests on other datasets.

    Args:
        root: Folder of the dataset; by default that of a published one, see `default_root`.
        categories: Categories to use; all of the dataset by default.
        train_split: Split that training reads.
        batch_size: Images a batch, in training and in testing.
        num_workers: Loader processes; 0 loads in the main process.
        class_names: What prompts call categories; replaces or extends the dataset's own.

    Attributes:
        preprocess: Turns images and masks into tensors; `None` until `connect`, as the next three are what it sets.
        loading: How images are read.
        store: Where the features of images may lie, or `None`.
        few_shot_dir: Folder of few-shot images chosen by hand, or `None` to draw them.
        few_shot_record: The few-shot images of each `(dataset, category)` so far, and where they are from, for the
            run folder.
        pairing: How tested images are paired; `None` if they are not. Set by `pair`.
        paired: The references of each `(dataset, category)`, for the run folder.
        own_size: Whether the loaders of tests give masks at each image's own size too; see `evaluate_at`.
        tiling: How tested images are seen in tiles; `None` where they are not.
        skipped: Images that were left out so far, and why; empty unless `loading` says `on_error: skip`.
        told: What each split that was set up does not read of the files in its folders; see `left_out`.
        name: Name of the dataset in metric keys and tables.
        folder: Its folder in the one that holds all datasets; empty where that is `name`.
        layout: What `root` must contain, as a few lines for a person.
        source: Where the dataset is obtained.
        licence: Licence of the dataset, or what is known of it.
        size: Rough size of the download; empty where it is not known.
        published_counts: Images a category as published; empty where there is nothing to compare with.
        published_total: Images of all the categories together, for sets that are not published category by category.
        class_names: What a prompt calls a category, where that is not the category's name with spaces for underscores.

    Raises:
        ValueError: An argument is out of its range, or the dataset is one's own and no root is given.
    """

    name: str = ""
    folder: str = ""
    layout: str
    source: str
    licence: str = ""
    size: str = ""
    published_counts: Mapping[str, Counts] = MappingProxyType({})
    published_total: Counts = (None, None, None)
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
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {num_workers}")
        self.root = self.default_root() if root is None else Path(root).expanduser()
        self.categories = checked_names("categories", categories)
        self.train_split: Split = train_split
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.class_names = {**self.class_names, **checked_class_names(class_names)}
        self.preprocess: Preprocess | None = None
        self.loading = Loading()
        self.store: FeatureStore | None = None
        self.few_shot_dir: Path | None = None
        self.few_shot_record: dict[tuple[str, str], dict[str, Any]] = {}
        self.pairing: Pairing | None = None
        self.paired: dict[tuple[str, str], dict[str, Any]] = {}
        self.own_size = False
        self.tiling: Tiling | None = None
        self.skipped: dict[Path, str] = {}
        self.told: dict[Split, list[LeftOut]] = {}
        self._white: tuple[White, int | None] | None = None  # the level and what it comes to

    def default_root(self) -> Path:
        """Returns where the dataset lies unless a root is given: its folder in `AFCLIP_DATA`, or in `data`.

        Raises:
            ValueError: It is one's own, and its folder has no name that is known.
        """
        if not (folder := self.folder or self.name):
            raise ValueError("root must be given: only a published dataset has one by default")
        return Path(os.environ.get(DATA_VARIABLE) or "data").expanduser() / folder

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
    def test_sets(self) -> list["AnomalyDataModule"]:
        """Returns this dataset alone."""
        return [self]

    @property
    def parts(self) -> list["AnomalyDataModule"]:
        """Returns this dataset alone."""
        return [self]

    @property
    def training_set(self) -> "AnomalyDataModule":
        """Returns this dataset."""
        return self

    def is_absent(self) -> bool:
        """Returns whether nothing at all lies at `root`: no such folder, or an empty one."""
        return not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir()))

    def missing(self) -> list[Path]:
        """Returns the folders and files that must be there and are not: by default one folder a category."""
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
        known = self.find_categories()
        if MEAN in known:
            raise DatasetError(
                f"{self.name}: a category is called {MEAN!r}, as the row of the mean over categories is. Rename it."
            )
        for category in self.selected_categories():
            if (tokens := class_name_tokens(self.class_name_of(category))) > LONGEST_CLASS_NAME:
                rank_zero_warn(  # refused where a prompt has it: not every method's prompts name the category
                    f"{self.name}: the class name of {shown(category[:80])!r} has {tokens} tokens, and prompts have "
                    f"room for about {LONGEST_CLASS_NAME}. Give it a shorter one, `class_names` of the dataset."
                )
        if not (stray := set(self.class_names) - set(known)):
            return
        # What another set's config says of its own categories stays when a set of one's own is put in its place. The
        # command line has loaded all sets by then; in Python a name is judged by the sets that were imported.
        sets = descendants(AnomalyDataModule)
        elsewhere = {name for cls in sets for name in (*getattr(cls, "published", ()), *cls.class_names)}
        if typos := sorted(stray - elsewhere):
            raise DatasetError(
                f"{self.name}: class names are given for {', '.join(typos)}, which the dataset does not have. "
                f"It has: {', '.join(known)}."
            )
        rank_zero_warn(
            f"{self.name}: class names are given for {', '.join(sorted(stray))}, which it has not: not used."
        )

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
            read: set[Path] | None = None  # while files are unpaired, which is an error of its own
            with suppress(DatasetError):
                read = self.files_of(category, split)
            for folder in self.folders_of(category, split):
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
        return self.with_white(found)

    def white(self) -> int | None:
        """Returns the value that becomes 255 in images of more than 8 bits, one for the whole set; see `Loading`."""
        level = self.loading.white_of(self.name)
        if self._white is None or self._white[0] != level:
            images: list[Path] = []
            for category in self.selected_categories() if level == "auto" else ():
                images += [s.image_path for s in self.find_samples(category, "train")]
                images += [s.image_path for s in self.find_samples(category, "test")]
            self._white = (level, white_value(level, images))
        return self._white[1]

    @property
    def white_used(self) -> int | None:
        """Returns what `white` came to so far, for the run folder; `None` where the files' bits say it."""
        return self._white[1] if self._white else None

    def with_white(self, samples: Sequence[Sample]) -> list[Sample]:
        """Returns samples with the white level of the set."""
        white = self.white()
        return [replace(sample, white=white) for sample in samples] if white else list(samples)

    def make_samples(
        self,
        category: str,
        split: Split,
        normal: Sequence[Path],
        anomalous: Sequence[Path],
        masks: Mapping[Path, Path] | None,
        mask_threshold: int | None = None,
    ) -> list[Sample]:
        """Returns one sample an image, sorted by path, the same on every machine.

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
        """Returns k normal training images a category: those of `few_shot_dir`, or a draw; `few_shot_record` has them.

        A draw is seeded, without replacement, and the same on every machine. Each category has its own stream, so that
        it does not depend on which other categories are in use.

        Args:
            k_shot: Images a category.
            seed: Seed of the draw.

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
            if self.few_shot_dir is None:
                root = self.root
                normal = [sample for sample in self.find_samples(category, "train") if sample.label == 0]
                chosen = draw_few_shot(normal, k_shot, seed, category, f"{self.name}/{category} under {self.root}")
            else:
                root = self.few_shot_dir
                alone = len(self.selected_categories()) == 1
                images = given_few_shot(root, self.name, category, k_shot, alone)
                chosen = self.make_samples(category, "train", images, [], None)
            found[self.name, category] = self.with_white(chosen)
            self.few_shot_record[self.name, category] = {
                "dataset": self.name,
                "category": category,
                "seed": seed if self.few_shot_dir is None else None,
                "root": str(root),
                "images": [Path(os.path.relpath(sample.image_path, root)).as_posix() for sample in chosen],
            }
        return found

    def pair(self, pairing: Pairing) -> None:
        """Gives each image of the test split references from its own category, and notes them in `paired`.

        Which they are depends on neither batches nor processes; see `draw_references`.

        Raises:
            DatasetError: A category has too few images.
        """
        samples = self.samples("test")
        references = draw_references(samples, pairing)
        self.pairing = pairing
        self.paired.clear()  # and not a new one: a copy that is tested on shares its record, as it does the other
        paths = [Path(os.path.relpath(sample.image_path, self.root)).as_posix() for sample in samples]
        for sample, path, others in zip(samples, paths, references, strict=True):
            record = {"dataset": self.name, "category": sample.category, "seed": pairing.seed, "root": str(self.root)}
            of_category = self.paired.setdefault((self.name, sample.category), {**record, "references": {}})
            of_category["references"][path] = [paths[position] for position in others]

    def setup(self, stage: str) -> None:
        """Checks the dataset and lists its test split, so that a file without its mask stops a run before it trains.

        Lightning calls this on every process.

        Raises:
            DatasetError: The dataset is not as it must be, or files are skipped in training on several processes.
        """
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
            self._tell(split)

    def _tell(self, split: Split) -> None:
        """Warns, once, of what a split does not read, and of what it may read wrongly."""
        if split in self.told:
            return
        self.told[split] = self.left_out(split)
        said = [*sentences(self.told[split], self.root), *self.doubts(split)]
        if said:
            more = "`datasets check` lists all of it."
            rank_zero_warn(f"{self.name}, {split} split: {'; '.join(said)}. {more}")

    def train_dataloader(self) -> DataLoader[Batch]:
        """Returns the shuffled loader of `train_split`: see `SharedShuffle`.

        Where several processes cannot share the images evenly, some of which nothing is said fill up the last step;
        they take part in no loss.

        Raises:
            DatasetError: There are fewer images than processes.
        """
        samples = self._enough(self.train_split)
        fillers = samples[: -len(samples) % processes()]
        samples += [replace(s, label=UNKNOWN, mask_path=None, mask_known=False) for s in fillers]
        return self._loader(samples, partial(SharedShuffle, fillers=len(fillers)), training=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Returns the loader of the test split."""
        return self.test_dataloader()

    def test_dataloader(self) -> DataLoader[Batch]:
        """Returns the loader of the test split; over several processes no image is repeated."""
        return self.walk("test")

    def walk(self, split: Split) -> DataLoader[Batch]:
        """Returns a loader of a split in its order, as for a test.

        Raises:
            DatasetError: There are fewer images than processes.
        """
        samples = self._enough(split)
        if self.pairing:
            references = draw_references(samples, self.pairing)
            return self._loader(samples, lambda dataset: GroupedSampler(references, rank(), processes()), references)
        # Lightning's own test sampler pads to equal parts, and a repeated image would count twice.
        sampler = partial(UnrepeatedDistributedSampler, shuffle=False) if processes() > 1 else SequentialSampler
        return self._loader(samples, sampler)

    def _enough(self, split: Split) -> list[Sample]:
        samples = self.samples(split)
        if len(samples) < processes():
            raise DatasetError(f"{self.name}: {len(samples)} images are fewer than processes; use fewer devices.")
        return samples

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Returns the loader of the test split."""
        return self.test_dataloader()

    def _loader(
        self,
        samples: Sequence[Sample],
        sampler: Callable[[AnomalyDataset], Sampler[int]],
        references: Sequence[Sequence[int]] | None = None,
        training: bool = False,
    ) -> DataLoader[Batch]:
        if self.preprocess is None:
            raise RuntimeError("the data does not know the backbone yet: data.connect(model.preprocess)")
        named = [replace(sample, class_name=self.class_name_of(sample.category)) for sample in samples]
        facts: MaskDetail = "none" if training else "regions" if self.own_size else "counts"
        tiling = None if training else self.tiling
        dataset = AnomalyDataset(
            named, self.preprocess, self.loading, references, self.store, facts, tiling, self.skipped
        )
        return make_loader(dataset, self.batch_size, self.num_workers, sampler(dataset), training)


class DatasetNotFoundError(DatasetError):
    """A dataset does not lie where it should; the message says what is there instead, and how to get the dataset.

    Args:
        dataset: The dataset.
        problem: What is wrong.
        hint: What the folder seems to hold instead.
    """

    def __init__(self, dataset: AnomalyDataModule, problem: str, hint: str = "") -> None:
        self.dataset, self.problem = dataset, problem
        root = dataset.root
        if root.is_dir():
            names = sorted(path.name for path in root.iterdir())
            problem += f"; {root} contains: {', '.join(names[:8]) or 'nothing'}" + (" …" if len(names) > 8 else "")
        super().__init__(
            f"Dataset {dataset.name!r} was not found: {problem}.{hint}\n\n"
            f"Expected in {root}:\n{indented(dataset.layout)}\n\n"
            f"How to get it:\n{indented(dataset.source)}\n"
            f"  Licence: {dataset.licence or 'not known, see there'}\n\n"
            "Another place: set `root` of the dataset, or the variable AFCLIP_DATA to the folder that holds all "
            "datasets.\nTo see the project work without any dataset: make demo."
        )


def facts_of(subset: str, known: Mapping[Any, Facts]) -> Facts:
    """Returns what is known of one subset of a family.

    Raises:
        ValueError: There is no such subset.
    """
    if subset not in known:
        raise ValueError(f"subset must be one of {', '.join(known)}; got {subset!r}")
    return known[subset]


def indented(text: str) -> str:
    """Returns a text with each line two spaces to the right."""
    return "\n".join("  " + line for line in text.strip("\n").splitlines())
