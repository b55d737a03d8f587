"""The order of images, and how several processes share it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import Dataset, DistributedSampler, Sampler, SequentialSampler

from afclip_lightning.data.dataset import AnomalyDataset
from afclip_lightning.distributed import agreed, processes, rank


class SharedShuffle(DistributedSampler[Any]):
    """Deals a shuffled order to the processes, one image in turn; it follows from the run's seed and the epoch alone.

    The batches of N processes are then together the batch of one process with N times their size, and a run that was
    stopped goes on in the order that it would have had. It is a torch `DistributedSampler`, so that Lightning leaves it
    in its place and tells it the epoch.

    Args:
        dataset: The images, as many as can be dealt out evenly.
        fillers: How many of them, at the end, only fill up the last step.
        even: Sizes of sets that follow each other in `dataset` and are to be seen equally often; without any, an epoch
            is each image once. An epoch is as long either way. Of each set the epochs then take the next images of an
            endless order, which has all of them once before one comes again: of a small set some come several times in
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
        """Returns the indices of an epoch's images, `[count]`: the sets take turns, and go on so in the next epoch."""
        chosen, sets = [], len(self.even)
        for number, (size, first) in enumerate(zip(self.even, np.cumsum([0, *self.even]), strict=False)):
            # how many of the set's images the epochs before took, and those with this one
            start, end = ((epoch * count + sets - 1 - number) // sets for epoch in (self.epoch, self.epoch + 1))
            rounds = range(start // size, -(-end // size))
            drawn = [np.random.default_rng([self.seed, one, number + 1]).permutation(size) for one in rounds]
            chosen.append(first + np.concatenate(drawn)[start - rounds.start * size : end - rounds.start * size])
        return np.concatenate(chosen)


class GroupedSampler(DistributedSampler[int]):
    """An order in which images that are each other's references follow each other, so that a batch holds both.

    What is left over in the categories comes last. Each process takes one stretch of it; none is repeated. It is a
    torch `DistributedSampler`, so that Lightning does not deal out the stretch once more.

    Args:
        references: Positions of each sample's references, from `draw_references`.
        rank: Number of this process.
        processes: How many share the samples.
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
    """Returns the order of a test: of this process's part, no image repeated.

    Args:
        dataset: The images.
        references: Positions of each image's references, where it has some.
    """
    if references is not None:
        return GroupedSampler(references, rank(), processes())
    # Lightning's own test sampler pads to equal parts, and a repeated image would count twice.
    return UnrepeatedDistributedSampler(dataset, shuffle=False) if processes() > 1 else SequentialSampler(dataset)
