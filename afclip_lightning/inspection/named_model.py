"""Finds a model by its name: a file, the folder of a head, a ready model, or a method that trains nothing."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afclip_lightning.engine import factory
from afclip_lightning.engine.checkpoint import HEAD_FILE, head_in
from afclip_lightning.heads import ready
from afclip_lightning.heads.card import Card
from afclip_lightning.heads.file import is_head_file, read_head_card
from afclip_lightning.methods.base import AnomalyMethod
from afclip_runtime import files
from afclip_runtime.errors import UserError, shown
from afclip_runtime.inspection.bundle import CALIBRATION, is_bundle
from afclip_runtime.inspection.calibration import SUFFIX, fingerprint

WHERE = ("backbone.weights", "backbone.vision_weights")  # locations of the weights; their hash identifies them


def find_model(name: str | Path) -> Path | str:
    """Returns the file that a name stands for, or the name itself if it names a method.

    Args:
        name: A checkpoint, a head file or its folder, a config of a method that trains nothing, a ready model, or a
            method. A file on disk takes precedence over the name of a model or method.

    Raises:
        UserError: No model has this name. The message lists the names.
    """
    path = Path(name)
    if is_bundle(path):
        raise UserError(
            f"{shown(path)} is a bundle, and the head itself is needed here. inspect, calibrate and serve take "
            "bundles; in Python, afclip_runtime.inspection.bundle.open_bundle."
        )
    if path.is_dir():
        return head_in(path)
    if path.exists() or path.suffix or path.name != str(name):
        return path
    if str(name) in ready.names():
        return ready.path_of(str(name))
    methods = list(factory.methods())
    if str(name) in methods:
        return str(name)
    near = difflib.get_close_matches(str(name), [*ready.names(), *methods], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(
        f"there is no file, ready model or method called {shown(name)}.{hint}\n{ready.offer()}\n"
        f"Methods: {', '.join(methods)}; those that train nothing can be named."
    )


def build_model(model: Path | str, arguments: Mapping[str, Any], backbones: factory.Backbones) -> AnomalyMethod:
    """Returns the method of a model, in eval mode on the CPU.

    Args:
        model: Result of `find_model`.
        arguments: Constructor arguments that replace the model's.
        backbones: See `factory.load_head`.

    Raises:
        UserError: The method has to be trained. See also `factory.load_head`.
    """
    if isinstance(model, Path):
        return factory.load_head(model, arguments, backbones)
    method = factory.build({"class_path": model}, arguments, backbones)
    if method.learnt_names():
        raise UserError(f"{model} has to be trained: run fit, and name its {HEAD_FILE}.")
    return method


def known_by(model: Path | str, arguments: Mapping[str, Any]) -> str:
    """Returns the identity of a model in a calibration: the digest of its file, or of a config's resolved `model`.

    Args:
        model: Result of `find_model`. The name of a method is its own identity.
        arguments: See `build_model`.

    Raises:
        UserError: The file cannot be read.
    """
    if isinstance(model, str):
        return model
    if model.suffix in factory.CONFIG_SUFFIXES:
        return fingerprint(json.dumps(factory.read_model(model, arguments), sort_keys=True).encode())
    return files.fingerprint(model)


def calibration_path(name: str | Path) -> Path | None:
    """Returns the path of the calibration of a model for the product without name; `None` for a method's name.

    It lies beside the model's file, or inside a bundle. That of a ready model lies in the working directory, for
    example `real.calibration.json`.

    Raises:
        UserError: The model does not exist.
    """
    if is_bundle(Path(name)):
        return Path(name) / CALIBRATION
    model = find_model(name)
    if isinstance(model, str):
        return None
    return Path(model.stem + SUFFIX) if ready.is_ready(model) else model.with_name(model.stem + SUFFIX)


def card_of(model: Path | str) -> Card | None:
    """Returns the card of a head file; `None` for any other model.

    Args:
        model: Result of `find_model`.

    Raises:
        CheckpointError: The file cannot be read.
    """
    if isinstance(model, str) or model.suffix in factory.CONFIG_SUFFIXES or not is_head_file(model):
        return None
    return read_head_card(model)
