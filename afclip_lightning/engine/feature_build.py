"""`features build`: the features that a run would read, and nothing else."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import LightningModule
from lightning.pytorch.callbacks import ProgressBar

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.engine.app import AnomalyCLI
from afclip_lightning.engine.flows import Run
from afclip_lightning.engine.run_parts import trained_on
from afclip_lightning.engine.shared_pass import SharedPass
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.types import Batch, Split


class FeatureBuilder(LightningModule):
    """Computes the features of batches and keeps them.

    Args:
        method: Whose features: a method's, or of all the heads of a shared pass; it has a store.
    """

    def __init__(self, method: AnomalyMethod | SharedPass) -> None:
        super().__init__()
        self.method = method

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> int:
        """Keeps the features of a batch, and returns of how many images."""
        self.method.features_of(batch)
        return len(batch.samples)


class FeatureBuildCLI(AnomalyCLI):
    """Computes the features that `fit` with the same options would read, and nothing else."""

    def choose_folder(self, config: Namespace) -> Path:
        """Returns a folder in which nothing is written; several nodes need not agree on it."""
        return Path("runs")

    def fit(self, **_: Any) -> None:
        """Walks the images of the tests, for all heads, and those of training."""
        self.carry_out(build_features)


def build_features(run: Run) -> None:
    """Computes the features that are not there of all images that a run reads."""
    run.data.prepare_data()
    callbacks = run.trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:] = [callback for callback in callbacks if isinstance(callback, ProgressBar)]  # nothing to record
    run.trainer.loggers = []
    tests: list[tuple[AnomalyDataModule, Split]] = [(dataset, "test") for dataset in run.data.test_sets]
    training = [part for part in trained_on(run.method, run.data) if part not in tests]
    for reader, splits in ((run.tested, tests), (run.method, training)):
        if splits:
            run.read_for(reader)
            loaders = [dataset.ordered_loader(split) for dataset, split in splits]
            run.trainer.predict(FeatureBuilder(reader), loaders, return_predictions=False)
    if run.trainer.is_global_zero:
        assert run.method.store is not None
        print(f"Features: {run.method.store.folder}")
