"""The loader of batches: goes on in the middle of an epoch, and leaves out what cannot be read where that is wanted."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from afclip_lightning.data.collate import Collate
from afclip_lightning.data.dataset import AnomalyDataset, Unread
from afclip_lightning.types import Batch
from afclip_runtime.errors import DatasetError


class AnomalyLoader(DataLoader[Any]):
    """Batches of an `AnomalyDataset`. What was left out is noted in its `skipped`; a batch of nothing is not given.

    In training they go on in the middle of an epoch, in its order; a checkpoint keeps where. What the run had had of
    the epoch is read again and dropped: reading costs little beside the backbone's pass.
    """

    dataset: AnomalyDataset
    _order: Tensor | None = None  # torch's random state when the epoch began, which its order follows from
    _given = 0
    _resume: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Returns how the epoch began and how many of its batches were given."""
        return {"order": self._order, "given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Lets the next epoch be the rest of that one, if it had begun; the order of a new one is drawn."""
        self._resume = state if state["given"] else None

    def end_epoch(self) -> None:
        """Says that an epoch is over, though there may be batches that a limit left."""
        self._given = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yields the batches and notes what was left out; draws nothing before the first is asked for.

        Raises:
            DatasetError: Not one image could be read.
        """
        skipped, any_read = self.dataset.skipped, False
        for batch, unread in self._rest():
            skipped.update({item.path: item.reason for item in unread})
            if batch is not None:
                any_read = True
                yield batch
        if skipped and not any_read:
            raise DatasetError(f"None of the images can be read. The first: {next(iter(skipped.values()))}")

    def _rest(self) -> Iterator[tuple[Batch | None, list[Unread]]]:
        """Yields what `Collate` gives, from where a checkpoint says."""
        resume, self._resume = self._resume, None
        had, now = resume["given"] if resume else 0, torch.get_rng_state()
        if resume:
            torch.set_rng_state(resume["order"])
        self._order, self._given = torch.get_rng_state(), 0
        for collated in super().__iter__():
            self._given += 1
            if self._given > had:
                yield collated
            elif self._given == had:
                torch.set_rng_state(now)


def make_loader(
    dataset: AnomalyDataset, batch_size: int, num_workers: int, sampler: Sampler[int], training: bool = False
) -> AnomalyLoader:
    """Returns a loader of batches.

    Args:
        dataset: What is loaded.
        batch_size: Images per batch; where they are seen in tiles, views that a backbone is given together.
        num_workers: Loader processes; 0 loads in the main process.
        sampler: Order of a pass.
        training: Whether the batches are for training, which has no use for the regions of masks.
    """
    loading = dataset.loading
    return AnomalyLoader(
        dataset,
        batch_size=1 if dataset.tiling else batch_size,  # an image may have many views
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=Collate(dataset.preprocess, not training, dataset.store, dataset.tiling, batch_size),
        worker_init_fn=keep_memory,
        persistent_workers=loading.persistent_workers and training and num_workers > 0,
        pin_memory=loading.pin_memory and torch.cuda.is_available(),
    )


def killed_loader(error: BaseException) -> str:
    """Returns what a user can do where a loader's process was killed; an empty text for any other error."""
    if not isinstance(error, RuntimeError) or not re.search(
        r"DataLoader worker.*(exited unexpect|killed by)", str(error)
    ):
        return ""
    return (
        f"a loader process was killed ({' '.join(str(error).split())}) Most often the memory was used up: use fewer "
        "num_workers, or a smaller batch_size and --loading.cache_mb."
    )


def keep_memory(worker: int) -> None:
    """Makes the C library keep the memory of an image for the next one.

    glibc gives large blocks back to the system, and each new one costs a page fault per page, a quarter of the time of
    decoding; it keeps what is no larger than the largest block that was freed. No page of this one is touched.
    """
    np.empty(2**25 - 2**16, np.uint8)  # just below the largest that counts
