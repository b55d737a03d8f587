"""Scores predictions against labels and masks, category by category, and writes the results."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from afclip_lightning import results
from afclip_lightning.components.arguments import require_one_of
from afclip_lightning.data.masks import say_mostly
from afclip_lightning.distributed import gathered
from afclip_lightning.engine.callbacks.fixed_thresholds import (
    CalibrationFile,
    check_apart,
    check_normal_images,
    fixed_by,
)
from afclip_lightning.engine.callbacks.head_evaluation import HeadEvaluation, Resolution
from afclip_lightning.engine.checkpoint import HEAD_FILE
from afclip_lightning.metrics import AnomalyMetrics, ProDefinition
from afclip_lightning.metrics.fixed_thresholds import Rule
from afclip_lightning.metrics.intervals import Settings
from afclip_lightning.results import TOLERANCE, Key, MaskCounts
from afclip_lightning.results.operating import points_as_metrics
from afclip_lightning.types import MAIN_HEAD, Batch, GroupScore, IntervalKind, MaskFacts, Outputs, prediction_of
from afclip_runtime.errors import UserError, counted, shown
from afclip_runtime.files import fingerprint
from afclip_runtime.types import Fit, Tiling, ViewScore

LATE = ("pixel_aupimo", "group_auroc", "group_ap", "group_f1_max")
"""Metrics that are computed from the image results of all processes."""


@dataclass(frozen=True)
class Pass:
    """Description of the next pass.

    Attributes:
        name: Stem of the tables in the run folder, which begins with `results`. Tables of other heads than the main
            head end with the name of the head.
        titles: Title of the test, by head.
        checkpoints: Checkpoint of each head, by its name. By default, the main head's is the trainer's checkpoint, or
            the head that was just trained.
    """

    name: str = "results"
    titles: Mapping[str, str] = field(default_factory=dict)
    checkpoints: Mapping[str, str | None] = field(default_factory=dict)


class Evaluation(Callback):
    """Computes, logs and writes the metrics of `validate` and `test`, for each head that shares the pass.

    Metrics are logged as `<stage>/<dataset>/<category>/<metric>`, with `mean` as a category. Those of other heads than
    the main head are logged as `<stage>/<head>/<dataset>/<category>/<metric>`. The files are `results.csv`, `.json` and
    `.md`, `scores.csv` (scores of all images), `curves.json`, and with intervals `image_counts.npz`. For a pass with
    the name `results_x`, they are `results_x.csv` to `curves_x.json`.

    Args:
        exact: Keep and sort all pixel scores instead of counting them in bins. Memory grows with the number of images.
        fpr_limit: Integration limit of PRO, in (0, 1].
        pro_definition: Definition of PRO: `exact` or, with `exact: true`, `mvtec`, `legacy_cflow` or `legacy_afclip`.
        tolerance: Largest error by binning without a warning.
        resolution: Size at which pixels are evaluated. `backbone` resizes masks to the backbone's input size, as the
            papers do. `image` resizes maps to each image's own size, for defects that are thin or small there. Image
            metrics do not depend on it.
        fit: How an image whose shape differs from the backbone's input is encoded, with `resolution: image`, as in
            `inspect`: `squash`, `pad` or `tiles` (the largest squares that fit). Tiles do not use stored features.
        tiles: Number of tiles along the shorter side, in addition to the whole image; 1 for no tiles.
        tile_size: Side of a tile in pixels of the image, instead of `tiles`.
        overlap: Smallest overlap of neighbouring tiles, as a share of a tile's side.
        view_score: Score of an image in tiles: the `highest` score of all tiles, or their `mean`.
        intervals: Number of bootstrap samples for the 95 % intervals of all metrics, for example 1000; 0 for no
            intervals. The counts of each image are then saved in `image_counts.npz`.
        interval_kind: `bca` (bias-corrected and accelerated) or `percentile`.
        aupimo: Compute AUPIMO of categories and of single images (`scores.csv`). This saves the counts of each image.
        defect_types: Add rows by defect type, if images have one: all normal images of the category against the images
            of one type (`results_by_type.csv`).
        group_score: Score of a group of images, such as the views of an object, if the dataset has groups: the
            `highest` score of the images, or their `mean`.
        threshold: Threshold that is fixed without labels. Its rates are reported beside those of the best threshold.
            It is a rule on the scores of normal images that are not tested, such as `mean+3sd` or `q0.99` (any factor,
            any quantile), or the file of a calibration.

    Raises:
        ValueError: An argument is out of its range.

    Attributes:
        about: Description of the next pass. It is set before a pass begins.
        heads: Results of each head in the last pass, by name.
    """

    def __init__(
        self,
        exact: bool = False,
        fpr_limit: float = 0.3,
        pro_definition: ProDefinition = "exact",
        tolerance: float = TOLERANCE,
        resolution: Resolution = "backbone",
        fit: Fit = "squash",
        tiles: int = 1,
        tile_size: int | None = None,
        overlap: float = 0.25,
        view_score: ViewScore = "highest",
        intervals: int = 0,
        interval_kind: IntervalKind = "bca",
        aupimo: bool = False,
        defect_types: bool = False,
        threshold: str | None = None,
        group_score: GroupScore = "highest",
    ) -> None:
        require_one_of(Resolution, resolution=resolution)
        require_one_of(GroupScore, group_score=group_score)
        self.group_score: GroupScore = group_score
        tiling = Tiling(fit, tiles, tile_size, overlap, view_score)
        self.tiling = tiling if fit != "squash" or tiles > 1 or tile_size is not None else None
        if self.tiling and resolution != "image":
            raise ValueError("fit, tiles and tile_size give a map at the image's own size: they need resolution image")
        self.resolution = resolution
        self.new_metric = partial(
            AnomalyMetrics, exact=exact, fpr_limit=fpr_limit, pro_definition=pro_definition, tolerance=tolerance
        )
        if intervals and pro_definition != "exact":
            raise ValueError(f"intervals need the exact PRO: leave out pro_definition {pro_definition}, or intervals")
        self.intervals = Settings(intervals, interval_kind) if intervals else None
        self.new_metric()  # checks the arguments before anything else is built
        self.aupimo, self.defect_types = aupimo, defect_types
        self.keep_images = bool(self.intervals) or aupimo or defect_types
        self.calibration = Path(threshold) if threshold and threshold.endswith(".json") else None
        self.rule = _rule(threshold) if threshold and not self.calibration else None
        self.tolerance = tolerance
        self.fpr_limit = fpr_limit
        self.about = Pass()
        self.heads: dict[str, HeadEvaluation] = {}
        self._masks: dict[Key, MaskCounts] = {}
        self._mostly: dict[Key, Path] = {}
        self._fixed: dict[str, float] = {}  # thresholds of a calibration

    @property
    def main(self) -> HeadEvaluation:
        """Returns the results of the run's own head in the last pass."""
        return self.heads[MAIN_HEAD]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Sets the size of the masks in the data, before its loaders are made.

        Raises:
            UserError: A category has the name of the mean in the table, or a method does not support tiles.
        """
        data = getattr(trainer, "datamodule", None)
        tested = stage != "predict"
        if data is not None:
            data.evaluate_at(tested and self.resolution == "image", self.tiling if tested else None)
        if not tested:
            return
        for method in _methods(pl_module).values():
            if self.tiling:
                _check_tiled(method)
            if method.memory is not None:
                method.memory.tiling = self.tiling
            if self.rule:
                check_apart(method)
        for part in () if data is None else data.test_sets:
            for category in part.selected_categories():
                results.check_category(category, f"{part.name} under {part.root}: ")
        if self.rule and data is not None and stage in ("test", "validate"):
            check_normal_images(self.rule, data.test_sets, max(m.k_shot for m in _methods(pl_module).values()))
        if self.calibration:
            tested_sets = () if data is None else data.test_sets
            checkpoint = self.about.checkpoints.get(MAIN_HEAD)
            self._fixed = CalibrationFile.read(self.calibration, checkpoint, tested_sets).thresholds()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Creates one metric per head and category, the same ones on every process."""
        test_sets = trainer.datamodule.test_sets  # type: ignore[attr-defined]
        keys = [(part.name, category) for part in test_sets for category in part.selected_categories()]
        saturated = [(part.name, c) for part in test_sets if part.saturates for c in part.selected_categories()]
        self.heads = {
            name: HeadEvaluation(
                method,
                {key: self.new_metric().to(pl_module.device) for key in keys},
                self.resolution,
                keep_images=self.keep_images and trainer.state.fn != "fit",
                saturated={key: self.new_metric(pro_definition="exact").to(pl_module.device) for key in saturated},
                folder=Path(trainer.default_root_dir),
            )
            for name, method in _methods(pl_module).items()
        }
        self._masks, self._mostly = {}, {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Outputs,  # type: ignore[override]
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds a batch to the metrics of its categories.

        Raises:
            DatasetError: A mask disagrees with its label.
            UserError: A score or a map is not finite; the message names the image and the method.
        """
        if batch.masks is not None:
            for sample, facts in zip(batch.samples, batch.masks, strict=True):
                if sample.mask_path is not None:
                    self._count_mask((sample.dataset, sample.category), sample.mask_path, facts)
        for name, head in self.heads.items():
            head.update(prediction_of(outputs, name), batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Computes, logs and writes."""
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
        in_fit = trainer.state.fn == "fit"
        fixed = {} if in_fit else self._fix_thresholds(trainer, pl_module)
        for name, head in self.heads.items():
            head.compute(fixed.get(name, {}), self.rule.text if self.rule else str(self.calibration))
            where = _place(stage, name)
            for row in head.rows:
                of_row = shown(f"{where}/{row.dataset}/{row.category}")  # loggers write UTF-8
                values = {**row.metrics, **points_as_metrics(row.operating_points)}
                keys = {f"{of_row}/{metric}": value for metric, value in values.items()}
                pl_module.log_dict(keys, rank_zero_only=True, sync_dist=False)
        if in_fit:
            return  # a validation during training is only logged
        own = {name: head.own_scores() for name, head in self.heads.items()}
        parts = gathered((own, self._count_masks()))
        counts: dict[Key, MaskCounts] = {}
        for _, of_process in parts:
            for key, found in of_process.items():
                counts[key] = counts.get(key, MaskCounts()).plus(found)
        for name, head in self.heads.items():
            head.scores = sorted(score for of_process, _ in parts for score in of_process[name])
            head.collect_records()
            head.add_masks(counts)
            head.name = self.about.name if name == MAIN_HEAD else f"{self.about.name}_{name}"
            if trainer.is_global_zero:
                self._describe(trainer, name, head)
                head.add_groups(self.group_score)
                if self.keep_images:
                    notes = head.add_details(self.defect_types, self.fpr_limit)
                    for note in notes if self.aupimo else ():
                        print(f"note: {shown(note)}")
                self._log_late(pl_module, _place(stage, name), head)
                if self.intervals:
                    head.add_intervals(self.intervals, self.fpr_limit)
                    self._log_intervals(pl_module, _place(stage, name), head)
                head.write(Path(trainer.default_root_dir), self.tolerance, self.fpr_limit)

    def _log_late(self, pl_module: LightningModule, where: str, head: HeadEvaluation) -> None:
        """Logs the metrics that need the images of all processes: AUPIMO, and the metrics of groups."""
        for row in head.rows:
            for metric in (metric for metric in LATE if metric in row.metrics):
                name = shown(f"{where}/{row.dataset}/{row.category}/{metric}")
                pl_module.log(name, row.metrics[metric], rank_zero_only=True, sync_dist=False)

    def _log_intervals(self, pl_module: LightningModule, where: str, head: HeadEvaluation) -> None:
        """Logs the intervals of the means as `<metric>_low` and `<metric>_high`. The table has the others."""
        for row in (row for row in head.rows if row.category == results.MEAN):
            of_row = shown(f"{where}/{row.dataset}/{row.category}")
            for metric, (low, high) in row.intervals.items():
                ends = {f"{of_row}/{metric}_low": low, f"{of_row}/{metric}_high": high}
                pl_module.log_dict(ends, rank_zero_only=True, sync_dist=False)

    def _fix_thresholds(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> Mapping[str, Mapping[Key, Mapping[str, float]]]:
        """Returns the thresholds that are fixed without labels, by head, category and level."""
        if self.calibration:
            return {name: dict.fromkeys(head.metrics, self._fixed) for name, head in self.heads.items()}
        if not self.rule:
            return {}
        parts = trainer.datamodule.test_sets  # type: ignore[attr-defined]
        return fixed_by(self.rule, trainer, pl_module, self.heads, parts)

    def _count_mask(self, key: Key, path: Path, mask: MaskFacts) -> None:
        """Counts a mask. Keeps the first mask that marks more than half of its picture, for a note."""
        seen = mask.seen if self.resolution == "backbone" else mask.regions
        one = MaskCounts(1, int(seen == 0), mask.regions, seen, int(mask.marks_most))
        self._masks[key] = self._masks.get(key, MaskCounts()).plus(one)
        if mask.marks_most:
            self._mostly.setdefault(key, path)

    def _count_masks(self) -> dict[Key, MaskCounts]:
        """Returns the counts of this process's masks by category.

        Prints a note on masks that mark most of a picture.
        """
        for key, path in self._mostly.items():
            print(f"note: {say_mostly('/'.join(key), self._masks[key].mostly, path)}")
        return self._masks

    def _describe(self, trainer: Trainer, name: str, head: HeadEvaluation) -> None:
        """Records the conditions of the pass, and adds those to the title that a reader of the table must know."""
        method = head.method
        checkpoint: str | Path | None = self.about.checkpoints.get(name)
        if checkpoint is None and name == MAIN_HEAD:
            trained = Path(trainer.default_root_dir) / HEAD_FILE
            after_training = trainer.global_step and trained.is_file()
            checkpoint = trainer.ckpt_path or (trained if after_training else None)
        k_shot, seed = method.k_shot, os.environ.get("PL_GLOBAL_SEED")
        by_hand = trainer.datamodule.parts[0].few_shot_dir  # type: ignore[attr-defined]
        head.conditions = {
            "method": type(method).__name__,
            "k_shot": k_shot,
            "shot_seed": method.shot_seed if k_shot and by_hand is None else None,
            "seed": None if seed is None else int(seed),
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "checkpoint_fingerprint": None if checkpoint is None else _fingerprint(Path(checkpoint)),
            "resolution": self.resolution,
            "tiling": self.tiling.to_dict() if self.tiling else None,
            "image_size": method.preprocess.image_size,
            "threshold": self.rule.text if self.rule else self.calibration and str(self.calibration),
        }
        regions = {
            f"{part.name}/{category}": {"file": roi.source, "fingerprint": roi.fingerprint}
            for part in trainer.datamodule.test_sets  # type: ignore[attr-defined]
            for category, roi in part.regions().items()
        }
        if regions:
            head.conditions["roi"] = regions
        images = "image" if k_shot == 1 else "images"
        source = f"(seed {method.shot_seed})" if by_hand is None else f"of {by_hand}"
        said = [f"{k_shot} few-shot {images} {source}"] if k_shot else []
        if checkpoint is not None:
            said.append(f"checkpoint {checkpoint} ({head.conditions['checkpoint_fingerprint']})")
        if self.resolution == "image":
            said.append("evaluated at each image's own size" + (f", {_say(self.tiling)}" if self.tiling else ""))
        if regions:
            said.append(f"inside the regions of interest of {counted(len(regions), 'category', 'categories')}")
        head.title = " · ".join([self.about.titles.get(name, ""), *said])


def _say(tiling: Tiling) -> str:
    """Returns how images are tiled, in words."""
    words = [f"fit {tiling.fit}"]
    if tiling.tile_size is not None:
        words.append(f"tiles of {tiling.tile_size} pixels")
    elif tiling.tiles > 1:
        words.append(f"{tiling.tiles} tiles along the shorter side")
    if tiling.view_score == "mean":
        words.append("their mean score")
    return ", ".join(words)


def _check_tiled(method: Any) -> None:
    """Checks that a method supports images in tiles.

    Raises:
        UserError: It compares whole images with each other, or reads stored features, which are of whole images.
    """
    name = type(method).__name__
    if method.needs_test_set or method.needs_references:
        raise UserError(
            f"{name} compares each image with other test images as a whole, so it cannot see them in tiles. Leave out "
            "--evaluation.fit, tiles and tile_size; --evaluation.resolution image works with it."
        )
    if method.store is not None:
        raise UserError(
            "Features are kept of whole images, not of tiles: leave out --features.cache and temporary, or "
            "--evaluation.fit, tiles and tile_size."
        )


def _methods(pl_module: Any) -> Mapping[str, Any]:
    """Returns the methods of a pass by name. It is the module itself, unless several methods share the pass."""
    heads = getattr(pl_module, "heads", None)
    return heads if isinstance(heads, Mapping) else {MAIN_HEAD: pl_module}  # a fusion's heads are parts of one method


def _place(stage: str, head: str) -> str:
    """Returns the prefix of the names of a head's logged metrics."""
    return stage if head == MAIN_HEAD else f"{stage}/{head}"


def _fingerprint(path: Path) -> str | None:
    """Returns the fingerprint of a checkpoint's content, as in a calibration; `None` if it is not a file."""
    try:
        return fingerprint(path)
    except UserError:
        return None


def _rule(text: str) -> Rule:
    """Returns the rule that a text names.

    Raises:
        ValueError: The text names no rule.
    """
    try:
        return Rule.of(text)
    except ValueError as error:
        raise ValueError(
            f"--evaluation.threshold: {error}. To use a number of your own, name the .json file of a calibration, "
            "which `calibrate --threshold X` writes"
        ) from error
