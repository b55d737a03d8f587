"""Writes the predictions of `predict` as they come."""

import csv
from pathlib import Path
from typing import TextIO

import numpy as np
from lightning import Callback, LightningModule, Trainer

from afclip_lightning.files import atomic_path
from afclip_lightning.types import AnomalyPrediction, Batch


class Predictions(Callback):
    """Writes `predictions.csv`, a line an image, and the maps as `maps/<line>.npy`, float32, in the run folder.

    Over several processes each writes its own file, with the rank in the name.
    """

    def __init__(self) -> None:
        self.file: TextIO | None = None
        self.count = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the table."""
        self.suffix = f"_{trainer.global_rank}" if trainer.world_size > 1 else ""
        self.folder = Path(trainer.default_root_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = (self.folder / f"predictions{self.suffix}.csv").open("w", newline="", encoding="utf-8")
        csv.writer(self.file).writerow(["image", "dataset", "category", "label", "score", "map"])
        self.count = 0

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: AnomalyPrediction,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the lines and maps of a batch."""
        assert self.file is not None
        scores, maps = outputs.pred_score.tolist(), outputs.anomaly_map.cpu().numpy()
        for sample, score, anomaly_map in zip(batch.samples, scores, maps, strict=True):
            name = f"maps/{self.count:06d}{self.suffix}.npy"
            with atomic_path(self.folder / name) as temporary, temporary.open("wb") as file:
                np.save(file, anomaly_map)
            row = [sample.image_path, sample.dataset, sample.category, sample.label, f"{score:.6g}", name]
            csv.writer(self.file).writerow(row)
            self.count += 1
        self.file.flush()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the table."""
        if self.file is not None:
            self.file.close()
            self.file = None
