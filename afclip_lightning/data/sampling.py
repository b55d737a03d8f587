"""The order of images, and its division among several processes."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import Dataset, DistributedSampler, Sampler, SequentialSampler

from afclip_lightning.data.dataset import AnomalyDataset
from afclip_lightning.distributed import agreed, processes, rank


class SharedShuffle(DistributedSampler[Any]):
    """Distributes a shuffled order to the processes, one image in turn.

    It depends only on the run's seed and the epoch.

    So the batches of N processes together are the batch of one process with N times their size, and a resumed run has
    the order of an uninterrupted one. It is a torch `DistributedSampler`, so that Lightning does not replace it and
    sets its epoch.

    Args:
        dataset: The images. Their number must be divisible among the processes.
        fillers: Number of images at the end that only fill up the last step.
        even: Sizes of datasets that follow each other in `dataset` and are sampled equally often. Without any, an epoch
            has each image once. The length of an epoch is the same. From each dataset, epochs take the next images of
            an endless order, in which no image is repeated before all were used. So a small dataset is repeated within
            an epoch, and a large one takes several epochs.
    """

    def __init__(self, dataset: Dataset[Any], fillers: int, even: Sequence[int] = ()) -> None:
        super().__init__(dataset, processes(), rank(), seed=agreed(torch.initial_seed()))
        self.fillers = fillers
        self.even = even

    def __iter__(self) -> Iterator[int]:
        """Returns the indices of this process.

        Raises:
            RuntimeError: The loader was made before the processes were started.
        """
        if processes() != self.num_replicas:
            raise RuntimeError("the loader was made before the processes: give the trainer the datamodule instead")
        count = self.total_size - self.fillers
        order = np.random.default_rng([self.seed, self.epoch]).permutation(count)
        if self.even:
            order = self._even(count)[order]
        return iter([*order.tolist(), *range(count, self.total_size)][self.rank :: self.num_replicas])

    def _even(self, count: int) -> np.ndarray:
        """Returns the indices of an epoch's images, `[count]`. The datasets alternate, also across epochs."""
        chosen, sets = [], len(self.even)
        for number, (size, first) in enumerate(zip(self.even, np.cumsum([0, *self.even]), strict=False)):
            # number of the dataset's images before this epoch, and after it
            start, end = ((epoch * count + sets - 1 - number) // sets for epoch in (self.epoch, self.epoch + 1))
            rounds = range(start // size, -(-end // size))
            drawn = [np.random.default_rng([self.seed, one, number + 1]).permutation(size) for one in rounds]
            chosen.append(first + np.concatenate(drawn)[start - rounds.start * size : end - rounds.start * size])
        return np.concatenate(chosen)


class GroupedSampler(DistributedSampler[int]):
    """An order in which images that are references of each other are neighbours, so that a batch holds both.

    Remaining images of the categories come last. Each process takes one section of the order; no image is repeated. It
    is a torch `DistributedSampler`, so that Lightning does not divide the section again.

    Args:
        references: Positions of each sample's references, from `draw_references`.
        rank: Rank of this process.
        processes: Number of processes that share the samples.
    """

    def __init__(self, references: Sequence[Sequence[int]], rank: int = 0, processes: int = 1) -> None:
        super().__init__(references, processes, rank, shuffle=False)  # type: ignore[arg-type]
        groups: dict[frozenset[int], list[int]] = {}
        for position, others in enumerate(references):
            groups.setdefault(frozenset([position, *others]), []).append(position)
        order = [position for group in sorted(groups.values(), key=len, reverse=True) for position in group]
        start, end = (len(order) * n // processes for n in (rank, rank + 1))
        self.order = order[start:end]

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)


def ordered_sampler(dataset: AnomalyDataset, references: Sequence[Sequence[int]] | None = None) -> Sampler[int]:
    """Returns the order of this process's part of a test. No image is repeated.

    Args:
        dataset: The images.
        references: Positions of each image's references, if there are any.
    """
    if references is not None:
        return GroupedSampler(references, rank(), processes())
    # Lightning's own test sampler pads to equal parts, and a repeated image would count twice.
    return UnrepeatedDistributedSampler(dataset, shuffle=False) if processes() > 1 else SequentialSampler(dataset)
