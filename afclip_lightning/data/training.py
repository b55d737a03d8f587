"""The batches that training reads: of one dataset, or of several together, each with its own rules."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from afclip_lightning.data.dataloader import AnomalyLoader, make_loader
from afclip_lightning.data.dataset import AnomalyDataset
from afclip_lightning.data.loader_hooks import LoaderHooks
from afclip_lightning.data.sampling import SharedShuffle
from afclip_lightning.distributed import processes
from afclip_lightning.types import UNKNOWN, TrainSampling
from afclip_runtime.errors import DatasetError


def training_loader(sets: Sequence[LoaderHooks], sampling: TrainSampling = "by_size") -> AnomalyLoader:
    """Returns the shuffled loader of the `train_split` of datasets: see `SharedShuffle`.

    What is known of an image goes with it: class name, white level, whether and how it is masked. The size of a batch
    is that of the first set; the most loader processes of any are taken.

    Where several processes cannot share the images evenly, some of which nothing is said fill up the last step; they
    take part in no loss.

    Args:
        sets: At least one; of several the images follow each other.
        sampling: How often an image of each is seen.

    Raises:
        DatasetError: There are fewer images than processes.
    """
    first = sets[0]
    parts = [part.named(part.samples(part.train_split)) for part in sets]
    samples = list(chain.from_iterable(parts))
    if len(samples) < processes():
        raise DatasetError(f"{names_of(sets)}: {len(samples)} images are fewer than processes; use fewer devices.")
    fillers = samples[: -len(samples) % processes()]
    samples += [replace(sample, label=UNKNOWN, mask_path=None, mask_known=False) for sample in fillers]
    dataset = AnomalyDataset(samples, first.connected(), first.loading, store=first.store, skipped=first.skipped)
    shuffle = SharedShuffle(dataset, len(fillers), [len(part) for part in parts] if sampling == "evenly" else ())
    return make_loader(dataset, first.batch_size, max(part.num_workers for part in sets), shuffle, training=True)


def names_of(sets: Sequence[LoaderHooks]) -> str:
    """Returns the names of datasets as one, as titles have them: `mvtec + colondb`."""
    return " + ".join(dict.fromkeys(part.name for part in sets))
