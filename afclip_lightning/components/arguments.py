"""Checks of constructor arguments that many methods share; each takes the arguments by name."""

from collections.abc import Sequence
from typing import Any, get_args


def require_layers(layers: Sequence[int]) -> None:
    """Refuses a method without tapped blocks.

    Raises:
        ValueError: There is none.
    """
    if not layers:
        raise ValueError("layers must name at least one block, got none")


def require_not_negative(**amounts: float) -> None:
    """Refuses the first of these arguments that is below 0.

    Raises:
        ValueError: It is.
    """
    for name, value in amounts.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")


def require_positive(**amounts: float) -> None:
    """Refuses these arguments where one is not above 0.

    Raises:
        ValueError: One is not; the message names them all.
    """
    if not all(value > 0 for value in amounts.values()):
        raise ValueError(f"{_and(amounts)} must be positive, got {_and(amounts.values())}")


def require_shares(**shares: float) -> None:
    """Refuses these arguments where one is not above 0 and at most 1.

    Raises:
        ValueError: One is not; the message names them all.
    """
    if not all(0 < value <= 1 for value in shares.values()):
        raise ValueError(f"{_and(shares)} must be in (0, 1], got {_and(shares.values())}")


def require_weights(**weights: float) -> None:
    """Refuses the first of these arguments that is not in [0, 1].

    Raises:
        ValueError: It is not.
    """
    for name, value in weights.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")


def require_one_of(choices: Any, **values: str | None) -> None:
    """Refuses the first of these arguments that is none of the choices, a `Literal`.

    Raises:
        ValueError: It is none of them.
    """
    for name, value in values.items():
        if value not in get_args(choices):
            raise ValueError(f"{name} must be one of {', '.join(map(str, get_args(choices)))}, got {value!r}")


def _and(words: Any) -> str:
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last
