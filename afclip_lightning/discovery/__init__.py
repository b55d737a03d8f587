"""How methods and datasets are found, and made of what a config says: whoever adds a module need not list it."""

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
    """Returns all classes that inherit from one and were imported, each once, parents first.

    A class that only bears the name of another is left out: `torch.export` derives such classes from that of a module
    which occurs twice in what it traces, and they live until the garbage collector comes by.
    """
    classes = _children(cls)
    for found in classes:  # grows while it is walked
        classes += [inner for inner in _children(found) if inner not in classes]
    return classes


def _children(cls: type[Any]) -> list[type[Any]]:
    return [inner for inner in cls.__subclasses__() if _own_name(inner)]


def _own_name(cls: type) -> bool:
    module = sys.modules.get(cls.__module__)
    return getattr(module, cls.__qualname__, cls) is cls
