"""Scores predictions against labels and masks, category by category, and writes the results."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from afclip_lightning import results
from afclip_lightning.callbacks.gather import from_all_processes
from afclip_lightning.errors import DatasetError
from afclip_lightning.metrics import TOLERANCE, Curve, PixelMetrics, ProDefinition
from afclip_lightning.results import ImageScore, Key, Row
from afclip_lightning.types import MAIN_HEAD, Batch, Outputs, Sample, prediction_of

Scored = tuple[list[Sample], Tensor, Tensor]  # a batch, its scores and the maxima of its maps, each [B]


class Evaluation(Callback):
    """Computes the metrics of `validate` and `test`, logs and writes them.

    Logged as `<stage>/<dataset>/<category>/<metric>`, with `mean` as a category. Beside the table stand the scores of
    all images and the curves: `results.csv`, `.json`, `.md`, `scores.csv`, `curves.json`; where `name` is
    `results_x`, `results_x.csv` to `curves_x.json`.

    Args:
        exact: Keep and sort all pixel scores instead of counting them in bins; memory grows with the images.
        fpr_limit: Limit of integration of PRO, in (0, 1].
        pro_definition: Which PRO: `exact` or, with `exact: true`, `mvtec`, `legacy_cflow` or `legacy_afclip`.
        tolerance: Largest error that binning may cause without being said.

    Attributes:
        name: Stem of the tables in the run folder, beginning with `results`.
        head: Whose predictions, where a pass is shared by several heads; all but the main one's are logged as
            `<stage>/<head>/<dataset>/<category>/<metric>`.
        title: What is tested, as the files say it.
        rows: The last results.
        curves: By dataset and category, the last curves that are defined: `image_roc`, `image_pr`, `pixel_roc`,
            `pixel_pr`, `pixel_pro`.
        scores: What was last said of each image, from all processes, by dataset, category and path; not collected by a
            validation while training.
    """

    def __init__(
        self,
        exact: bool = False,
        fpr_limit: float = 0.3,
        pro_definition: ProDefinition = "exact",
        tolerance: float = TOLERANCE,
    ) -> None:
        self.new_metric = partial(
            PixelMetrics, exact=exact, fpr_limit=fpr_limit, pro_definition=pro_definition, tolerance=tolerance
        )
        self.new_metric()  # refuses wrong arguments before anything else is built
        self.tolerance = tolerance
        self.fpr_limit = fpr_limit
        self.name = "results"
        self.head = MAIN_HEAD
        self.title = ""
        self.rows: list[Row] = []
        self.curves: dict[Key, Mapping[str, Curve]] = {}
        self.scores: list[ImageScore] = []
        self._scored: list[Scored] = []
        self.metrics: dict[Key, PixelMetrics] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes one metric a category, the same ones on every process."""
        self.metrics = {
            (part.name, category): self.new_metric().to(pl_module.device)
            for part in trainer.datamodule.test_sets  # type: ignore[attr-defined]
            for category in part.selected_categories()
        }
        self._scored = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Outputs,  # type: ignore[override]
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds a batch to the metrics of its categories."""
        outputs = prediction_of(outputs, self.head)
        # left on their device until the end: reading them here would wait for it in every step
        self._scored.append((batch.samples, outputs.pred_score, outputs.anomaly_map.flatten(1).amax(dim=1)))
        keys = [(sample.dataset, sample.category) for sample in batch.samples]
        for key in dict.fromkeys(keys):
            rows = torch.tensor([i for i, k in enumerate(keys) if k == key], device=batch.label.device)
            try:
                self.metrics[key].update(
                    outputs.anomaly_map[rows],
                    batch.mask[rows],
                    outputs.pred_score[rows],
                    batch.label[rows],
                    batch.mask_known[rows],
                    None if batch.region_area is None else batch.region_area[rows],
                    [str(batch.samples[i].image_path) for i in rows.tolist()],
                    allow_empty_mask=True,  # the file is not empty, but resizing may have lost a small defect
                )
            except ValueError as error:  # a score that is not finite, a mask against its label: names the image
                raise DatasetError(str(error)) from error

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Computes, logs, prints and writes."""
        self._finish(trainer, pl_module, "test")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `on_test_start`."""
        self.on_test_start(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Outputs,  # type: ignore[override]
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """See `on_test_batch_end`."""
        self.on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `on_test_epoch_end`."""
        self._finish(trainer, pl_module, "val")

    def _finish(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        rows = []
        self.curves = {}
        for (dataset, category), metric in self.metrics.items():
            with metric.sync_context():
                result = metric.result()
            if result.normal + result.anomalous:  # none where the run was limited to a few batches
                rows.append(Row.of(dataset, category, result))
                self.curves[dataset, category] = result.curves
        self.rows = results.with_means(rows)
        self.metrics, scored, self._scored = {}, self._scored, []
        where = stage if self.head == MAIN_HEAD else f"{stage}/{self.head}"
        for row in self.rows:
            of_row = f"{where}/{row.dataset}/{row.category}"
            keys = {f"{of_row}/{metric}": value for metric, value in row.metrics.items()}
            pl_module.log_dict(keys, rank_zero_only=True, sync_dist=False)
        if trainer.state.fn == "fit":
            return  # a validation while training is only logged
        self.scores = sorted(score for part in from_all_processes(trainer, _image_scores(scored)) for score in part)
        if trainer.is_global_zero:
            folder, suffix = Path(trainer.default_root_dir), self.name.removeprefix("results")
            results.write(self.rows, folder, self.name, self.title, self.tolerance)
            results.write_scores(self.scores, folder / f"scores{suffix}.csv")
            results.write_curves(self.curves, self.fpr_limit, folder / f"curves{suffix}.json")


def _image_scores(scored: list[Scored]) -> list[ImageScore]:
    return [
        ImageScore(s.dataset, s.category, str(s.image_path), s.label, score, highest, s.mask_known)
        for samples, scores, maxima in scored
        for s, score, highest in zip(samples, scores.tolist(), maxima.tolist(), strict=True)
    ]
