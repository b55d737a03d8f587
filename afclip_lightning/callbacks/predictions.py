"""Writes the predictions of `predict`."""

import csv
import io
from pathlib import Path

import numpy as np
from lightning import Callback, LightningModule, Trainer

from afclip_lightning.files import atomic_path, write_text
from afclip_lightning.types import UNKNOWN, AnomalyPrediction, Batch


class Predictions(Callback):
    """Writes the maps as `maps/<line>.npy`, float32, and at the end `predictions.csv`, a line an image.

    A label that is not known is empty. Over several processes each writes its own table, with the rank in its name.
    """

    def __init__(self) -> None:
        self.rows: list[list[str]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins the table."""
        self.suffix = f"_{trainer.global_rank}" if trainer.world_size > 1 else ""
        self.folder = Path(trainer.default_root_dir)
        self.rows = [["image", "dataset", "category", "label", "score", "map"]]

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: AnomalyPrediction,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the maps of a batch and keeps its lines."""
        scores, maps = outputs.pred_score.tolist(), outputs.anomaly_map.cpu().numpy()
        for sample, score, anomaly_map in zip(batch.samples, scores, maps, strict=True):
            name = f"maps/{len(self.rows):06d}{self.suffix}.npy"
            with atomic_path(self.folder / name) as temporary, temporary.open("wb") as file:
                np.save(file, anomaly_map)
            path, label = str(sample.image_path), "" if sample.label == UNKNOWN else str(sample.label)
            self.rows.append([path, sample.dataset, sample.category, label, f"{score:.6g}", name])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the table."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(self.rows)
        write_text(self.folder / f"predictions{self.suffix}.csv", buffer.getvalue())
