"""Checks of constructor arguments that many methods share; each takes the arguments by name."""

from collections.abc import Sequence
from typing import Any, get_args


def require_layers(layers: Sequence[int]) -> None:
    """Raises if a method taps no block.

    Raises:
        ValueError: `layers` is empty.
    """
    if not layers:
        raise ValueError("layers must name at least one block, got none")


def require_not_negative(**amounts: float) -> None:
    """Raises on the first of these arguments that is below 0.

    Raises:
        ValueError: An argument is below 0.
    """
    for name, value in amounts.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")


def require_positive(**amounts: float) -> None:
    """Raises if one of these arguments is not above 0.

    Raises:
        ValueError: An argument is 0 or below. The message names all of them.
    """
    if not all(value > 0 for value in amounts.values()):
        raise ValueError(f"{_and(amounts)} must be positive, got {_and(amounts.values())}")


def require_shares(**shares: float) -> None:
    """Raises if one of these arguments is not above 0 and at most 1.

    Raises:
        ValueError: An argument is out of the range. The message names all of them.
    """
    if not all(0 < value <= 1 for value in shares.values()):
        raise ValueError(f"{_and(shares)} must be in (0, 1], got {_and(shares.values())}")


def require_weights(**weights: float) -> None:
    """Raises on the first of these arguments that is not in [0, 1].

    Raises:
        ValueError: An argument is out of the range.
    """
    for name, value in weights.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")


def require_one_of(choices: Any, **values: str | None) -> None:
    """Raises on the first of these arguments that is not one of the choices of a `Literal`.

    Raises:
        ValueError: An argument is not one of the choices.
    """
    for name, value in values.items():
        if value not in get_args(choices):
            raise ValueError(f"{name} must be one of {', '.join(map(str, get_args(choices)))}, got {value!r}")


def _and(words: Any) -> str:
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last
