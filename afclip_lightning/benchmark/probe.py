"""What a benchmark asks the project's classes: what is on disk, what may be tested on what, what a store can keep."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

import afclip_lightning.data
from afclip_lightning.benchmark.matrix import read_yaml
from afclip_lightning.classes import import_submodules
from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.cross_dataset import CrossDataset
from afclip_lightning.errors import UserError, message_of
from afclip_lightning.heads import method_class


def section(name: str, value: Any) -> Mapping[str, Any]:
    """Returns the `data` section of a dataset of a matrix.

    Args:
        name: Its name.
        value: The section itself, or the path of a config whose `data` is a dataset, or tests on just one.

    Raises:
        UserError: It is neither.
    """
    found = read_yaml(Path(value)).get("data") if isinstance(value, str) else value
    arguments = found.get("init_args", {}) if isinstance(found, Mapping) else {}
    if len(tests := arguments.get("test", [])) == 1:
        found = tests[0]
    if not isinstance(found, Mapping) or "class_path" not in found:
        raise UserError(f"dataset {name!r}: {value} is neither a data section with class_path nor a file with one.")
    return found


def absent(name: str, found: Mapping[str, Any]) -> str:
    """Returns where a dataset was looked for if it is not on disk, else an empty text.

    Raises:
        UserError: There is no such dataset class, or it does not take these arguments.
    """
    dataset = build(name, found)
    return str(dataset.root) if dataset.is_absent() else ""


def check_transfer(train: str, trained: Mapping[str, Any], test: str, tested: Mapping[str, Any]) -> None:
    """Checks that no category is trained on and tested on.

    Raises:
        UserError: One is.
    """
    try:
        CrossDataset(build(train, trained), build(test, tested))
    except ValueError as error:
        raise UserError(f"from {train} to {test}: {error}") from error


def reads_features(method: str, configs: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether a method takes a backbone's features alone, so that they can be kept.

    Raises:
        UserError: The configs name no method, or none that there is.
    """
    paths = [str(config["model"]["class_path"]) for config in configs if "class_path" in (config.get("model") or {})]
    path = paths[-1] if paths else ""
    try:
        return not method_class(path).needs_pixels
    except UserError as error:
        where = f"method {method!r}: its configs name {path or 'no model'}, which is no method."
        raise UserError(where) from error


def build(name: str, found: Mapping[str, Any]) -> AnomalyDataModule:
    """Returns the dataset that a section describes.

    Raises:
        UserError: There is no such class, or it does not take these arguments.
    """
    import_submodules(afclip_lightning.data)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AnomalyDataModule, "data", required=True)
    try:
        dataset: AnomalyDataModule = parser.instantiate_classes(parser.parse_object({"data": dict(found)})).data
    except (ArgumentError, ValueError) as error:
        raise UserError(f"dataset {name!r}: {message_of(error)}") from error
    return dataset
