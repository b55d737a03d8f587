"""What a run works with: methods from files and configs, the heads of a pass, the feature store, the trainer."""

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import afclip_lightning.methods
from afclip_lightning.backbones.archives import reason
from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.backbones.store import FeatureCache, FeatureStore
from afclip_lightning.data.base import AnomalyData, AnomalyDataModule
from afclip_lightning.data.loading_options import Loading
from afclip_lightning.discovery import descendants, import_submodules
from afclip_lightning.discovery.sections import all_arguments, prepare, refusals
from afclip_lightning.engine import loggers
from afclip_lightning.engine.callbacks.data_record import DataRecord
from afclip_lightning.engine.callbacks.evaluation import Evaluation
from afclip_lightning.engine.callbacks.pictures import Pictures
from afclip_lightning.engine.callbacks.predictions import Predictions
from afclip_lightning.engine.callbacks.preemption import Preemption
from afclip_lightning.engine.callbacks.tracking import Tracking
from afclip_lightning.engine.checkpoint import HEAD_FILE, LAST, read_checkpoint
from afclip_lightning.engine.interpolation import resolve
from afclip_lightning.errors import CheckpointError, UserError, WeightsError
from afclip_lightning.files import read_yaml
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.types import MAIN_HEAD, Split

CONFIG_SUFFIXES = (".yaml", ".yml")
Backbones = dict[str, ClipBackbone]  # by their arguments, see `backbone_key`


def load_head(
    path: str | Path, arguments: Mapping[str, Any] | None = None, backbones: Backbones | None = None
) -> AnomalyMethod:
    """Returns the method of a checkpoint with its trained tensors, or that of a config, in eval mode on the CPU.

    Args:
        path: A checkpoint, the folder of a run (its `head.ckpt`), or a YAML file with a `model` section as `fit` and
            `test` take it.
        arguments: Constructor arguments in place of the file's; a dot leads into a group (`backbone.weights`).
        backbones: Those that are there already; what is built is added.

    Raises:
        CheckpointError: The file is absent or damaged, does not say how its method is built, or does not fit it.
        UserError: A config cannot be read, an argument is wrong, or its method has to be trained first.
    """
    path = Path(path)
    if path.suffix in CONFIG_SUFFIXES:
        method = build(read_model(path, arguments), arguments, backbones)
        if method.trainable_names():
            raise UserError(f"{path}: {type(method).__name__} has to be trained: run fit, and name its {HEAD_FILE}.")
        return method
    path = Path(checkpoint_of(path) or path)
    checkpoint = read_checkpoint(path)
    if not checkpoint.get("model"):
        raise CheckpointError(
            f"{path} does not say how its method is built: `fit` of this version did not write it. Train the head "
            "again, or build the method in Python and load the checkpoint's `state_dict`."
        )
    try:
        method = build(_own(checkpoint["model"]), arguments, backbones)
    except WeightsError:
        raise
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error
    restore(method, checkpoint)
    return method


def checkpoint_of(path: Path) -> str | None:
    """Returns the checkpoint that `load_head` reads; `None` for a config, whose method trains nothing."""
    if path.suffix in CONFIG_SUFFIXES:
        return None
    return str(path / HEAD_FILE if path.is_dir() else path)


