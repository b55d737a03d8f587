"""Checks of constructor arguments that many methods share."""

from collections.abc import Sequence


def require_layers(layers: Sequence[int]) -> None:
    """Refuses a method without tapped blocks.

    Raises:
        ValueError: There is none.
    """
    if not layers:
        raise ValueError("layers must name at least one block, got none")


def require_not_negative(**amounts: float) -> None:
    """Refuses the first of these arguments, given by name, that is below 0.

    Raises:
        ValueError: It is.
    """
    for name, value in amounts.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
