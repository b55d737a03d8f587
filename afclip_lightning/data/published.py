"""What is published of a dataset: where it is from, how it lies on disk, how many images it has."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

Facts = TypeVar("Facts")
Counts = tuple[int | None, int | None, int | None]  # train normal, test normal, test anomalous; None = not published


class Published:
    """Facts about a dataset, as attributes of its class; nothing that is not known.

    Attributes:
        title: What tables and pages call it; empty for data of one's own.
        paper: Key of its paper in docs/references.bib; empty where there is none.
        url: Address of the page where it is obtained; empty where that is not known.
        labels: What is labelled.
        folder: Its folder in the one that holds all datasets; empty where that is its name.
        layout: What `root` must contain, as a few lines for a person.
        source: Where the dataset is obtained.
        licence: Licence of the dataset, or what is known of it.
        size: Rough size of the download; empty where it is not known.
        published_counts: Images per category as published; empty where there is nothing to compare with.
        saturates: Whether it says how much of each defect has to be found, so that sPRO is measured on it.
        published_total: Images of all the categories together, for sets that are not published category by category.
    """

    title: str = ""
    paper: str = ""
    url: str = ""
    labels: str = "image, pixel"
    folder: str = ""
    layout: str
    source: str
    licence: str = ""
    size: str = ""
    published_counts: Mapping[str, Counts] = MappingProxyType({})
    published_total: Counts = (None, None, None)
    saturates: bool = False


def facts_of(subset: str, known: Mapping[Any, Facts]) -> Facts:
    """Returns what is known of one subset of a family.

    Raises:
        ValueError: There is no such subset.
    """
    if subset not in known:
        raise ValueError(f"subset must be one of {', '.join(known)}; got {subset!r}")
    return known[subset]
