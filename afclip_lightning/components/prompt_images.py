"""Prompt images: normal images that training images are compared with. They are sampled again in each epoch."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from zlib import crc32

import numpy as np

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.backbones.store import FeatureStore
from afclip_lightning.components.memory import Key
from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.collate import Collate
from afclip_lightning.data.dataset import AnomalyDataset
from afclip_lightning.data.loading_options import Loading
from afclip_lightning.types import Batch, Sample
from afclip_runtime.errors import DatasetError

THREADS = 8  # threads that decode the images of a step


class PromptImages:
    """A normal image of the same category for each training image.

    The choice depends on the seed, the epoch and the image only, not on batches or processes. A resumed run therefore
    gets the same prompt images. An image is its own prompt only if its category has no other normal image.

    Args:
        trained: The training images.
        normal: Normal images outside the training images. A category without any uses its normal training images.
        preprocess: Preprocessing of the backbone.
        loading: How images are read.
        seed: Seed of the sampling.

    Raises:
        DatasetError: A category has no normal image.
    """

    def __init__(
        self, trained: Sequence[Sample], normal: Sequence[Sample], preprocess: Preprocess, loading: Loading, seed: int
    ) -> None:
        self.preprocess = preprocess
        self.loading = Loading(draft=loading.draft)
        self.seed = seed
        self.normal: dict[Key, list[Sample]] = {}
        for sample in normal:
            self.normal.setdefault((sample.dataset, sample.category), []).append(sample)
        lacking = {(sample.dataset, sample.category) for sample in trained} - self.normal.keys()
        for sample in trained:
            key = sample.dataset, sample.category
            if key in lacking and sample.label == 0:
                self.normal.setdefault(key, []).append(sample)
        if none := sorted("/".join(key) for key in lacking - self.normal.keys()):
            raise DatasetError(
                f"There is no normal image to compare the training images of {', '.join(none)} with. Add normal images "
                "(to the `train` split, or to what is trained on), or leave the category out (--data.categories)."
            )

    @classmethod
    def of(cls, sets: Sequence[AnomalyDataModule], preprocess: Preprocess, seed: int) -> "PromptImages":
        """Returns the prompt images of the training datasets: the normal images of their `train` splits.

        Raises:
            DatasetError: A category has no normal image.
        """
        trained = [one for part in sets for one in part.samples(part.train_split)]
        found: list[Sample] = []
        for part in sets:
            listed = (one for name in part.selected_categories() for one in part.find_samples(name, "train"))
            found += part.as_read([one for one in listed if one.label == 0])
        return cls(trained, found, preprocess, sets[0].loading, seed)

    def draw(self, sample: Sample, epoch: int) -> Sample:
        """Returns the prompt image of a training image."""
        normal = self.normal[sample.dataset, sample.category]
        others = [one for one in normal if one.image_path != sample.image_path] or normal
        own = crc32("/".join((sample.category, *sample.image_path.parts[-2:])).encode(errors="surrogateescape"))
        return others[np.random.default_rng([self.seed, epoch, own]).integers(len(others))]

    def read(self, samples: Sequence[Sample], epoch: int, store: FeatureStore | None) -> tuple[list[Batch], list[int]]:
        """Returns the distinct prompt images of training images, and the index of the prompt image of each.

        Threads of this process read them. The training step waits for them.

        Args:
            samples: The training images.
            epoch: Epoch, counted from 0.
            store: Feature store that may hold their features.

        Returns:
            Up to two batches on the CPU, one with stored features and one with images; and per training image the row
            of its prompt image, counted through both batches.

        Raises:
            DatasetError: A file cannot be read.
        """
        drawn = [self.draw(sample, epoch) for sample in samples]
        each = list({sample.image_path: sample for sample in drawn}.values())
        dataset = AnomalyDataset(each, self.preprocess, self.loading, store=store)
        with ThreadPoolExecutor(min(THREADS, len(each))) as threads:
            items = list(threads.map(dataset.read, range(len(each))))
        parts = [[item for item in items if (item.features is None) == new] for new in (False, True)]
        collate, batches = Collate(self.preprocess, store=store), []
        for part in filter(None, parts):
            batch, _ = collate(part)
            assert isinstance(batch, Batch)  # no worker process is involved here
            batches.append(batch)
        rows = {item.sample.image_path: row for row, item in enumerate(parts[0] + parts[1])}
        return batches, [rows[sample.image_path] for sample in drawn]
