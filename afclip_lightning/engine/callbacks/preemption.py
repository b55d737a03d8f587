"""Stops a run between two steps when a signal asks for it, so that it can be resumed exactly."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from afclip_lightning.engine.processes import check_same_start
from afclip_lightning.engine.resume import how_to_go_on
from afclip_lightning.types import AnomalyPrediction, Batch
from afclip_runtime.launch import signals
from afclip_runtime.launch.signals import StoppedError


class Preemption(Callback):
    """Saves the state beyond weights and optimiser that resuming exactly needs, and stops the run on request.

    Training stops after a step and saves a checkpoint. Anything else is repeated when the run is resumed.

    Args:
        path: The checkpoint, the same file as at the end of each epoch. With `None`, none is saved, and the run starts
            again from its beginning.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.random_states: list[torch.Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of torch's random generators: of the CPU, then of each CUDA device."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"random_states": [torch.get_rng_state(), *cuda]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the states until training begins."""
        self.random_states = state_dict["random_states"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the states of the random generators. Draws since the start are repetitions of those before the stop.

        Raises:
            CheckpointError: Not all processes resume from the same checkpoint.
        """
        check_same_start(self.path, trainer)
        if self.random_states:
            cpu, *cuda = self.random_states
            torch.set_rng_state(cpu)
            for device, state in zip(range(torch.cuda.device_count()), cuda, strict=False):
                torch.cuda.set_rng_state(state, device)
            self.random_states = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops between two epochs, after the end of the last epoch was saved."""
        self._stop_if_asked(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Saves a checkpoint and stops after an optimiser step, except the last of an epoch, whose end does so."""
        if not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._stop_if_asked(trainer, self.path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells the loader that no batch of this epoch is left, before the checkpoint of the epoch is written."""
        trainer.train_dataloader.end_epoch()  # type: ignore[union-attr]

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: AnomalyPrediction,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stops at once; see `on_test_batch_end`."""
        self.on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: AnomalyPrediction,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stops at once. Each process stops on its own, because their numbers of batches may differ."""
        if signals.requested():
            raise StoppedError(how_to_go_on(self.path))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stops at once; see `on_test_batch_end`."""
        self.on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def _stop_if_asked(self, trainer: Trainer, path: Path | None = None) -> None:
        """Stops all processes after the same step if one of them was asked to stop.

        Raises:
            StoppedError: A stop was requested. If a path is given, the checkpoint is written first.
        """
        asked = signals.requested()
        if trainer.world_size > 1:  # Lightning synchronises the processes here too, to look for a SIGTERM
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if not asked:
            return
        if path is not None:
            trainer.save_checkpoint(path)
        raise StoppedError(how_to_go_on(self.path))