def _own(model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `model` entry of a checkpoint, without its optimiser, if building it imports nothing.

    A config is written by its user and may name any class. A checkpoint comes from anywhere: it must not choose what is
    run, least of all a module of the working directory.

    Raises:
        UserError: It names a class that is neither ours nor imported already.
    """
    name, arguments = model["class_path"], dict(model.get("init_args") or {})
    own = methods()
    module, _, cls_name = name.rpartition(".")
    if name not in own and not hasattr(sys.modules.get(module), cls_name):
        raise UserError(
            f"its method {name!r} is none of ours, and a checkpoint's module is not imported. Ours are "
            f"{', '.join(own)}; in Python, import the module yourself and call afclip_lightning.load."
        )
    arguments.pop("optimizer", None)  # nothing is trained with it here
    if "'class_path'" in repr(arguments):
        raise UserError("its arguments name a class, and nothing is imported for a checkpoint. Train the head again.")
    return {"class_path": name, "init_args": arguments}


def restore(method: AnomalyMethod, checkpoint: dict[str, Any]) -> None:
    """Gives a method the trained tensors of a checkpoint.

    Raises:
        CheckpointError: It does not fit.
    """
    method.on_load_checkpoint(checkpoint)
    method.load_state_dict(checkpoint["state_dict"], strict=False)  # the backbone is not in it; the rest was checked


def build(
    model: Mapping[str, Any], arguments: Mapping[str, Any] | None = None, backbones: Backbones | None = None
) -> AnomalyMethod:
    """Returns the method that a `model` section describes, in eval mode.

    Args:
        model: `class_path`, full or the class's name alone, and `init_args`.
        arguments: See `load_head`.
        backbones: See `load_head`.

    Raises:
        UserError: The method is unknown or an argument is wrong.
    """
    cls = method_class(model["class_path"])
    try:
        config = OmegaConf.create(dict(model.get("init_args") or {}))
        for name, value in (arguments or {}).items():
            OmegaConf.update(config, name, value, force_add=True)
        given: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise UserError(f"{cls.__name__}: its arguments cannot be read ({error}).") from error
    given_backbone = given.pop("backbone", None) or {}
    if not isinstance(given_backbone, dict):
        raise UserError(f"{cls.__name__}: backbone: expected a mapping of arguments, got {given_backbone!r}.")
    make = prepare(cls, given, later=["backbone"])
    key = backbone_key(given_backbone, f"{cls.__name__}: backbone")
    known = {} if backbones is None else backbones
    try:
        if key not in known:
            with refusals(f"{cls.__name__}: "):
                known[key] = ClipBackbone(**json.loads(key))
        method = make(backbone=known[key])
    except (MemoryError, RuntimeError) as error:  # torch's words for sizes that no memory holds
        raise UserError(f"{cls.__name__} cannot be built with these arguments: {reason(error)}.") from error
    method.eval()
    return method


def backbone_key(arguments: Mapping[str, Any], where: str = "backbone") -> str:
    """Returns all arguments of a backbone, those that are not given too, as JSON.

    Args:
        arguments: Those that are given.
        where: What a message begins with.

    Raises:
        UserError: One is unknown or wrong.
    """
    return json.dumps(all_arguments(ClipBackbone, arguments, where), sort_keys=True)


def method_class(name: str) -> type[AnomalyMethod]:
    """Returns a method's class by its full path, or by its name alone if it is one of ours.

    Raises:
        UserError: There is none.
    """
    module, _, cls_name = name.rpartition(".")
    found: Any = None
    if module:
        with suppress(ImportError):
            found = getattr(importlib.import_module(module), cls_name, None)
    else:
        found = methods().get(name)
    if not (isinstance(found, type) and issubclass(found, AnomalyMethod)):
        raise UserError(f"there is no method {name!r}; ours are {', '.join(methods())}")
    return found


def methods() -> dict[str, type[AnomalyMethod]]:
    """Returns the methods of this package by name."""
    import_submodules(afclip_lightning.methods)
    own = (cls for cls in descendants(AnomalyMethod) if cls.__module__.startswith(afclip_lightning.methods.__name__))
    return {cls.__name__: cls for cls in sorted(own, key=lambda cls: cls.__name__) if not cls.__abstractmethods__}


def read_model(path: Path, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the `model` section of a config, its references filled in.

    Args:
        path: A YAML file.
        arguments: See `load_head`; what they replace may refer to anything.

    Raises:
        UserError: The file cannot be read or has no such section.
    """
    config = read_yaml(path, dict[str, Any], remedy="It must be a config as `fit` and `test` take it.")
    model = config.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("class_path"), str):
        raise UserError(f"{path} has no `model` section with a `class_path`.")
    try:
        given = OmegaConf.create(dict(model.get("init_args") or {}))
        for name, value in (arguments or {}).items():
            OmegaConf.update(given, name, value, force_add=True)
        model["init_args"] = OmegaConf.to_container(given)
        return resolve(config, "model")
    except (OmegaConfBaseException, TypeError, ValueError, UserError) as error:
        raise UserError(f"{path}: cannot be read as a config ({error})") from error


