"""How methods and datasets are found, and made of what a config says: whoever adds a module need not list it."""

import importlib
import pkgutil
from types import ModuleType
from typing import Any


def import_submodules(package: ModuleType) -> None:
    """Imports every module of a package, so that its classes are known by their short names in configs."""
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def descendants(cls: type) -> list[type[Any]]:
    """Returns all classes that inherit from one and were imported, each once, parents first."""
    classes: list[type[Any]] = cls.__subclasses__()
    for found in classes:  # grows while it is walked
        classes += [inner for inner in found.__subclasses__() if inner not in classes]
    return classes
