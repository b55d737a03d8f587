"""All test images of a run, for methods that compare them with each other before they score the first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch.utils.data import DataLoader, SequentialSampler

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.backbones.store import FeatureStore
from afclip_lightning.data.base import AnomalyData, AnomalyDataModule
from afclip_lightning.data.dataloader import make_loader
from afclip_lightning.data.dataset import AnomalyDataset
from afclip_lightning.distributed import processes, rank
from afclip_lightning.types import UNKNOWN, Batch, Sample

K = TypeVar("K")


@dataclass(frozen=True)
class CategoryImages:
    """The test images of one category.

    Attributes:
        part: The dataset of the images.
        samples: The images, in the order of the dataset.
        preprocess: Preprocessing of the backbone.
        store: Feature store, or `None`.
    """

    part: AnomalyDataModule
    samples: list[Sample]
    preprocess: Preprocess
    store: FeatureStore | None

    def __len__(self) -> int:
        return len(self.samples)

    def loader(self, positions: Sequence[int]) -> DataLoader[Batch]:
        """Returns a loader of some of the images, in this order, without labels and masks."""
        loading = replace(self.part.loading, cache_mb=0)  # each image is read once
        chosen = (self.samples[position] for position in positions)
        bare = [replace(sample, label=UNKNOWN, mask_path=None, mask_known=False) for sample in chosen]
        dataset = AnomalyDataset(bare, self.preprocess, loading, store=self.store, skipped=self.part.skipped)
        return make_loader(dataset, self.part.batch_size, self.part.num_workers, SequentialSampler(dataset))


@dataclass(frozen=True)
class WholeTestSet:
    """All test images of all processes of a run.

    They can be read in two ways. Iteration yields this process's part of the batches of the test loaders. With
    `categories` and `share`, each process reads whole categories.

    Attributes:
        data: Data with the test images.
        preprocess: Preprocessing of the backbone.
        store: Feature store, or `None`.
    """

    data: AnomalyData
    preprocess: Preprocess
    store: FeatureStore | None

    def __iter__(self) -> Iterator[Batch]:
        for part in self.data.test_sets:
            yield from part.test_dataloader()

    def categories(self) -> dict[tuple[str, str], CategoryImages]:
        """Returns the test images by `(dataset, category)`, all of them on every process."""
        found: dict[tuple[str, str], CategoryImages] = {}
        for part in self.data.test_sets:
            for sample in part.samples("test"):
                key = (sample.dataset, sample.category)
                if key not in found:
                    found[key] = CategoryImages(part, [], self.preprocess, self.store)
                found[key].samples.append(sample)
        return found


def share(costs: Mapping[K, int]) -> list[K]:
    """Returns the keys of this process.

    The most expensive key goes first, to the process with the least work so far.
    """
    shares: list[list[K]] = [[] for _ in range(processes())]
    for key in sorted(costs, key=lambda key: -costs[key]):
        min(shares, key=lambda share: sum(costs[mine] for mine in share)).append(key)
    return shares[rank()]
