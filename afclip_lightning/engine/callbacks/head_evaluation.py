"""The evaluation of one head in a pass, against labels and masks."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from afclip_lightning import results
from afclip_lightning.data.regions import inside_frame, inspected_maps
from afclip_lightning.distributed import gathered, processes, rank
from afclip_lightning.engine.callbacks.predictions import not_finite
from afclip_lightning.metrics import AnomalyMetrics, Curve, NotFiniteError, label_regions
from afclip_lightning.metrics.groups import Group, groups_of, records_of, with_groups, write_groups
from afclip_lightning.metrics.image_counts import ImageRecord
from afclip_lightning.metrics.image_records import records_file, write_records
from afclip_lightning.metrics.image_results import aupimo_by_category, type_rows, with_aupimo
from afclip_lightning.metrics.intervals import Settings, intervals_of
from afclip_lightning.metrics.kept_counts import CountsFile
from afclip_lightning.metrics.operating_points import operating_points
from afclip_lightning.metrics.spro import saturated_weight, spro_result
from afclip_lightning.results import ImageScore, Key, MaskCounts, Row
from afclip_lightning.types import AnomalyPrediction, Batch, GroupScore, Sample
from afclip_runtime.errors import DatasetError, shown
from afclip_runtime.views.resizing import resize_map

Resolution = Literal["backbone", "image"]
AT_ONCE = 256  # number of images whose counts are exchanged in one message
Scored = tuple[list[ImageScore], Tensor, Tensor]  # facts of a batch, its scores and the maxima of its maps, each [B]


class HeadEvaluation:
    """The metrics of one head over one pass.

    Args:
        method: The head.
        metrics: Empty metrics by dataset and category, the same on every process. They are deleted when computed.
        resolution: See `Evaluation`.
        keep_images: Whether the counts of each image are kept, for intervals, AUPIMO and defect types.
        saturated: Empty metrics of sPRO, for categories whose datasets define the saturation of defects.
        folder: Folder for the counts of images that do not fit into memory, until the pass has ended; see
            `CountsFile`.

    Attributes:
        name: Stem of its tables in the run folder.
        title: Title of the test in the files.
        conditions: Conditions by name: the method, its few-shot images and seeds, its checkpoint, the resolution.
        rows: The results; empty until the pass has ended.
        type_rows: The results by defect type, if they were requested and images have one.
        curves: The curves that are defined, by dataset and category: `image_roc`, `image_pr`, `pixel_roc`,
            `pixel_pr`, `pixel_pro`.
        scores: The score of each image of all processes, by dataset, category and path. A validation during training
            does not collect them.
        groups: Groups of images by dataset and category, if the dataset has any; see `add_groups`.
        records: Image records by dataset and category: of this process, and after the pass of all processes; `None` if
            no counts are kept.
    """

    def __init__(
        self,
        method: Any,
        metrics: dict[Key, AnomalyMetrics],
        resolution: Resolution,
        keep_images: bool = False,
        saturated: Mapping[Key, AnomalyMetrics] = MappingProxyType({}),
        folder: Path | None = None,
    ) -> None:
        self.method = method
        self.metrics = metrics
        self.saturated = saturated
        self.resolution = resolution
        self.name = ""
        self.title = ""
        self.conditions: dict[str, Any] = {}
        self.rows: list[Row] = []
        self.type_rows: list[Row] = []
        self.curves: dict[Key, Mapping[str, Curve]] = {}
        self.scores: list[ImageScore] = []
        self.groups: dict[Key, list[Group]] = {}
        self.records: dict[Key, list[ImageRecord]] | None = {key: [] for key in metrics} if keep_images else None
        self._counts = CountsFile(folder)
        self._scored: list[Scored] = []

    def update(self, prediction: AnomalyPrediction, batch: Batch) -> None:
        """Adds a batch to the metrics of its categories.

        Raises:
            DatasetError: A mask disagrees with its label.
            UserError: A score or a map is not finite; the message names the image and the method.
        """
        # They stay on their device until the end: reading them here would synchronise it in every step.
        inspected = inspected_maps(prediction.anomaly_map, batch.samples, self.method.preprocess)
        facts = [_without_score(sample) for sample in batch.samples]
        self._scored.append((facts, prediction.pred_score, inspected.flatten(1).amax(dim=1)))
        keys = batch.keys
        for key in dict.fromkeys(keys):
            rows = [i for i, k in enumerate(keys) if k == key]
            parts = [rows] if self.resolution == "backbone" else [[i] for i in rows]
            for part in parts:
                try:
                    self._add(key, part, prediction, batch)
                except NotFiniteError as error:
                    image = str(error).rpartition(": ")[0]
                    raise not_finite(image, self.method) from error
                except ValueError as error:  # a mask contradicts its label; the message names the image
                    raise DatasetError(str(error)) from error

    def _add(self, key: Key, rows: list[int], prediction: AnomalyPrediction, batch: Batch) -> None:
        """Adds rows of a batch to the metric of their category: several at the backbone's size, or one at its own."""
        maps, masks, areas = self.at_resolution(rows, prediction, batch)
        at = torch.tensor(rows, device=batch.label.device)
        scores, labels, known = prediction.pred_score[at], batch.label[at], batch.mask_known[at]
        names = [str(batch.samples[i].image_path) for i in rows]
        inside = self.inside_at_resolution(rows, batch)
        # the file of a mask is not empty, but resizing may have removed a small defect
        self.metrics[key].update(maps, masks, scores, labels, known, areas, names, allow_empty_mask=True, inside=inside)
        weights: Tensor | None = None
        if key in self.saturated and batch.defects is not None:
            weights = torch.stack([saturated_weight(maps[i], batch.defects[row]) for i, row in enumerate(rows)])
            self.saturated[key].update(
                maps, masks, None, labels, known, areas, names, allow_empty_mask=True, region_weight=weights
            )
        if self.records is not None:
            self.records[key] += [
                self._counts.keep(
                    ImageRecord.of(
                        *(name, label, score, counted(maps[i], inside, i)),
                        counted(areas[i], inside, i) if mask_known or not label else None,
                        None if weights is None else weights[i],
                    )
                )
                for i, (name, label, score, mask_known) in enumerate(
                    zip(names, labels.tolist(), scores.tolist(), known.tolist(), strict=True)
                )
            ]

    def collect_records(self) -> None:
        """Collects the image records of all processes on the first process.

        They are sent `AT_ONCE` images at a time, so that no process holds more of them in memory.
        """
        if self.records is not None and processes() > 1:
            own = [(key, record) for key, part in self.records.items() for record in part]
            self.records = {key: [] for key in self.records}
            for start in range(0, max(gathered(len(own))), AT_ONCE):
                for part in gathered(own[start : start + AT_ONCE]):
                    for key, record in part if rank() == 0 else ():
                        self.records[key].append(self._counts.keep(record))
        if self.records is not None:  # a run that is limited to a few batches may have none of a category
            self.records = {key: part for key, part in self.records.items() if part}

    def inside_at_resolution(self, rows: list[int], batch: Batch) -> Tensor | None:
        """Returns which pixels are inspected, `[R, H, W]`, bool, at the evaluated size; `None` for all.

        Args:
            rows: See `at_resolution`.
            batch: See `at_resolution`.
        """
        samples = [batch.samples[row] for row in rows]
        if self.resolution == "backbone":
            inside = inside_frame(samples, self.method.preprocess)
        else:
            assert batch.masks is not None
            roi, shape = samples[0].roi, batch.masks[rows[0]].shape
            inside = None if roi is None else torch.from_numpy(roi.inside(*shape).copy())[None]
        return None if inside is None else inside.to(batch.label.device)

    def at_resolution(
        self, rows: list[int], prediction: AnomalyPrediction, batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns maps, masks and areas of regions, each `[R, H, W]`, of rows of a batch at the evaluated size.

        Args:
            rows: Several rows at the backbone's size, or one row at the image's own size.
            prediction: Prediction for the batch.
            batch: Batch of a test loader.
        """
        if self.resolution == "backbone":
            at = torch.tensor(rows, device=batch.label.device)
            maps, masks = prediction.anomaly_map[at], batch.mask[at]
            found = batch.region_area
            return maps, masks, label_regions(masks).to(maps.device) if found is None else found[at]
        assert batch.masks is not None
        row, device = rows[0], prediction.anomaly_map.device
        facts = batch.masks[row]
        if prediction.own_maps is not None:
            maps = prediction.own_maps[row][None].to(device)
        else:
            seen = prediction.anomaly_map[row].float().cpu().numpy()
            maps = torch.from_numpy(resize_map(seen, *facts.shape))[None].to(device)
        areas = facts.region_area(maps.device)[None]
        return maps, areas > 0, areas

    def compute(self, fixed: Mapping[Key, Mapping[str, float]] = MappingProxyType({}), rule: str = "") -> None:
        """Computes rows and curves over all processes, and deletes the metrics.

        Args:
            fixed: Thresholds of `image` and `pixel` that were fixed without labels, by category.
            rule: Rule that fixed them.
        """
        rows = []
        for (dataset, category), metric in self.metrics.items():
            with metric.sync_context():
                result = metric.result()
                points = operating_points(metric, result, fixed.get((dataset, category), {}), rule)
            if (of_defects := self.saturated.get((dataset, category))) is not None:
                with of_defects.sync_context():
                    result = spro_result(result, of_defects)
            if result.normal + result.anomalous:  # no image if the run was limited to a few batches
                rows.append(replace(result.row(dataset, category), operating_points=points))
                self.curves[dataset, category] = result.curves
        self.rows = results.with_means(rows)
        self.metrics, self.saturated = {}, {}

    def add_masks(self, counts: Mapping[Key, MaskCounts]) -> None:
        """Adds the counts of masks, over all processes, to the rows of their categories."""
        rows = [row for row in self.rows if row.category != results.MEAN]
        self.rows = results.with_means([replace(row, masks=counts.get((row.dataset, row.category))) for row in rows])

    def add_groups(self, rule: GroupScore) -> None:
        """Adds the metrics of groups of images to the rows of categories that have groups; see `groups_of`."""
        self.groups = groups_of(self.scores, rule)
        if self.groups:
            self.conditions["group_score"] = rule
            rows = [row for row in self.rows if row.category != results.MEAN]
            self.rows = results.with_means(with_groups(rows, self.groups))

    def add_intervals(self, settings: Settings, fpr_limit: float) -> None:
        """Adds the intervals of their metrics to the rows. Prints a note where there are none."""
        thresholds = results.fixed_thresholds(self.rows)
        found = intervals_of(self.records or {}, settings, fpr_limit, thresholds, records_of(self.groups))
        self.rows = results.with_intervals(self.rows, found.by_row)
        self.conditions["intervals"] = {**asdict(settings), "level": results.LEVEL}
        for note in found.notes:
            print(f"note: {shown(note)}")

    def add_details(self, types: bool, fpr_limit: float) -> list[str]:
        """Adds the results that need each image's counts: AUPIMO of categories and images, and rows by defect type.

        Returns one sentence per category without AUPIMO, with the reason.

        Args:
            types: Whether there are rows by defect type.
            fpr_limit: Integration limit of `pixel_pro`.
        """
        found, notes = aupimo_by_category(self.records or {})
        rows = [row for row in self.rows if row.category != results.MEAN]
        self.rows = results.with_means(with_aupimo(rows, found))
        of_image = {name: value for part in found.values() for name, value in part.images.items()}
        self.scores = [score._replace(aupimo=of_image.get(score.image)) for score in self.scores]
        if types:
            names = {score.image: score.defect_type for score in self.scores}
            self.type_rows = type_rows(self.records or {}, names, fpr_limit)
            if not self.type_rows:
                print("note: No rows by defect type: the set names none, or one only.")
        return notes

    def own_scores(self) -> list[ImageScore]:
        """Returns the scores of this process's images."""
        return [
            one._replace(score=score, map_max=highest)
            for facts, scores, maxima in self._scored
            for one, score, highest in zip(facts, scores.tolist(), maxima.tolist(), strict=True)
        ]

    def write(self, folder: Path, tolerance: float, fpr_limit: float) -> None:
        """Writes the table, the scores of images and groups, the curves, and the image records."""
        suffix = self.name.removeprefix("results")
        results.write(self.rows, folder, self.name, self.title, tolerance, self.conditions, self.type_rows)
        results.write_scores(self.scores, folder / f"scores{suffix}.csv")
        if self.groups:
            write_groups(self.groups, folder / f"groups{suffix}.csv")
        results.write_curves(self.curves, fpr_limit, folder / f"curves{suffix}.json")
        if self.records is not None:
            write_records(folder / records_file(suffix), self.records)


def counted(pixels: Tensor, inside: Tensor | None, row: int) -> Tensor:
    """Returns the pixels of a row `[H, W]` that count in metrics: the inspected ones, `[n]`, or all."""
    return pixels if inside is None else pixels[inside[row].to(pixels.device)]


def _without_score(sample: Sample) -> ImageScore:
    """Returns the result of an image without its score. It takes less memory than the sample."""
    facts = sample.dataset, sample.category, str(sample.image_path), sample.label, math.nan, math.nan
    return ImageScore(*facts, sample.mask_known, sample.defect_type, group=sample.group)
