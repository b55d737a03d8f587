"""Logs more than metrics: a table, pictures, and the words nearest to learnable prompt tokens."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from afclip_lightning.engine.callbacks.evaluation import Evaluation
from afclip_lightning.engine.callbacks.pictures import Pictures
from afclip_lightning.engine.loggers import wandb_runs
from afclip_lightning.metrics import Curve
from afclip_lightning.prompts.learner import NearestWord, nearest_words
from afclip_lightning.results import flat
from afclip_runtime.files import shown, write_text

MAX_PICTURES = 24


class Tracking(Callback):
    """Writes `nearest_words.csv` after training, and sends these words, the results, curves and pictures to W&B.

    At most 24 sheets of pictures are sent, evenly spread over the categories. All of them are in the run folder.

    Args:
        evaluation: Callback whose results are logged.
        pictures: Callback whose sheets are logged.
    """

    def __init__(self, evaluation: Evaluation, pictures: Pictures) -> None:
        self.evaluation = evaluation
        self.pictures = pictures

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes and logs the words nearest to the learnable prompt tokens, if there are any."""
        if not trainer.is_global_zero:
            return
        words = nearest_words(pl_module.backbone, pl_module)  # type: ignore[arg-type]
        if not words:
            return
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([NearestWord._fields, *words])
        write_text(Path(trainer.default_root_dir) / "nearest_words.csv", buffer.getvalue())
        self._log_table(trainer, "nearest_words", NearestWord._fields, words)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the table of results, the curves and the pictures."""
        columns, rows = flat(self.evaluation.main.rows)
        self._log_table(trainer, self.evaluation.main.name, columns, rows)
        for run in wandb_runs(trainer):
            run.log({**self._charts(), **self._sheets()})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `on_test_end`. A validation during training logs its metrics only."""
        if trainer.state.fn == "validate":
            self.on_test_end(trainer, pl_module)

    def _charts(self) -> dict[str, Any]:
        """Returns one chart per dataset and kind of curve, with one line per category."""
        import wandb

        lines: dict[tuple[str, str], dict[str, Curve]] = {}
        for (dataset, category), curves in self.evaluation.main.curves.items():
            for kind, curve in curves.items():
                lines.setdefault((shown(dataset), kind), {})[shown(category)] = curve
        return {
            f"{self.evaluation.main.name.replace('results', 'curves')}/{dataset}/{kind}": wandb.plot.line_series(
                xs=[curve.x for curve in of_categories.values()],
                ys=[curve.y for curve in of_categories.values()],
                keys=list(of_categories),
                title=f"{dataset}: {kind}",
                xname="recall" if kind.endswith("_pr") else "false-positive rate",
            )
            for (dataset, kind), of_categories in lines.items()
        }

    def _sheets(self) -> dict[str, Any]:
        import wandb

        paths = self.pictures.paths
        step = max(1, -(-len(paths) // MAX_PICTURES))
        return {"pictures": [wandb.Image(str(path), caption=path.stem) for path in paths[::step]]} if paths else {}

    def _log_table(self, trainer: Trainer, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        for run in wandb_runs(trainer):
            import wandb

            run.log(
                {
                    name: wandb.Table(
                        columns=[*columns], data=[[shown(x) if isinstance(x, str) else x for x in row] for row in rows]
                    )
                }
            )
