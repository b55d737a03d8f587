"""The catalogue of datasets: the list, a dataset by its name, and the dataset that a folder seems to hold."""

import copy
import inspect
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import afclip_lightning.datasets
from afclip_lightning.data.base import AnomalyData, AnomalyDataModule
from afclip_lightning.discovery import descendants, import_submodules
from afclip_runtime.errors import DatasetNotFoundError, UserError
from afclip_runtime.images.find import list_folders


def dataset_classes() -> list[type[AnomalyDataModule]]:
    """Returns all dataset classes of this package, and the user's own classes that were imported before."""
    import_submodules(afclip_lightning.datasets)
    return descendants(AnomalyDataModule)


def check(data: AnomalyData, stage: str = "fit") -> None:
    """Checks that the data of a stage is on disk in its layout. The error says what a folder seems to hold instead.

    Raises:
        DatasetError: See `AnomalyData.check`.
    """
    try:
        data.check(stage)
    except DatasetNotFoundError as error:
        raise DatasetNotFoundError(error.dataset, error.problem, _what_lies_there(error.dataset)) from None


def _what_lies_there(wanted: AnomalyDataModule) -> str:
    """Returns a sentence on what the folder of `wanted` seems to hold instead, or an empty string."""
    if not wanted.root.is_dir():
        return ""

    def fits(dataset: AnomalyDataModule) -> bool:
        return bool(dataset.find_categories()) and not dataset.missing()

    for folder in (wanted.root.parent, *list_folders(wanted.root)):
        moved = copy.copy(wanted)
        moved.root = folder
        with suppress(Exception):  # here and below: a hint must never hide the original error
            if fits(moved):
                return f"\nIt seems to lie in {folder}: set `root` to that folder."

    found: list[AnomalyDataModule] = []
    classes: list[type[AnomalyDataModule]] = []
    with suppress(Exception):
        classes = dataset_classes()
    for cls in classes:
        if cls not in type(wanted).__mro__[1:]:
            with suppress(Exception):
                found += [dataset for dataset in cls.variants(wanted.root) if fits(dataset)]
    general = {base for dataset in found for base in type(dataset).__mro__[1:]}
    names = [f"{d.name} ({type(d).__name__})" for d in found if type(d) not in general]
    return f"\nThis looks like {' or '.join(names)}." if names else ""


def catalogue() -> list[AnomalyDataModule]:
    """Returns every published dataset once, sorted by name."""
    found: dict[str, AnomalyDataModule] = {}
    for cls in dataset_classes():
        if not inspect.isabstract(cls):
            named = [cls()] if cls.name else _variants(cls)
            found |= {dataset.name: dataset for dataset in named}
    return [found[name] for name in sorted(found)]


def _variants(cls: type[AnomalyDataModule]) -> list[AnomalyDataModule]:
    """Returns the published datasets of a class. Datasets that are named after their folder are left out."""
    here, there = (cls.variants(Path(folder)) for folder in ("here", "there"))
    found = [dataset for dataset, moved in zip(here, there, strict=True) if dataset.name == moved.name]
    for dataset in found:
        dataset.root = dataset.default_root()
    return found


def find_dataset(name: str, options: Sequence[str], root: Path | None = None) -> AnomalyDataModule:
    """Returns the dataset of a name or class.

    Args:
        name: Name of a dataset, or of a class, in upper or lower case.
        options: Arguments of the class, as on the command line.
        root: Folder of the dataset. Published datasets have a default.

    Raises:
        UserError: There is no such dataset, or an option is wrong.
    """
    classes = {cls.__name__.lower(): cls for cls in dataset_classes() if not inspect.isabstract(cls)}
    classes |= {cls.name: cls for cls in classes.values() if cls.name}
    if cls := classes.get(name.lower()):
        from afclip_lightning.discovery.sections import instantiate  # imported here, because a name needs no parser

        return instantiate(cls, [*options, *([] if root is None else [f"--root={root}"])])
    for cls in dict.fromkeys(classes.values()):
        for dataset in _variants(cls):
            if dataset.name == name.lower():
                dataset.root = root or dataset.root
                if options:
                    raise UserError(f"{name} takes no {options[0]}; name the class {cls.__name__} to give its options.")
                return dataset
    known = ", ".join(dataset.name for dataset in catalogue())
    raise UserError(f"There is no dataset {name!r}. There are: {known}; or a class, such as Folder.")


def list_datasets() -> list[dict[str, Any]]:
    """Returns one row per dataset: its name, class, categories, counts, size, licence and source."""
    return [
        {
            "name": dataset.name,
            "class": type(dataset).__name__,
            "categories": len(dataset.find_categories()),
            "train_normal": _total(dataset, 0),
            "test_normal": _total(dataset, 1),
            "test_anomalous": _total(dataset, 2),
            "size": dataset.size,
            "licence": dataset.licence,
            "source": " ".join(dataset.source.split()),
        }
        for dataset in catalogue()
    ]


def _total(dataset: AnomalyDataModule, index: int) -> int | None:
    counts = [published[index] for published in dataset.published_counts.values()]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else dataset.published_total[index]
