"""The card of a head: what it was trained on, what it reached, its own thresholds, its limits and its licence."""

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
    """A part of a card: a field that is not known is refused."""


class TrainedOn(_Strict, frozen=True):
    """Images that a head was trained on.

    Attributes:
        dataset: Name of the dataset.
        categories: Its categories that took part; empty where that is not known.
        images: How many images; `None` where that is not known.
        licence: Of the images.
    """

    dataset: str
    categories: tuple[str, ...] = ()
    images: Count | None = None
    licence: str = ""


class Measured(_Strict, frozen=True):
    """What a head reached on a dataset.

    Attributes:
        dataset: Name of the dataset.
        metrics: Mean over the seeds of each metric of `results.METRICS` that was measured, in [0, 1].
        spread: Standard deviation over the seeds, likewise.
        categories: That the numbers are of; empty for all.
        images: Test images; `None` where that is not known.
        k_shot: Few-shot images per category.
        note: What else a reader must know; such as that the dataset took part in a choice.
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
    """What a head says of itself.

    Attributes:
        title: What it is, in a line.
        trained_on: The images that it was trained on.
        seeds: Of its training; several where the numbers are over several.
        epochs: Of its training; `None` where that is not known.
        results: What it reached.
        thresholds: Its own; `None` for none.
        limits: What it cannot do, a sentence each.
        licence: Of the head; empty where nobody has given it one.
        sources: Papers, code or data that it rests on, a line each.
        version: Of afclip_lightning, which made it.
        date: When it was made, in UTC, as `2026-01-31`.
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
        value: As `Card.to_dict` gives it.
        source: Where it is from, as a message begins.
        error: Class of the error.

    Raises:
        UserError: Names the field and what is expected there.
    """
    return to_type(value, Card, source, remedy=REMEDY, error=error)


def read_card(path: Path) -> Card:
    """Returns the card of a YAML file.

    Raises:
        UserError: It cannot be read, or holds what no card does.
    """
    return read_yaml(path, Card, remedy=REMEDY)
