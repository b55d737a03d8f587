"""The card of a head: training data, results, its own thresholds, limits and licence."""

from pathlib import Path
from typing import Annotated, Any

import msgspec

from afclip_lightning.results import METRICS
from afclip_runtime.errors import UserError
from afclip_runtime.files import read_yaml, to_type
from afclip_runtime.thresholds import DefaultThresholds

Count = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
REMEDY = "Correct the card: `afclip head show --help` says what one holds."


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a card. An unknown field is an error."""


class TrainedOn(_Strict, frozen=True):
    """Images that a head was trained on.

    Attributes:
        dataset: Name of the dataset.
        categories: Categories that were used; empty if unknown.
        images: Number of images; `None` if unknown.
        licence: Licence of the images.
    """

    dataset: str
    categories: tuple[str, ...] = ()
    images: Count | None = None
    licence: str = ""


class Measured(_Strict, frozen=True):
    """The results of a head on a dataset.

    Attributes:
        dataset: Name of the dataset.
        metrics: Mean over the seeds of each measured metric of `results.METRICS`, in [0, 1].
        spread: Standard deviation over the seeds of each metric, in [0, 1].
        categories: Categories of the results; empty for all.
        images: Number of test images; `None` if unknown.
        k_shot: Number of few-shot images per category.
        note: Further note, for example that the dataset was used for a choice.
    """

    dataset: str
    metrics: dict[str, Share]
    spread: dict[str, Share] = {}
    categories: tuple[str, ...] = ()
    images: Count | None = None
    k_shot: Count = 0
    note: str = ""

    def __post_init__(self) -> None:
        if unknown := (self.metrics.keys() | self.spread.keys()) - set(METRICS):
            raise ValueError(f"there is no metric {', '.join(sorted(unknown))}; there are {', '.join(METRICS)}")


class Card(_Strict, frozen=True, kw_only=True):
    """The description of a head.

    Attributes:
        title: Title of the head, in one line.
        trained_on: Images that it was trained on.
        seeds: Seeds of its training; several if the results are means over them.
        epochs: Epochs of its training; `None` if unknown.
        results: Results on datasets.
        thresholds: Thresholds of the head; `None` without thresholds.
        limits: Limits of the head, one sentence each.
        licence: Licence of the head; empty if it has none.
        sources: Papers, code or data that it is based on, one line each.
        version: Version of afclip_lightning that made it.
        date: Date when it was made, in UTC, as `2026-01-31`.
    """

    title: str = ""
    trained_on: tuple[TrainedOn, ...] = ()
    seeds: tuple[int, ...] = ()
    epochs: Annotated[float, msgspec.Meta(ge=0)] | None = None
    results: tuple[Measured, ...] = ()
    thresholds: DefaultThresholds | None = None
    limits: tuple[str, ...] = ()
    licence: str = ""
    sources: tuple[str, ...] = ()
    version: str = ""
    date: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the card as plain values."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


def card_from(value: Any, source: str, error: type[UserError] = UserError) -> Card:
    """Returns the card that plain values describe.

    Args:
        value: Plain values, as from `Card.to_dict`.
        source: Source of the values, the beginning of a message.
        error: Class of the error.

    Raises:
        UserError: A field is invalid. The message names the field and the expected value.
    """
    return to_type(value, Card, source, remedy=REMEDY, error=error)


def read_card(path: Path) -> Card:
    """Returns the card of a YAML file.

    Raises:
        UserError: The file cannot be read, or has a field that no card has.
    """
    return read_yaml(path, Card, remedy=REMEDY)
