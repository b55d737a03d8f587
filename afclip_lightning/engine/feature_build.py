"""`features build`: the features that a run would read, and nothing else."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import LightningModule
from lightning.pytorch.callbacks import ProgressBar

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.engine.app import AnomalyCLI
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

    def _choose_run_dir(self, config: Namespace) -> Path:
        return Path("runs")  # nothing is written there, and several nodes need not agree on a folder

    def fit(self, **kwargs: Any) -> None:
        """Walks the images of the tests, for all heads, and those of training."""
        data = self.datamodule
        data.prepare_data()
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [callback for callback in callbacks if isinstance(callback, ProgressBar)]  # nothing to record
        self.trainer.loggers = []
        tests: list[tuple[AnomalyDataModule, Split]] = [(dataset, "test") for dataset in data.test_sets]
        training = [part for part in self._trained_on() if part not in tests]
        walks = [(self.tested, tests), *([(self.model, training)] if training else [])]
        for method, splits in walks:
            self._read_from(method.store)
            loaders = [dataset.walk(split) for dataset, split in splits]
            self.trainer.predict(FeatureBuilder(method), loaders, return_predictions=False)
        if self.trainer.is_global_zero:
            print(f"Features: {self.model.store.folder}")
