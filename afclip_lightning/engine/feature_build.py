"""`features build`: computes the features that a run would read."""

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import LightningModule
from lightning.pytorch.callbacks import ProgressBar

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.distributed import gathered
from afclip_lightning.engine.app import AnomalyCLI
from afclip_lightning.engine.flows import Run
from afclip_lightning.engine.run_parts import trained_on
from afclip_lightning.engine.shared_pass import SharedPass
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.types import Batch, Split
from afclip_runtime.launch import signals
from afclip_runtime.launch.signals import StoppedError


class FeatureBuilder(LightningModule):
    """Computes the features of batches and stores them.

    Args:
        method: A method, or the heads of a shared pass, whose features are computed. It must have a store.
    """

    def __init__(self, method: AnomalyMethod | SharedPass) -> None:
        super().__init__()
        self.method = method

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> int:
        """Stores the features of a batch, and returns the number of its images.

        Raises:
            StoppedError: A signal asks this process to stop.
        """
        if signals.requested():
            raise StoppedError("The same command goes on from here.")
        self.method.features_of(batch)
        return len(batch.samples)


class FeatureBuildCLI(AnomalyCLI):
    """Computes the features that `fit` with the same options would read."""

    def choose_folder(self, config: Namespace) -> Path:
        """Returns a folder in which nothing is written, so that several nodes need not agree on it."""
        return Path("runs")

    def fit(self, **_: Any) -> None:
        """Computes the features of the test images, for all heads, and of the training images."""
        self.carry_out(build_features)


@dataclass(frozen=True)
class Part:
    """Images that a run reads in one pass.

    Attributes:
        reader: Method or heads whose features are computed.
        dataset: Dataset of the images.
        split: Split of the dataset.
    """

    reader: AnomalyMethod | SharedPass
    dataset: AnomalyDataModule
    split: Split


def parts_of(run: Run) -> list[Part]:
    """Returns the parts that a run reads: the test images, for all heads, and then the training images."""
    tests: list[tuple[AnomalyDataModule, Split]] = [(dataset, "test") for dataset in run.data.test_sets]
    training = [part for part in trained_on(run.method, run.data) if part not in tests]
    return [Part(run.tested, *test) for test in tests] + [Part(run.method, *part) for part in training]


def only_compute(run: Run) -> None:
    """Removes loggers, callbacks and records from a run, so that a build writes features only."""
    callbacks = run.trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:] = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
    run.trainer.loggers = []


def build_features(run: Run) -> None:
    """Computes the missing features of all images that a run reads."""
    run.data.prepare_data()
    only_compute(run)
    for reader, parts in groupby(parts_of(run), lambda part: part.reader):
        run.read_for(reader)
        loaders = [part.dataset.ordered_loader(part.split) for part in parts]
        run.trainer.predict(FeatureBuilder(reader), loaders, return_predictions=False)
    gathered(None)  # a process that is lost has not made its part: the others must not say that all is done
    if run.trainer.is_global_zero:
        assert run.method.store is not None
        print(f"Features: {run.method.store.folder}")
