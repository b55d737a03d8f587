"""The batches of training, from one dataset or from several together."""

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

    Each image keeps the facts of its dataset: class name, white level and masks. The batch size is that of the first
    dataset. The number of loader processes is the largest of all datasets.

    If the images cannot be divided evenly among several processes, unlabelled images fill up the last step. They are
    in no loss.

    Args:
        sets: The datasets, at least one. Their images are concatenated.
        sampling: Sampling of several datasets.

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
    """Returns the joint name of datasets for titles, such as `mvtec + colondb`."""
    return " + ".join(dict.fromkeys(part.name for part in sets))
