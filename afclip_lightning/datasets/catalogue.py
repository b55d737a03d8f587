"""The datasets that there are, which of them a folder seems to hold, and what their names must not be."""

import copy
from contextlib import suppress

from lightning.pytorch.utilities import rank_zero_warn

import afclip_lightning.datasets
from afclip_lightning.columns import MEAN
from afclip_lightning.data.base import AnomalyDataModule, indented
from afclip_lightning.data.images import list_folders
from afclip_lightning.data.names import class_name_tokens
from afclip_lightning.discovery import descendants, import_submodules
from afclip_lightning.errors import DatasetError, shown

LONGEST_CLASS_NAME = 48  # tokens: CLIP's text towers take 77; the sentence around it and learnable tokens have theirs


def dataset_classes() -> list[type[AnomalyDataModule]]:
    """Returns every class of datasets in this package, and those of one's own that were imported before."""
    import_submodules(afclip_lightning.datasets)
    return descendants(AnomalyDataModule)


def check_names(dataset: AnomalyDataModule) -> None:
    """Checks the names of a dataset's categories and what prompts call them.

    Raises:
        DatasetError: A category has a name that means something else in tables, or a class name is for none of them.
    """
    known = dataset.find_categories()
    if MEAN in known:
        raise DatasetError(
            f"{dataset.name}: a category is called {MEAN!r}, as the row of the mean over categories is. Rename it."
        )
    for category in dataset.selected_categories():
        if (tokens := class_name_tokens(dataset.class_name_of(category))) > LONGEST_CLASS_NAME:
            rank_zero_warn(  # refused where a prompt has it: not every method's prompts name the category
                f"{dataset.name}: the class name of {shown(category[:80])!r} has {tokens} tokens, and prompts have "
                f"room for about {LONGEST_CLASS_NAME}. Give it a shorter one, `class_names` of the dataset."
            )
    stray = set(dataset.class_names) - set(known)
    if not stray:
        return
    # what another set's config says of its own categories stays when a set of one's own is put in its place
    elsewhere = {name for cls in dataset_classes() for name in (*getattr(cls, "published", ()), *cls.class_names)}
    if typos := sorted(stray - elsewhere):
        raise DatasetError(
            f"{dataset.name}: class names are given for {', '.join(typos)}, which the dataset does not have. "
            f"It has: {', '.join(known)}."
        )
    rank_zero_warn(f"{dataset.name}: class names are given for {', '.join(sorted(stray))}, which it has not: not used.")


def not_found(dataset: AnomalyDataModule, problem: str) -> DatasetError:
    """Returns the error of a dataset that does not lie where it should: what is there, and how to get the dataset.

    Args:
        dataset: The dataset.
        problem: What is wrong.
    """
    root, hint = dataset.root, ""
    if root.is_dir():
        names = sorted(path.name for path in root.iterdir())
        problem += f"; {root} contains: {', '.join(names[:8]) or 'nothing'}" + (" …" if len(names) > 8 else "")
        hint = what_lies_there(dataset)
    return DatasetError(
        f"Dataset {dataset.name!r} was not found: {problem}.{hint}\n\n"
        f"Expected in {root}:\n{indented(dataset.layout)}\n\n"
        f"How to get it:\n{indented(dataset.source)}\n"
        f"  Licence: {dataset.licence or 'not known, see there'}\n\n"
        "Another place: set `root` in the config, or the variable AFCLIP_DATA, where the config uses it, to the "
        "folder that holds all datasets.\nTo see the project work without any dataset: make demo."
    )


def what_lies_there(wanted: AnomalyDataModule) -> str:
    """Returns a sentence on what the folder of `wanted` seems to hold instead, or an empty string."""

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
