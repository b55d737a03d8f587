"""Which value of an image of more than 8 bits is white."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from afclip_runtime.errors import DatasetError
from afclip_runtime.images.picture import DEEPEST
from afclip_runtime.images.reader import read

White: TypeAlias = Literal["auto", "bits"] | int

LOOKED_AT = 64  # images of a set that its white is estimated from


def check_white(white: Any) -> None:
    """Checks a white level.

    Raises:
        ValueError: It is none.
    """
    number = isinstance(white, int) and not isinstance(white, bool) and 1 <= white <= DEEPEST
    if white not in ("auto", "bits") and not number:
        raise ValueError(f"white must be auto, bits, or a number from 1 to {DEEPEST}, got {white!r}")


def white_value(white: White, images: Iterable[Path]) -> int | None:
    """Returns the value that becomes 255; `None` for the largest that an image's own bits hold.

    `auto` is the smallest 2^k - 1, from 8 bits on, that no value of up to 64 images exceeds which lie evenly over the
    set; images of 8 bits say nothing, and files that cannot be read are left to who reads them.

    Args:
        white: The level: `auto`, `bits`, or a number: up to 16 of bits, above of the value itself.
        images: The images of the set, in a fixed order; walked for `auto` only.

    Raises:
        ValueError: It is none of these.
    """
    check_white(white)
    if isinstance(white, int):
        return white if white > 16 else 2**white - 1
    return None if white == "bits" else _estimated(sorted(images))


def _estimated(images: Sequence[Path]) -> int | None:
    highest = 0
    for path in images[:: max(1, -(-len(images) // LOOKED_AT))]:
        try:
            highest = max(highest, read(path).highest)
        except DatasetError:
            continue
    return 2 ** max(8, min(16, highest.bit_length())) - 1 if highest else None


def white_from_text(text: str) -> White:
    """Returns a level from a command line.

    Raises:
        ValueError: It is none.
    """
    white: Any = int(text) if text.isdecimal() else text
    check_white(white)
    return white
