"""Finds methods and datasets, and builds them from configs. A new module need not be registered anywhere."""

import importlib
import pkgutil
import sys
from types import ModuleType
from typing import Any


def import_submodules(package: ModuleType) -> None:
    """Imports every module of a package, so that its classes are known by their short names in configs."""
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def descendants(cls: type) -> list[type[Any]]:
    """Returns all imported subclasses of a class, each once, parents first.

    A class that copies the name of another is left out. `torch.export` derives such classes from a module that occurs
    twice in a trace, and they live until the next garbage collection.
    """
    classes = _children(cls)
    for found in classes:  # grows during the iteration
        classes += [inner for inner in _children(found) if inner not in classes]
    return classes


def _children(cls: type[Any]) -> list[type[Any]]:
    return [inner for inner in cls.__subclasses__() if _own_name(inner)]


def _own_name(cls: type) -> bool:
    module = sys.modules.get(cls.__module__)
    return getattr(module, cls.__qualname__, cls) is cls
