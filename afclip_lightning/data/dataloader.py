"""The loader of batches. It can resume within an epoch, and can skip images that cannot be read."""

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
    """Batches of an `AnomalyDataset`. Its `skipped` lists the images that were left out. Empty batches are not given.

    Training can resume within an epoch, in the same order. A checkpoint keeps the position. Earlier batches of the
    epoch are read again and dropped, because reading takes little time compared with the backbone.
    """

    dataset: AnomalyDataset
    _order: Tensor | None = None  # torch's random state at the start of the epoch, which determines its order
    _given = 0
    _resume: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the random state at the start of the epoch and the number of batches given since."""
        return {"order": self._order, "given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next epoch the rest of the saved one, if that had begun. Otherwise a new order is drawn."""
        self._resume = state if state["given"] else None

    def end_epoch(self) -> None:
        """Marks the epoch as completed, even if a limit has left batches."""
        self._given = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yields the batches and records images that were left out. No random number is drawn before the first batch.

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
        """Yields the results of `Collate`, from the position of a checkpoint on."""
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
        dataset: The dataset.
        batch_size: Images per batch. For tiled images: number of views that the backbone encodes together.
        num_workers: Number of loader processes; 0 loads in the main process.
        sampler: Order of a pass.
        training: Whether the batches are for training, which does not need the regions of masks.
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
    """Returns a message with the remedy if a loader process was killed; an empty text for any other error."""
    if not isinstance(error, RuntimeError) or not re.search(
        r"DataLoader worker.*(exited unexpect|killed by)", str(error)
    ):
        return ""
    return (
        f"a loader process was killed ({' '.join(str(error).split())}) Most often the memory was used up: use fewer "
        "num_workers, or a smaller batch_size and --loading.cache_mb."
    )


def keep_memory(worker: int) -> None:
    """Makes the C library reuse the memory of an image for the next one.

    glibc returns large blocks to the system, and each new block costs one page fault per page, a quarter of the
    decoding time. It keeps blocks up to the size of the largest block that was freed. No page of this block is touched.
    """
    np.empty(2**25 - 2**16, np.uint8)  # just below the largest size that has this effect
