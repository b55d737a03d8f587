"""Published facts of a dataset: its source, its layout on disk and its numbers of images."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

Facts = TypeVar("Facts")
Counts = tuple[int | None, int | None, int | None]  # train normal, test normal, test anomalous; None = not published


class Published:
    """Facts about a dataset, as attributes of its class. Unknown facts are empty.

    Attributes:
        title: Name in tables and pages; empty for the user's own data.
        paper: Key of its paper in docs/references.bib; empty if there is none.
        url: Address of the page where it is obtained; empty if it is not known.
        labels: Kinds of labels.
        folder: Its folder in the folder of all datasets; empty if that is its name.
        layout: Layout of `root`, as text of a few lines.
        source: Source of the dataset.
        licence: Licence of the dataset, as far as it is known.
        size: Rough size of the download; empty if it is not known.
        published_counts: Published number of images per category; empty if there are none.
        saturates: Whether the dataset defines how much of each defect has to be found, so that sPRO is measured.
        published_total: Published number of images of all categories together, if there are no numbers per category.
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
    """Returns the facts of one subset of a family.

    Raises:
        ValueError: There is no such subset.
    """
    if subset not in known:
        raise ValueError(f"subset must be one of {', '.join(known)}; got {subset!r}")
    return known[subset]
