"""Thresholds that a test fixes without its labels: by a rule on untested normal images, or from a calibration."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.distributed import gathered
from afclip_lightning.engine.callbacks.head_evaluation import HeadEvaluation, counted
from afclip_lightning.metrics.fixed_thresholds import Rule
from afclip_lightning.metrics.normal_scores import Level, NormalScores
from afclip_lightning.results import Key
from afclip_lightning.types import prediction_of
from afclip_runtime.errors import CheckpointError, DatasetError, UserError, shown
from afclip_runtime.files import fingerprint, read_json


@dataclass(frozen=True)
class Value:
    """A threshold in a calibration's file."""

    value: float


@dataclass(frozen=True)
class CalibrationFile:
    """The part of a calibration's file that a test reads.

    Attributes:
        image: Threshold of image scores.
        pixel: Threshold of the values of maps, if there is one.
        checkpoint: Fingerprint of the checkpoint that it belongs to.
        settings: Other settings that its scores depend on.
    """

    image: Value
    pixel: Value | None
    checkpoint: str
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, checkpoint: str | None, parts: Iterable[AnomalyDataModule] = ()) -> "CalibrationFile":
        """Returns the content of a calibration's file.

        Args:
            path: Path of the file.
            checkpoint: File of the head that is tested; `None` if there is none.
            parts: The datasets that are tested.

        Raises:
            DatasetError: The file cannot be read, or is not a calibration.
            CheckpointError: The calibration belongs to another checkpoint or another region of interest.
        """
        found = read_json(path, cls, remedy="Calibrate again.", error=DatasetError)
        if checkpoint is not None and Path(checkpoint).is_file() and fingerprint(Path(checkpoint)) != found.checkpoint:
            raise CheckpointError(
                f"{shown(path)} is a calibration of another checkpoint than {shown(checkpoint)}: thresholds hold "
                "for the scores that they were made from. Calibrate this one, or name a rule: mean+3sd."
            )
        for part in parts:
            for category in part.selected_categories():
                roi = part.regions().get(category)
                if found.settings.get("roi") != (roi and roi.fingerprint):
                    raise CheckpointError(
                        f"{shown(path)} was calibrated with another region of interest than {part.name}/{category} has "
                        f"({roi.name if roi else 'the whole image'}). Correct --loading.roi, or calibrate with --roi."
                    )
        return found

    def thresholds(self) -> dict[Level, float]:
        """Returns the thresholds by level."""
        return {"image": self.image.value} | ({} if self.pixel is None else {"pixel": self.pixel.value})


def check_apart(method: Any) -> None:
    """Checks that a method can score images that are not tested.

    Raises:
        UserError: It compares test images with each other.
    """
    if method.needs_test_set or method.needs_references:
        raise UserError(
            f"{type(method).__name__} compares test images with each other, so normal images that are not tested have "
            "no scores from it, and no threshold comes from them. Leave out --evaluation.threshold."
        )


def check_normal_images(rule: Rule, parts: Iterable[AnomalyDataModule], k_shot: int) -> None:
    """Checks, before anything is tested, that each category has normal images for a rule.

    Args:
        rule: The rule.
        parts: The datasets that are tested.
        k_shot: Number of few-shot images per category, which are not available for thresholds.

    Raises:
        UserError: A category has too few normal images.
    """
    for part in parts:
        taken = k_shot if part.few_shot_dir is None else 0
        for category in part.selected_categories():
            there = max(len(part.threshold_samples(category)) - taken, 0)
            if there < rule.fewest:
                few_shot = f" beside {taken} few-shot images" if taken else ""
                raise UserError(
                    f"--evaluation.threshold {rule.text}: {part.name}/{category} has {there} normal training images"
                    f"{few_shot}, and the rule needs {rule.fewest}. A threshold without labels comes from normal "
                    "images that are not tested: add some, take another rule, or name the file of a calibration."
                )


def fixed_by(
    rule: Rule,
    trainer: Trainer,
    pl_module: LightningModule,
    heads: Mapping[str, HeadEvaluation],
    parts: Iterable[AnomalyDataModule],
) -> dict[str, dict[Key, dict[Level, float]]]:
    """Returns the thresholds of a rule on normal images that are not tested, by head and category.

    Few-shot images are left out, because a method with them in its memory gives them lower scores than others. Call it
    at the end of a test, while the methods are still prepared for it. The images are divided among the processes.

    Raises:
        UserError: A category has too few images; the message names it.
    """
    own: dict[str, dict[Key, NormalScores]] = {name: {} for name in heads}
    for part in parts:
        few_shot = {Path(record["root"], path) for record in part.few_shot_record.values() for path in record["images"]}
        for batch in part.threshold_batches(leave_out=few_shot):
            on_device: Any = trainer.strategy.batch_to_device(batch)
            with trainer.precision_plugin.test_step_context():
                outputs: Any = pl_module.test_step(on_device, 0)
            for name, head in heads.items():
                prediction = prediction_of(outputs, name)
                for row, (key, score) in enumerate(zip(batch.keys, prediction.pred_score.tolist(), strict=True)):
                    maps, *_ = head.at_resolution([row], prediction, on_device)
                    inside = head.inside_at_resolution([row], on_device)
                    of_key = own[name].setdefault(key, NormalScores())
                    of_key.add(str(batch.samples[row].image_path), score, counted(maps[0], inside, 0))
    found: dict[str, dict[Key, dict[Level, float]]] = {name: {} for name in heads}
    everywhere = gathered(own)
    for name, head in heads.items():
        for key in head.metrics:
            scores = NormalScores()
            for of_process in everywhere:
                scores.merge(of_process[name].get(key, NormalScores()))
            try:
                found[name][key] = scores.thresholds(rule)
            except UserError as error:
                raise UserError(f"{shown('/'.join(key))}: {error}") from error
    return found
