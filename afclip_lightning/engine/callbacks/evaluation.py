"""Scores predictions against labels and masks, category by category, and writes the results."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from afclip_lightning import results
from afclip_lightning.data.masks import say_mostly
from afclip_lightning.data.tiles import resize_map
from afclip_lightning.distributed import gathered
from afclip_lightning.engine.callbacks.predictions import not_finite
from afclip_lightning.errors import DatasetError, UserError, shown
from afclip_lightning.files import fingerprint
from afclip_lightning.metrics import AnomalyMetrics, Curve, NotFiniteError, ProDefinition
from afclip_lightning.results import TOLERANCE, ImageScore, Key, MaskCounts, Row
from afclip_lightning.types import (
    MAIN_HEAD,
    AnomalyPrediction,
    Batch,
    Fit,
    MaskFacts,
    Outputs,
    Sample,
    Tiling,
    prediction_of,
)

Resolution = Literal["backbone", "image"]
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
        resolution: Size at which pixels are evaluated: `backbone` resizes masks to the backbone's square, as the papers
            do; `image` resizes maps to each image's own size, for defects that are thin or small there. Image metrics
            do not depend on it.
        fit: How an image that is no square is seen, with `resolution: image`, as in `inspect`: `squash`, `pad` or
            `tiles`, squares of its shorter side. In tiles the score of an image is the highest of all of
            them, and nothing is read from kept features.
        tiles: Beside the whole, tiles: so many along the shorter side; 1 leaves them out.
        tile_size: Side of the tiles in pixels of the image, in place of `tiles`.
        overlap: Share of a tile's side that it has in common with the next one, at least.

    Raises:
        ValueError: An argument is out of its range.

    Attributes:
        name: Stem of the tables in the run folder, beginning with `results`.
        head: Whose predictions, where a pass is shared by several heads; all but the main one's are logged as
            `<stage>/<head>/<dataset>/<category>/<metric>`.
        title: What is tested, as the files say it; after a pass with the shots and the checkpoint.
        checkpoint: Where the head is from; by default the trainer's checkpoint, or what was trained just before.
        conditions: Of the last pass, by name: the method, its shots and seeds, its checkpoint, the resolution.
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
        resolution: Resolution = "backbone",
        fit: Fit = "squash",
        tiles: int = 1,
        tile_size: int | None = None,
        overlap: float = 0.25,
    ) -> None:
        if resolution not in get_args(Resolution):
            raise ValueError(f"resolution must be one of {', '.join(get_args(Resolution))}, got {resolution!r}")
        tiling = Tiling(fit, tiles, tile_size, overlap)
        self.tiling = tiling if fit != "squash" or tiles > 1 or tile_size is not None else None
        if self.tiling and resolution != "image":
            raise ValueError("fit, tiles and tile_size give a map at the image's own size: they need resolution image")
        self.resolution = resolution
        self.new_metric = partial(
            AnomalyMetrics, exact=exact, fpr_limit=fpr_limit, pro_definition=pro_definition, tolerance=tolerance
        )
        self.new_metric()  # refuses wrong arguments before anything else is built
        self.tolerance = tolerance
        self.fpr_limit = fpr_limit
        self.name = "results"
        self.head = MAIN_HEAD
        self.title = ""
        self.checkpoint: str | None = None
        self.conditions: dict[str, Any] = {}
        self.rows: list[Row] = []
        self.curves: dict[Key, Mapping[str, Curve]] = {}
        self.scores: list[ImageScore] = []
        self._scored: list[Scored] = []
        self._facts: list[tuple[Key, Path, MaskFacts]] = []
        self.metrics: dict[Key, AnomalyMetrics] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Says to the data at which size masks are wanted, before its loaders are made.

        Raises:
            UserError: A category is called what the table calls the mean, or the method cannot see images in tiles.
        """
        data = getattr(trainer, "datamodule", None)
        tested = stage != "predict"
        if data is not None:
            data.evaluate_at(tested and self.resolution == "image", self.tiling if tested else None)
        if not tested:
            return
        method = _method(pl_module, self.head)
        if self.tiling:
            _check_tiled(method)
        if method.memory is not None:
            method.memory.tiling = self.tiling
        for part in () if data is None else data.test_sets:
            for category in part.selected_categories():
                results.check_category(category, f"{part.name} under {part.root}: ")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes one metric a category, the same ones on every process."""
        self.metrics = {
            (part.name, category): self.new_metric().to(pl_module.device)
            for part in trainer.datamodule.test_sets  # type: ignore[attr-defined]
            for category in part.selected_categories()
        }
        self._scored, self._facts = [], []

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
        outputs = prediction_of(outputs, self.head)
        # left on their device until the end: reading them here would wait for it in every step
        self._scored.append((batch.samples, outputs.pred_score, outputs.anomaly_map.flatten(1).amax(dim=1)))
        keys = [(sample.dataset, sample.category) for sample in batch.samples]
        if batch.masks is not None:
            for key, sample, facts in zip(keys, batch.samples, batch.masks, strict=True):
                if sample.mask_path is not None:
                    self._facts.append((key, sample.mask_path, replace(facts, areas=None)))
        for key in dict.fromkeys(keys):
            rows = [i for i, k in enumerate(keys) if k == key]
            parts = [rows] if self.resolution == "backbone" else [[i] for i in rows]
            for part in parts:
                try:
                    self._add(key, part, outputs, batch)
                except NotFiniteError as error:
                    image = str(error).rpartition(": ")[0]
                    raise not_finite(image, _method(pl_module, self.head)) from error
                except ValueError as error:  # a mask against its label: names the image
                    raise DatasetError(str(error)) from error

    def _add(self, key: Key, rows: list[int], outputs: AnomalyPrediction, batch: Batch) -> None:
        """Adds rows of a batch to the metric of their category: several at the backbone's size, or one at its own."""
        at = torch.tensor(rows, device=batch.label.device)
        if self.resolution == "backbone":
            maps, masks = outputs.anomaly_map[at], batch.mask[at]
            areas = None if batch.region_area is None else batch.region_area[at]
        else:
            assert batch.masks is not None
            row, device = rows[0], outputs.anomaly_map.device
            facts = batch.masks[row]
            if outputs.own_maps is not None:
                maps = outputs.own_maps[row][None].to(device)
            else:
                seen = outputs.anomaly_map[row].float().cpu().numpy()
                maps = torch.from_numpy(resize_map(seen, *facts.shape))[None].to(device)
            areas = facts.region_area(maps.device)[None]
            masks = areas > 0
        self.metrics[key].update(
            maps,
            masks,
            outputs.pred_score[at],
            batch.label[at],
            batch.mask_known[at],
            areas,
            [str(batch.samples[i].image_path) for i in rows],
            allow_empty_mask=True,  # the file is not empty, but resizing may have lost a small defect
        )

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
                rows.append(result.row(dataset, category))
                self.curves[dataset, category] = result.curves
        self.rows = results.with_means(rows)
        self.metrics, scored, self._scored = {}, self._scored, []
        facts, self._facts = self._facts, []
        where = stage if self.head == MAIN_HEAD else f"{stage}/{self.head}"
        for row in self.rows:
            of_row = shown(f"{where}/{row.dataset}/{row.category}")  # loggers write UTF-8
            keys = {f"{of_row}/{metric}": value for metric, value in row.metrics.items()}
            pl_module.log_dict(keys, rank_zero_only=True, sync_dist=False)
        if trainer.state.fn == "fit":
            return  # a validation while training is only logged
        parts = gathered((_image_scores(scored), self._counted(facts)))
        self.scores = sorted(score for scores, _ in parts for score in scores)
        counts: dict[Key, MaskCounts] = {}
        for _, of_process in parts:
            for key, found in of_process.items():
                counts[key] = counts.get(key, MaskCounts()).plus(found)
        self.rows = results.with_means([replace(row, masks=counts.get((row.dataset, row.category))) for row in rows])
        if trainer.is_global_zero:
            self._describe(trainer, pl_module)
            folder, suffix = Path(trainer.default_root_dir), self.name.removeprefix("results")
            results.write(self.rows, folder, self.name, self.title, self.tolerance, self.conditions)
            results.write_scores(self.scores, folder / f"scores{suffix}.csv")
            results.write_curves(self.curves, self.fpr_limit, folder / f"curves{suffix}.json")

    def _counted(self, facts: list[tuple[Key, Path, MaskFacts]]) -> dict[Key, MaskCounts]:
        """Returns what became of this process's masks by category, and says which mark most of their picture."""
        counts: dict[Key, MaskCounts] = {}
        mostly: dict[Key, list[Path]] = {}
        for key, path, mask in facts:
            seen = mask.seen if self.resolution == "backbone" else mask.regions
            one = MaskCounts(1, int(seen == 0), mask.regions, seen, int(mask.marks_most))
            counts[key] = counts.get(key, MaskCounts()).plus(one)
            if mask.marks_most:
                mostly.setdefault(key, []).append(path)
        if self.head == MAIN_HEAD:
            for key, paths in mostly.items():
                print(f"note: {say_mostly('/'.join(key), len(paths), paths[0])}")
        return counts

    def _describe(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the conditions of the pass and adds to the title what a table must not be read without."""
        method = _method(pl_module, self.head)
        checkpoint = self.checkpoint or (trainer.ckpt_path if self.head == MAIN_HEAD else None)
        trained = Path(trainer.default_root_dir) / "head.ckpt"
        if checkpoint is None and self.head == MAIN_HEAD and trainer.global_step and trained.is_file():
            checkpoint = trained  # of the training that this test follows
        shots, seed = method.k_shot, os.environ.get("PL_GLOBAL_SEED")
        self.conditions = {
            "method": type(method).__name__,
            "k_shot": shots,
            "shot_seed": method.shot_seed if shots else None,
            "seed": None if seed is None else int(seed),
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "checkpoint_fingerprint": None if checkpoint is None else _fingerprint(Path(checkpoint)),
            "resolution": self.resolution,
            "tiling": self.tiling.to_dict() if self.tiling else None,
            "image_size": method.preprocess.image_size,
        }
        said = [f"{shots} shots (seed {self.conditions['shot_seed']})"] if shots else []
        if checkpoint is not None:
            said.append(f"checkpoint {checkpoint} ({self.conditions['checkpoint_fingerprint']})")
        if self.resolution == "image":
            said.append("evaluated at each image's own size" + (f", {_say(self.tiling)}" if self.tiling else ""))
        self.title = " · ".join([self.title, *said])


def _say(tiling: Tiling) -> str:
    """Returns how images are seen, in words."""
    words = [f"fit {tiling.fit}"]
    if tiling.tile_size is not None:
        words.append(f"tiles of {tiling.tile_size} pixels")
    elif tiling.tiles > 1:
        words.append(f"{tiling.tiles} tiles along the shorter side")
    return ", ".join(words)


def _check_tiled(method: Any) -> None:
    """Checks that a method can see images in tiles.

    Raises:
        UserError: It compares whole images with each other, or reads kept features, which are of whole images.
    """
    name = type(method).__name__
    if method.needs_test_set or method.needs_references:
        raise UserError(
            f"{name} compares each image with other test images as a whole, so it cannot see them in tiles. Leave out "
            "--evaluation.fit, tiles and tile_size; --evaluation.resolution image works with it."
        )
    if method.store is not None:
        raise UserError(
            "Features are kept of whole images, not of tiles: leave out --features.cache, or --evaluation.fit, tiles "
            "and tile_size."
        )


def _method(pl_module: Any, head: str) -> Any:
    """Returns the method of a head: the module itself, unless several share a pass."""
    return pl_module.heads[head] if hasattr(pl_module, "heads") else pl_module


def _fingerprint(path: Path) -> str | None:
    """Returns what a checkpoint's content is known by, as in a calibration; `None` of what is no file."""
    try:
        return fingerprint(path)
    except UserError:
        return None


def _image_scores(scored: list[Scored]) -> list[ImageScore]:
    return [
        ImageScore(s.dataset, s.category, str(s.image_path), s.label, score, highest, s.mask_known)
        for samples, scores, maxima in scored
        for s, score, highest in zip(samples, scores.tolist(), maxima.tolist(), strict=True)
    ]
