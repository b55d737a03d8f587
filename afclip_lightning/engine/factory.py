"""Builds methods from checkpoints and configs, and the heads of a pass."""

import importlib
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import afclip_lightning.methods
from afclip_lightning.backbones.archives import reason
from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.discovery import descendants, import_submodules
from afclip_lightning.discovery.sections import all_arguments, prepare, refusals
from afclip_lightning.engine.checkpoint import HEAD_FILE, head_in, read_checkpoint
from afclip_lightning.engine.interpolation import resolve
from afclip_lightning.engine.presets import fill_in, fill_in_section
from afclip_lightning.heads.foreign import Released, find_released, in_lines
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.types import MAIN_HEAD
from afclip_runtime.errors import CheckpointError, UserError, WeightsError, shown
from afclip_runtime.files import read_yaml

CONFIG_SUFFIXES = (".yaml", ".yml")
Backbones = dict[str, ClipBackbone]  # by their arguments, see `backbone_key`


def load_head(
    path: str | Path, arguments: Mapping[str, Any] | None = None, backbones: Backbones | None = None
) -> AnomalyMethod:
    """Returns the method of a checkpoint with its trained tensors, or that of a config, in eval mode on the CPU.

    Args:
        path: A checkpoint, a head file, the folder of one (`head.ckpt`, `head.safetensors`), another project's head
            (`heads.foreign`), or a YAML file with a `model` section, like the configs of `fit` and `test`.
        arguments: Constructor arguments that replace those of the file. A dot separates a group from its entry
            (`backbone.weights`).
        backbones: Backbones that are already built. A backbone that is built here is added.

    Raises:
        CheckpointError: The file is absent or damaged, does not say how its method is built, or does not fit it.
        UserError: A config cannot be read, an argument is wrong, or the method has to be trained first.
    """
    path = Path(path)
    if path.suffix in CONFIG_SUFFIXES:
        method = build(read_model(path, arguments), arguments, backbones)
        if method.learnt_names():
            raise UserError(f"{path}: {type(method).__name__} has to be trained: run fit, and name its {HEAD_FILE}.")
        return method
    path = Path(checkpoint_of(path) or path)
    checkpoint = read_any(path)
    if isinstance(checkpoint, Released):
        method = load_released(checkpoint, arguments, backbones)
        note_assumed(method, checkpoint)
        return method
    model = _model_in(checkpoint, path)
    try:
        method = build(model, arguments, backbones)
    except WeightsError:
        raise
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error
    restore(method, checkpoint)
    return method


def model_of(path: Path) -> dict[str, Any]:
    """Returns the class and arguments of a head's method, like the `model` section of a config, without an optimiser.

    Args:
        path: A checkpoint, a head file, or another project's head.

    Raises:
        CheckpointError: The file is absent or damaged, or does not say how its method is built.
    """
    checkpoint = read_any(path)
    return checkpoint.model if isinstance(checkpoint, Released) else _model_in(checkpoint, path)


