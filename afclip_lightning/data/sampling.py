"""The order of training images, and how several processes share it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

from afclip_lightning.distributed import agreed, processes, rank


class SharedShuffle(DistributedSampler[Any]):
    """Deals a shuffled order to the processes, one image in turn; it follows from the run's seed and the epoch alone.

    The batches of N processes are then together the batch of one process with N times their size, and a run that was
    stopped goes on in the order that it would have had. It is a torch `DistributedSampler`, so that Lightning leaves it
    in its place and tells it the epoch.

    Args:
        dataset: The images, as many as can be dealt out evenly.
        fillers: How many of them, at the end, only fill up the last step.
    """

    def __init__(self, dataset: Dataset[Any], fillers: int) -> None:
        super().__init__(dataset, processes(), rank(), seed=agreed(torch.initial_seed()))
        self.fillers = fillers

    def __iter__(self) -> Iterator[int]:
        """Returns the indices of this process.

        Raises:
            RuntimeError: The loader was made before the processes were started.
        """
        if processes() != self.num_replicas:
            raise RuntimeError("the loader was made before the processes: give the trainer the datamodule instead")
        count = self.total_size - self.fillers
        order = np.random.default_rng([self.seed, self.epoch]).permutation(count).tolist()
        return iter([*order, *range(count, self.total_size)][self.rank :: self.num_replicas])
