"""Writes the predictions of `predict`."""

from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer

from afclip_lightning.data.regions import inspected_maps
from afclip_lightning.types import UNKNOWN, AnomalyPrediction, Batch
from afclip_runtime.errors import UserError
from afclip_runtime.files import atomic_path, csv_text, write_text

COLUMNS = ("image", "dataset", "category", "label", "score", "map")


def not_finite(image: object, method: object) -> UserError:
    """Returns the error of a score or a map that holds NaN or infinity.

    Args:
        image: The image.
        method: The method that gave the score.
    """
    return UserError(
        f"{image}: {type(method).__name__} gives a score or a map with NaN or infinity, so its head or the backbone's "
        "weights hold NaN, or numbers overflow. Use other weights, or train again with a lower learning rate or "
        "--trainer.precision 32-true."
    )


class Predictions(Callback):
    """Writes the maps as `maps/<line>.npy`, float32, and at the end `predictions.csv`, one line per image.

    Scores have 9 digits, which represent a float32 exactly. The label is empty if it is not known. With several
    processes, each one writes its own table, with its rank in the name.
    """

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins the table."""
        self.suffix = f"_{trainer.global_rank}" if trainer.world_size > 1 else ""
        self.folder = Path(trainer.default_root_dir)
        self.rows = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: AnomalyPrediction,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the maps of a batch and keeps its lines.

        Raises:
            UserError: A score or a map is not finite; the message names the image.
        """
        inspected: Any = inspected_maps(outputs.anomaly_map, batch.samples, pl_module.preprocess)  # type: ignore[arg-type]
        scores, maps = outputs.pred_score.tolist(), inspected.cpu().numpy()
        for sample, score, anomaly_map in zip(batch.samples, scores, maps, strict=True):
            if not (np.isfinite(score) and np.isfinite(anomaly_map).all()):
                raise not_finite(sample.image_path, pl_module)
            name = f"maps/{len(self.rows) + 1:06d}{self.suffix}.npy"
            with atomic_path(self.folder / name) as temporary, temporary.open("wb") as file:
                np.save(file, anomaly_map)
            label = None if sample.label == UNKNOWN else sample.label
            shortest = float(f"{score:.9g}")
            self.rows.append([sample.image_path, sample.dataset, sample.category, label, shortest, name])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the table."""
        write_text(self.folder / f"predictions{self.suffix}.csv", csv_text(COLUMNS, self.rows))
