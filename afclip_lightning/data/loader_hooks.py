"""The loaders that a dataset gives to Lightning: images of each batch, their order, and the data that is read.

Torch is imported when a loader is made, so that checks of a dataset's files do not need it.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afclip_lightning.data.lightning_base import LightningDataModule
from afclip_lightning.data.loading_options import Loading
from afclip_lightning.data.references import Pairing, draw_references
from afclip_lightning.types import Batch, Sample, Split
from afclip_runtime.errors import DatasetError
from afclip_runtime.types import Tiling

if TYPE_CHECKING:
    from torch.utils.data import DataLoader, Sampler

    from afclip_lightning.backbones.preprocess import Preprocess
    from afclip_lightning.backbones.store import FeatureStore
    from afclip_lightning.data.dataset import AnomalyDataset, MaskDetail


class LoaderHooks(LightningDataModule, ABC):
    """Base class with the loaders of a dataset's samples, for any layout on disk.

    Args:
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Number of loader processes; 0 loads in the main process.

    Attributes:
        preprocess: Turns images and masks into tensors; `None` until `AnomalyData.connect`, which also sets the next
            three attributes.
        loading: Options of reading images.
        store: Feature store, or `None`.
        few_shot_dir: Folder of few-shot images chosen by hand, or `None` to select them at random.
        pairing: Pairing of test images with references; `None` without pairs. Set by `pair`.
        reference_record: The references of each `(dataset, category)`, for the run folder.
        own_size: Whether test loaders also give masks at each image's own size; see `AnomalyData.evaluate_at`.
        tiling: Tiling of test images; `None` for no tiles.
        skipped: Images that were left out so far, with the reasons; empty unless `loading` has `on_error: skip`.

    Raises:
        ValueError: An argument is out of its range.
    """

    name: str
    root: Path

    def __init__(self, train_split: Split, batch_size: int, num_workers: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {num_workers}")
        self.train_split: Split = train_split
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.preprocess: Preprocess | None = None
        self.loading = Loading()
        self.store: FeatureStore | None = None
        self.few_shot_dir: Path | None = None
        self.pairing: Pairing | None = None
        self.reference_record: dict[tuple[str, str], dict[str, Any]] = {}
        self.own_size = False
        self.tiling: Tiling | None = None
        self.skipped: dict[Path, str] = {}

    @abstractmethod
    def samples(self, split: Split) -> list[Sample]:
        """Returns the samples of all categories in use, category after category."""

    @abstractmethod
    def selected_categories(self) -> list[str]:
        """Returns the categories in use."""

    @abstractmethod
    def class_name_of(self, category: str) -> str:
        """Returns the name of the category in prompts."""

    def pair(self, pairing: Pairing) -> None:
        """Gives each image of the test split references from its own category, and records them in `reference_record`.

        They depend neither on batches nor on processes; see `draw_references`.

        Raises:
            DatasetError: A category has too few images.
        """
        samples = self.samples("test")
        references = draw_references(samples, pairing)
        self.pairing = pairing
        self.reference_record.clear()  # not a new one, because a copy that is tested on shares it
        paths = [Path(os.path.relpath(sample.image_path, self.root)).as_posix() for sample in samples]
        for sample, path, others in zip(samples, paths, references, strict=True):
            record = {"dataset": self.name, "category": sample.category, "seed": pairing.seed, "root": str(self.root)}
            of_category = self.reference_record.setdefault((self.name, sample.category), {**record, "references": {}})
            of_category["references"][path] = [paths[position] for position in others]

    def threshold_samples(self, category: str) -> list[Sample]:
        """Returns the normal images of a category for thresholds without labels, sorted by path.

        These are the normal training images, or those of the dataset's validation part. A method gives lower scores to
        those that it has as few-shot images.

        Raises:
            DatasetError: A category in use has no such image.
        """
        return [sample for sample in self.samples("train") if sample.category == category and sample.label == 0]

    def threshold_batches(self, leave_out: Collection[Path] = ()) -> "Iterable[Batch]":
        """Returns this process's part of the images of `threshold_samples`, in batches like those of a test.

        Args:
            leave_out: Images to leave out.
        """
        from torch.utils.data import SequentialSampler

        from afclip_lightning.distributed import processes, rank

        samples = [s for category in self.selected_categories() for s in self.threshold_samples(category)]
        own = [sample for sample in samples if sample.image_path not in leave_out][rank() :: processes()]
        return self._loader(own, SequentialSampler) if own else ()

    def val_dataloader(self) -> "DataLoader[Batch]":
        """Returns the loader of the test split."""
        return self.test_dataloader()

    def test_dataloader(self) -> "DataLoader[Batch]":
        """Returns the loader of the test split. With several processes, no image is repeated."""
        return self.ordered_loader("test")

    def predict_dataloader(self) -> "DataLoader[Batch]":
        """Returns the loader of the test split."""
        return self.test_dataloader()

    def ordered_loader(self, split: Split, training: bool = False) -> "DataLoader[Batch]":
        """Returns a loader of a split in its order, as for a test.

        Args:
            split: The split.
            training: Whether images are read as in training: without references, tiles and facts for a test.

        Raises:
            DatasetError: There are fewer images than processes.
        """
        from afclip_lightning.data.sampling import ordered_sampler

        samples = self._samples_for_all(split)
        references = draw_references(samples, self.pairing) if self.pairing and not training else None
        return self._loader(samples, partial(ordered_sampler, references=references), references, training)

    def image_loader(self, samples: Sequence[Sample]) -> "DataLoader[Batch]":
        """Returns a loader of images only, in the order of the samples. Masks are not read."""
        from torch.utils.data import SequentialSampler

        alone = [replace(sample, mask_path=None, mask_known=False, saturations=None) for sample in samples]
        return self._loader(alone, SequentialSampler, training=True)

    def named(self, samples: Sequence[Sample]) -> list[Sample]:
        """Returns samples with the names of their categories in prompts."""
        return [replace(sample, class_name=self.class_name_of(sample.category)) for sample in samples]

    def connected(self) -> "Preprocess":
        """Returns the preprocessing.

        Raises:
            RuntimeError: `connect` was not called yet.
        """
        if self.preprocess is None:
            raise RuntimeError("the data does not know the backbone yet: data.connect(model.preprocess)")
        return self.preprocess

    def _samples_for_all(self, split: Split) -> list[Sample]:
        from afclip_lightning.distributed import processes

        samples = self.samples(split)
        if len(samples) < processes():
            raise DatasetError(f"{self.name}: {len(samples)} images are fewer than processes; use fewer devices.")
        return samples

    def _loader(
        self,
        samples: Sequence[Sample],
        sampler: "Callable[[AnomalyDataset], Sampler[int]]",
        references: Sequence[Sequence[int]] | None = None,
        training: bool = False,
    ) -> "DataLoader[Batch]":
        from afclip_lightning.data.dataloader import make_loader
        from afclip_lightning.data.dataset import AnomalyDataset

        facts: MaskDetail = "none" if training else "regions" if self.own_size else "counts"
        tiling = None if training else self.tiling
        dataset = AnomalyDataset(
            self.named(samples), self.connected(), self.loading, references, self.store, facts, tiling, self.skipped
        )
        return make_loader(dataset, self.batch_size, self.num_workers, sampler(dataset), training)