def load_heads(method: AnomalyMethod, others: Mapping[str, Path]) -> dict[str, AnomalyMethod]:
    """Returns a run's own method and the others that are tested with it, by name; they share its backbone."""
    assert method.config is not None
    backbones = {backbone_key(method.config["init_args"]["backbone"]): method.backbone}
    return {MAIN_HEAD: method} | {name: load_head(path, backbones=backbones) for name, path in others.items()}


def check_few_shot(heads: Mapping[str, AnomalyMethod], few_shot_dir: Path | None) -> None:
    """Refuses a folder of few-shot images that no method would look at: its numbers would be zero-shot ones.

    Raises:
        UserError: There is one.
    """
    if few_shot_dir is not None and not any(head.k_shot for head in heads.values()):
        counted = any(head.takes_few_shot for head in heads.values())
        why = "k_shot is 0: give --model.k_shot" if counted else f"{type(heads[MAIN_HEAD]).__name__} takes none"
        raise UserError(f"--few_shot_dir names few-shot images, but {why}, or leave the folder out.")


def keep_features(heads: Mapping[str, AnomalyMethod], features: FeatureCache, loading: Loading, precision: str) -> None:
    """Gives methods the store that keeps their features.

    Args:
        heads: The methods, on one backbone.
        features: Where features are kept and how.
        loading: How images are read.
        precision: The trainer's.

    Raises:
        UserError: A method or the loading does not allow it.
    """
    assert features.cache is not None
    for method in heads.values():
        if method.needs_pixels:
            name = type(method).__name__
            raise UserError(f"{name} uses the images beside their features: run it without --features.cache.")
    if loading.draft:
        raise UserError("--loading.draft changes the pixels: use it or --features.cache, not both.")
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
    """Checks that the features of all images of a command fit; one process does so, and makes what a dataset makes.

    Args:
        store: Where they are kept.
        width: C, channels of a token.
        data: What is tested on.
        training: What is trained on, see `trained_on`.
        limit_gb: Most that may be kept.

    Raises:
        UserError: They do not.
    """
    data.prepare_data()
    read = [sample.image_path for dataset in data.test_sets for sample in dataset.samples("test")]
    read += [sample.image_path for dataset, split in training for sample in dataset.samples(split)]
    store.check_space(len(set(read)), width, limit_gb)


def trained_on(method: AnomalyMethod, data: AnomalyData) -> list[tuple[AnomalyDataModule, Split]]:
    """Returns the dataset and the split that training reads; nothing for a method that trains nothing.

    Raises:
        DatasetError: The method trains, and no dataset is there for it.
    """
    if not method.trainable_names():
        return []
    dataset = data.training_set
    return [(dataset, dataset.train_split)]


def run_loggers(given: Any, folder: Path, command: str, tags: Sequence[str]) -> list[Logger]:
    """Returns the loggers of a run: those of the config, pointed at the run folder, and a CSV file there.

    Args:
        given: What the config says: loggers, or `False` for none.
        folder: The run folder.
        command: `fit`, `validate`, `test` or `predict`.
        tags: What to find the run by.
    """
    chosen = [logger for logger in as_list(given) if logger not in (True, False)]
    for logger in chosen:
        loggers.prepare(logger, folder, command, tags)
    if given is not False:
        logs = len(list(folder.glob("log*")))  # those of the run that this one continues
        chosen.append(CSVLogger(str(folder), name="", version=f"log-{logs + 1}" if logs else "log"))
    return chosen


def run_callbacks(evaluation: Evaluation, pictures: Pictures, folder: Path, keep: bool) -> list[Callback]:
    """Returns the project's callbacks.

    Args:
        evaluation: What scores.
        pictures: What draws.
        folder: The run folder.
        keep: Whether checkpoints are kept.
    """
    last = folder / LAST
    callbacks = [evaluation, pictures, Predictions(), DataRecord(), Tracking(evaluation, pictures)]
    kept = ModelCheckpoint(last.parent, filename="last", enable_version_counter=False)
    return [*callbacks, Preemption(last if keep else None), *([kept] if keep else [])]


def as_list(value: Any) -> list[Any]:
    """Returns what an option holds that may be nothing, one or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
