"""The parts of a run apart from its methods: the feature store, the training sets, loggers and callbacks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, ProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import Logger

from afclip_lightning.backbones.store import FeatureCache, FeatureStore
from afclip_lightning.data.base import AnomalyData, AnomalyDataModule
from afclip_lightning.data.loading_options import Loading
from afclip_lightning.engine import loggers
from afclip_lightning.engine.callbacks.data_record import DataRecord
from afclip_lightning.engine.callbacks.evaluation import Evaluation
from afclip_lightning.engine.callbacks.pictures import Pictures
from afclip_lightning.engine.callbacks.predictions import Predictions
from afclip_lightning.engine.callbacks.preemption import Preemption
from afclip_lightning.engine.callbacks.summary import ParameterSummary
from afclip_lightning.engine.callbacks.tracking import Tracking
from afclip_lightning.engine.checkpoint import LAST
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.types import MAIN_HEAD, Split
from afclip_runtime.errors import UserError


def check_few_shot(heads: Mapping[str, AnomalyMethod], few_shot_dir: Path | None) -> None:
    """Checks that a method uses the folder of few-shot images. Otherwise the results would be zero-shot.

    Raises:
        UserError: A folder is given and no method uses it.
    """
    if few_shot_dir is not None and not any(head.k_shot for head in heads.values()):
        counted = any(head.takes_few_shot for head in heads.values())
        why = "k_shot is 0: give --model.k_shot" if counted else f"{type(heads[MAIN_HEAD]).__name__} takes none"
        raise UserError(f"--few_shot_dir names few-shot images, but {why}, or leave the folder out.")


def keep_features(heads: Mapping[str, AnomalyMethod], features: FeatureCache, loading: Loading, precision: str) -> None:
    """Gives the methods a store for their features.

    Args:
        heads: The methods, on one backbone.
        features: Folder and type of the stored features.
        loading: Options of reading images.
        precision: Precision of the trainer.

    Raises:
        UserError: A method or the loading does not allow it.
    """
    assert features.cache is not None
    for method in heads.values():
        if method.needs_pixels:
            name = type(method).__name__
            why = "uses the images beside their features"
            if method.changes_blocks:
                why = "trains layers between the backbone's blocks, so their features change"
            raise UserError(f"{name} {why}: no features can be kept. Leave out --features.cache and temporary.")
    if loading.draft:
        raise UserError("--loading.draft changes the pixels: use it or kept features (--features), not both.")
    compute = {"16-mixed": "float16", "bf16-mixed": "bfloat16"}.get(precision, "float32")
    main = heads[MAIN_HEAD]
    backbone = main.backbone
    channels = backbone.vision.width, backbone.embed_dim
    store = FeatureStore(features.cache, main.spec, backbone.grid, compute, features.dtype, channels)
    store.check_spec()
    for method in heads.values():
        method.store = store.of(method.spec)


def check_space(
    store: FeatureStore,
    width: int,
    data: AnomalyData,
    training: Sequence[tuple[AnomalyDataModule, Split]],
    limit_gb: float | None,
) -> None:
    """Checks that the features of all images fit on the disk. One process does so, after it has prepared the data.

    Args:
        store: The feature store.
        width: C, channels of a token.
        data: The test data.
        training: The training data; see `trained_on`.
        limit_gb: Size limit of the store, in GB.

    Raises:
        UserError: The features do not fit.
    """
    data.prepare_data()
    read = [sample.image_path for dataset in data.test_sets for sample in dataset.samples("test")]
    read += [sample.image_path for dataset, split in training for sample in dataset.samples(split)]
    store.check_space(len(set(read)), width, limit_gb)


def trained_on(method: AnomalyMethod, data: AnomalyData) -> list[tuple[AnomalyDataModule, Split]]:
    """Returns the datasets and the splits that training reads; nothing for a method without training.

    Raises:
        DatasetError: The method is trained, and there is no training dataset.
    """
    if not method.learnt_names():
        return []
    beside: tuple[Split, ...] = ("train",) if method.trains_beside_normal else ()
    return [(part, split) for part in data.training_sets for split in dict.fromkeys((part.train_split, *beside))]


def run_loggers(given: Any, folder: Path, command: str, tags: Sequence[str]) -> list[Logger]:
    """Returns the loggers of a run: those of the config, pointed at the run folder, and a CSV file there.

    Args:
        given: Loggers of the config, or `False` for none.
        folder: The run folder.
        command: `fit`, `validate`, `test` or `predict`.
        tags: Tags of the run.
    """
    chosen = [logger for logger in as_list(given) if logger not in (True, False)]
    for logger in chosen:
        loggers.prepare(logger, folder, command, tags)
    if given is not False:
        logs = len(list(folder.glob("log*")))  # logs of the run that this one resumes
        chosen.append(loggers.RunLog(str(folder), name="", version=f"log-{logs + 1}" if logs else "log"))
    return chosen


def run_callbacks(evaluation: Evaluation, pictures: Pictures, folder: Path, keep: bool) -> list[Callback]:
    """Returns the project's callbacks.

    Args:
        evaluation: Callback that scores.
        pictures: Callback that draws.
        folder: The run folder.
        keep: Whether checkpoints are kept.
    """
    last = folder / LAST
    callbacks = [evaluation, pictures, Predictions(), DataRecord(), Tracking(evaluation, pictures)]
    kept = ModelCheckpoint(last.parent, filename="last", enable_version_counter=False)
    return [*callbacks, Preemption(last if keep else None), *([kept] if keep else [])]


def display_callbacks(chosen: Sequence[Callback], progress_bar: bool, summary: bool) -> list[Callback]:
    """Returns the progress bar and the model summary, if they are enabled and the user chose no others.

    Lightning would choose other ones if `rich` is installed, which the extra `hub` brings. Here a run looks the same
    with all extras. `RichProgressBar` can be chosen as a callback.

    Args:
        chosen: Callbacks that the user chose.
        progress_bar: Value of `trainer.enable_progress_bar`.
        summary: Value of `trainer.enable_model_summary`.
    """
    wanted = ((progress_bar, ProgressBar, TQDMProgressBar), (summary, ModelSummary, ParameterSummary))
    return [own() for shown, base, own in wanted if shown and not any(isinstance(c, base) for c in chosen)]


def as_list(value: Any) -> list[Any]:
    """Returns the value of an option as a list; the value may be nothing, one object or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