def _model_in(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Returns the `model` entry of a checkpoint of ours; see `model_of`."""
    if not checkpoint.get("model"):
        raise CheckpointError(
            f"{path} does not say how its method is built: `fit` of this version did not write it. Train the head "
            "again, or build the method in Python and load the checkpoint's `state_dict`."
        )
    try:
        return _own(checkpoint["model"])
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error


def checkpoint_of(path: Path) -> str | None:
    """Returns the checkpoint that `load_head` reads; `None` for a config, whose method trains nothing."""
    if path.suffix in CONFIG_SUFFIXES:
        return None
    return str(head_in(path) if path.is_dir() else path)


def _own(model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `model` entry of a checkpoint, without its optimiser, if building it imports nothing.

    A config is written by its user and may name any class. A checkpoint may come from anywhere. It must not choose the
    code that runs, least of all a module of the working directory.

    Raises:
        UserError: The entry names a class that is neither ours nor already imported.
    """
    name, arguments = model["class_path"], dict(model.get("init_args") or {})
    own = methods()
    module, _, cls_name = name.rpartition(".")
    if name not in own and not hasattr(sys.modules.get(module), cls_name):
        raise UserError(
            f"its method {name!r} is not one of ours, and a checkpoint's module is not imported. Ours are "
            f"{', '.join(own)}. In Python, import the module yourself and call afclip_lightning.load."
        )
    arguments.pop("optimizer", None)  # nothing is trained here
    if "'class_path'" in repr(arguments):
        raise UserError("its arguments name a class, and nothing is imported for a checkpoint. Train the head again.")
    return {"class_path": name, "init_args": arguments}


def restore(method: AnomalyMethod, checkpoint: dict[str, Any]) -> None:
    """Loads the trained tensors of a checkpoint into a method, and the checkpoint's memory bank if it has one.

    Raises:
        CheckpointError: The checkpoint does not fit the method.
    """
    method.on_load_checkpoint(checkpoint)
    method.load_state_dict(checkpoint["state_dict"], strict=False)  # the backbone is not in it; the rest was checked
    if kept := checkpoint.get("memory"):
        if method.memory is None:
            raise CheckpointError(f"The checkpoint has a memory bank, and {type(method).__name__} takes none.")
        method.memory.keep(kept)


def read_any(path: str | Path) -> dict[str, Any] | Released:
    """Returns the content of a checkpoint or of a head file, or the head of another project.

    Raises:
        CheckpointError: The file is none of these, or is damaged.
    """
    try:
        return read_checkpoint(path)
    except CheckpointError:
        released = find_released(Path(path))
        if released is None:
            raise
        return released


def load_released(
    released: Released, arguments: Mapping[str, Any] | None = None, backbones: Backbones | None = None
) -> AnomalyMethod:
    """Returns the method of another project's head, in eval mode on the CPU.

    Args:
        released: The head, read by `heads.foreign`.
        arguments: Constructor arguments that replace those that the project's code fixes; see `load_head`.
        backbones: See `load_head`.

    Raises:
        CheckpointError: An argument is wrong, or the head does not fit.
    """
    try:
        method = build(released.model, arguments, backbones)
    except WeightsError:
        raise
    except UserError as error:
        raise CheckpointError(f"{shown(released.path)}: {error}") from error
    restore_released(method, released)
    return method


def restore_released(method: AnomalyMethod, released: Released) -> None:
    """Loads the trained tensors of another project's head into a method.

    Raises:
        CheckpointError: The head does not fit the method.
    """
    try:
        restore(method, released.checkpoint(method))
    except CheckpointError as error:
        raise CheckpointError(f"{shown(released.path)}: {error}") from error


def note_assumed(method: AnomalyMethod, released: Released) -> None:
    """Logs what is known about another project's head, and what had to be assumed."""
    rank_zero_info(f"{shown(released.path)}:\n{in_lines(released.says(method))}")


def build(
    model: Mapping[str, Any], arguments: Mapping[str, Any] | None = None, backbones: Backbones | None = None
) -> AnomalyMethod:
    """Returns the method that a `model` section describes, in eval mode.

    Args:
        model: `class_path`, a full path or a class name of ours, and `init_args`.
        arguments: See `load_head`.
        backbones: See `load_head`.

    Raises:
        UserError: The method is unknown or an argument is wrong.
    """
    cls = method_class(model["class_path"])
    try:
        given = with_arguments(model, arguments)
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
                known[key] = ClipBackbone(**backbone_arguments(key))
        method = make(backbone=known[key])
    except (MemoryError, RuntimeError) as error:  # torch raises these for sizes that exceed the memory
        raise UserError(f"{cls.__name__} cannot be built with these arguments: {reason(error)}.") from error
    method.eval()
    return method


def backbone_key(arguments: Mapping[str, Any], where: str = "backbone") -> str:
    """Returns all arguments of a backbone, including the defaults, as JSON.

    Args:
        arguments: Arguments that are given.
        where: Beginning of an error message.

    Raises:
        UserError: An argument is unknown or wrong.
    """
    return json.dumps(all_arguments(ClipBackbone, arguments, where), sort_keys=True)


def backbone_arguments(key: str) -> dict[str, Any]:
    """Returns the arguments of a backbone from a key of `backbone_key`."""
    arguments: dict[str, Any] = json.loads(key)
    return arguments


def method_class(name: str) -> type[AnomalyMethod]:
    """Returns a method's class by its full path, or by its name if it is one of ours.

    Raises:
        UserError: There is no such method.
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
        arguments: See `load_head`. References in replaced values are not resolved.

    Raises:
        UserError: The file cannot be read or has no such section.
    """
    config = read_yaml(path, dict[str, Any], remedy="It must be a config as `fit` and `test` take it.")
    model = config.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("class_path"), str):
        raise UserError(f"{path} has no `model` section with a `class_path`.")
    try:
        model["init_args"] = with_arguments(model, arguments)
        return resolve(config, "model")
    except (OmegaConfBaseException, TypeError, ValueError, UserError) as error:
        raise UserError(f"{path}: cannot be read as a config ({error})") from error


def with_arguments(model: Mapping[str, Any], arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the `init_args` of a `model` section, some of them replaced; see `load_head`."""
    method = method_class(model["class_path"])
    given = model.get("init_args") or {}
    if not isinstance(given, Mapping):
        raise UserError(f"`init_args` of {model['class_path']} must be a mapping, got {given!r}")
    config = OmegaConf.create(fill_in_section(given, method))
    for name, value in fill_in(arguments or {}, method).items():
        OmegaConf.update(config, name, value, force_add=True)
    return OmegaConf.to_container(config)  # type: ignore[return-value]


def load_heads(method: AnomalyMethod, others: Mapping[str, Path]) -> dict[str, AnomalyMethod]:
    """Returns a run's own method and the other heads that are tested with it, by name. They share its backbone."""
    assert method.config is not None
    backbones = {backbone_key(method.config["init_args"]["backbone"]): method.backbone}
    return {MAIN_HEAD: method} | {name: load_head(path, backbones=backbones) for name, path in others.items()}
