"""Records which images a run used for few-shot or as references, and which it left out."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from afclip_runtime.files import write_json


class DataRecord(Callback):
    """Writes `few_shot.json` and `pairs.json` (images by path), `white.json`, and two files on unread data.

    `left_out.json` lists files in a dataset's folders that might be images but are not part of its layout.
    `skipped.json` lists images that could not be read.

    A file with nothing to list is not written. With several processes, each one lists the images that it skipped, and
    the name of the file has its rank.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the few-shot images and the references."""
        self._write_records(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `on_fit_start`."""
        self._write_records(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `on_fit_start`."""
        self._write_records(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `on_fit_start`."""
        self._write_records(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what was skipped so far."""
        self._write_skipped(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `on_train_epoch_end`."""
        self._write_skipped(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `on_train_epoch_end`."""
        self._write_skipped(trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `on_train_epoch_end`."""
        self._write_skipped(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """See `on_train_epoch_end`."""
        self._write_skipped(trainer)

    def _write_records(self, trainer: Trainer) -> None:
        parts = trainer.datamodule.parts  # type: ignore[attr-defined]
        few_shot = [record for part in parts for record in part.few_shot_record.values()]
        pairs = [record for part in parts for record in part.reference_record.values()]
        left_out = [
            {"dataset": part.name, "split": split, "path": str(item.path), "reason": item.reason}
            for part in parts
            for split, items in part.left_out_files.items()
            for item in items
        ]
        white = [{"dataset": part.name, "white": part.white_used} for part in parts if part.white_used is not None]
        records = {"few_shot.json": few_shot, "pairs.json": pairs, "left_out.json": left_out, "white.json": white}
        for name, entries in records.items():
            if entries and trainer.is_global_zero:
                write_json(Path(trainer.default_root_dir) / name, entries)

    def _write_skipped(self, trainer: Trainer) -> None:
        parts = trainer.datamodule.parts  # type: ignore[attr-defined]
        skipped = {path: reason for part in parts for path, reason in part.skipped.items()}
        if skipped:
            suffix = f"_{trainer.global_rank}" if trainer.world_size > 1 else ""
            path = Path(trainer.default_root_dir) / f"skipped{suffix}.json"
            files = [{"path": str(image), "reason": skipped[image]} for image in sorted(skipped)]
            write_json(path, {"count": len(files), "files": files})
            print(f"Left out {len(files)} images that cannot be read: {path}")
