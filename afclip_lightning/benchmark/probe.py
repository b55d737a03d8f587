"""A benchmark's queries to classes: which datasets are on disk, which transfers are allowed, which methods exist."""

import importlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from inspect import isabstract
from pathlib import Path
from typing import Any

from afclip_lightning.benchmark.files import read_yaml
from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.datasets.catalogue import dataset_classes
from afclip_lightning.datasets.cross_dataset import CrossDataset
from afclip_lightning.discovery.sections import instantiate, prepare
from afclip_lightning.engine.factory import method_class
from afclip_lightning.methods.base import AnomalyMethod
from afclip_runtime.errors import UserError


def section(name: str, value: Any) -> Mapping[str, Any]:
    """Returns the `data` section of a dataset of a matrix.

    Args:
        name: Name of the dataset.
        value: The section itself, or the path of a config whose `data` is one dataset, or has exactly one test set.

    Raises:
        UserError: The value is neither.
    """
    found = read_yaml(Path(value)).get("data") if isinstance(value, str) else value
    arguments = found.get("init_args") if isinstance(found, Mapping) else None
    tests = arguments.get("test") if isinstance(arguments, Mapping) else None
    if isinstance(tests, Sequence) and not isinstance(tests, str) and len(tests) == 1:
        found = tests[0]
    if not isinstance(found, Mapping) or not isinstance(found.get("class_path"), str):
        raise UserError(f"dataset {name!r}: {value} is neither a data section with class_path nor a file with one.")
    if not isinstance(found.get("init_args", {}), Mapping):
        raise UserError(
            f"dataset {name!r}: init_args must be a mapping, got {found['init_args']!r}. Leave it out if empty."
        )
    return {**found, "init_args": {"root": str(build(name, found).root), **found.get("init_args", {})}}


def absent(name: str, found: Mapping[str, Any]) -> str:
    """Returns the folder in which a dataset was expected, if it is not on disk; else an empty text.

    Raises:
        UserError: There is no such dataset class, or it does not accept these arguments.
    """
    dataset = build(name, found)
    return str(dataset.root) if dataset.is_absent() else ""


def transfer(
    trained: Mapping[str, Mapping[str, Any]], tested: Mapping[str, Mapping[str, Any]], arguments: Mapping[str, Any]
) -> CrossDataset:
    """Returns the data of a transfer: training and test sets.

    Args:
        trained: Sections of the training sets, by their names.
        tested: Sections of the test sets, by their names.
        arguments: Further arguments of `CrossDataset`.

    Raises:
        UserError: A category is trained on and tested on, or an argument is wrong.
    """
    where = f"from {' + '.join(trained)} to {', '.join(tested)}"
    make = prepare(CrossDataset, arguments, where, later=("train", "test"))
    train, test = ([build(name, section) for name, section in part.items()] for part in (trained, tested))
    return make(train=train, test=test)


def find_method(method: str, configs: Sequence[Mapping[str, Any]]) -> type[AnomalyMethod]:
    """Returns the class that a method's configs name.

    Raises:
        UserError: The configs name no method, or one that does not exist.
    """
    models = [config.get("model") for config in configs]
    paths = [str(model["class_path"]) for model in models if isinstance(model, Mapping) and "class_path" in model]
    path = paths[-1] if paths else ""
    try:
        return method_class(path)
    except UserError as error:
        where = f"method {method!r}: its configs name {path or 'no model'}, which is not a method."
        raise UserError(where) from error


def build(name: str, found: Mapping[str, Any]) -> AnomalyDataModule:
    """Returns the dataset that a section describes.

    Raises:
        UserError: There is no such class, or it does not accept these arguments.
    """
    if unknown := found.keys() - {"class_path", "init_args"}:
        raise UserError(f"dataset {name!r}: has {min(unknown)!r}; a data section has class_path and init_args.")
    cls = _dataset_class(name, found["class_path"])
    return instantiate(cls, dict(found.get("init_args", {})), f"dataset {name!r}, {cls.__name__}")


def _dataset_class(dataset: str, name: str) -> type[AnomalyDataModule]:
    own = {cls.__name__: cls for cls in dataset_classes()}
    module, _, cls_name = name.rpartition(".")
    found: Any = own.get(name)
    if module:
        with suppress(ImportError, ValueError):
            found = getattr(importlib.import_module(module), cls_name, None)
    if not (isinstance(found, type) and issubclass(found, AnomalyDataModule)) or isabstract(found):
        raise UserError(f"dataset {dataset!r}: there is no dataset class {name!r}; ours are {', '.join(sorted(own))}.")
    return found
