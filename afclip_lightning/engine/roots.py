"""Writes the folders of a run's datasets into its config."""

from collections.abc import Iterator
from typing import Any

from jsonargparse import Namespace

from afclip_lightning.data.base import AnomalyData, AnomalyDataModule
from afclip_lightning.discovery.sections import instantiate_subclass


def fill_in_roots(data: Namespace) -> None:
    """Sets the default root of each dataset without one in a parsed `data` section.

    So the recorded config names the folder of the images. A repeated run reads the same images, whatever the value of
    `AFCLIP_DATA`.

    Raises:
        UserError: A dataset has no default root, or refuses its arguments.
    """
    for section in _without_root(data):
        dataset = instantiate_subclass(AnomalyData, section.clone())
        if isinstance(dataset, AnomalyDataModule):
            section.init_args.root = str(dataset.root)


def _without_root(value: Any) -> Iterator[Namespace]:
    if isinstance(value, list):
        for part in value:
            yield from _without_root(part)
    elif isinstance(value, Namespace) and "init_args" in value:
        if value.init_args.get("root", "") is None:
            yield value
        for part in vars(value.init_args).values():
            yield from _without_root(part)
