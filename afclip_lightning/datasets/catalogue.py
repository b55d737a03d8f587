"""The datasets that there are, and which of them a folder seems to hold."""

import copy
from contextlib import suppress

import afclip_lightning.datasets
from afclip_lightning.data.base import AnomalyData, AnomalyDataModule
from afclip_lightning.data.images import list_folders
from afclip_lightning.discovery import descendants, import_submodules
from afclip_lightning.errors import DatasetNotFoundError


def dataset_classes() -> list[type[AnomalyDataModule]]:
    """Returns every class of datasets in this package, and those of one's own that were imported before."""
    import_submodules(afclip_lightning.datasets)
    return descendants(AnomalyDataModule)


def check(data: AnomalyData, stage: str = "fit") -> None:
    """Checks that what a stage reads is on disk in its layout, and says what a folder seems to hold instead.

    Raises:
        DatasetError: See `AnomalyData.check`.
    """
    try:
        data.check(stage)
    except DatasetNotFoundError as error:
        raise DatasetNotFoundError(error.dataset, error.problem, what_lies_there(error.dataset)) from None


def what_lies_there(wanted: AnomalyDataModule) -> str:
    """Returns a sentence on what the folder of `wanted` seems to hold instead, or an empty string."""
    if not wanted.root.is_dir():
        return ""

    def fits(dataset: AnomalyDataModule) -> bool:
        return bool(dataset.find_categories()) and not dataset.missing()

    for folder in (wanted.root.parent, *list_folders(wanted.root)):
        moved = copy.copy(wanted)
        moved.root = folder
        with suppress(Exception):  # here and below: a hint must never hide the error that it belongs to
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
