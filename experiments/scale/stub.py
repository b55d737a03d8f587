"""A test of a simulated set by a method without cost, to measure the machinery of a run."""

from pathlib import Path

import torch
from lightning import LightningModule, Trainer

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.engine.callbacks.evaluation import Evaluation
from afclip_lightning.types import AnomalyPrediction, Batch

SIZE = 64  # of the maps, in pixels


class Stub(LightningModule):
    """Returns noise around the image's brightness as the map, and its maximum as the score."""

    k_shot, shot_seed, memory, store = 0, 0, None, None
    needs_test_set = needs_references = False

    def __init__(self) -> None:
        super().__init__()
        self.preprocess = Preprocess(SIZE)
        self.noise = torch.Generator().manual_seed(0)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> AnomalyPrediction:
        """Returns scores `[B]` and maps `[B, H, W]`."""
        maps = batch.image[:, 0] + torch.rand(batch.image[:, 0].shape, generator=self.noise)
        return AnomalyPrediction(maps.amax((1, 2)), maps)


def test(data: AnomalyDataModule, out: Path, **evaluation: object) -> None:
    """Tests the set in one process, and writes its tables.

    Args:
        data: The set.
        out: Folder of the tables.
        evaluation: Arguments of `Evaluation`.
    """
    method = Stub()
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=out,
        callbacks=[Evaluation(**evaluation)],  # type: ignore[arg-type]
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    data.num_workers, data.batch_size = 0, 32
    trainer.test(method, data.connect(method.preprocess), verbose=False)
