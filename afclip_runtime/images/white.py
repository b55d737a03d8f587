"""White level: the value of white in images of more than 8 bits."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from afclip_runtime.errors import DatasetError
from afclip_runtime.images.picture import DEEPEST
from afclip_runtime.images.reader import read

White: TypeAlias = Literal["auto", "bits"] | int

LOOKED_AT = 64  # images from which the white level of a set is estimated


def check_white(white: Any) -> None:
    """Checks a white level.

    Raises:
        ValueError: The white level is not `auto`, `bits` or a number from 1 to 65535.
    """
    number = isinstance(white, int) and not isinstance(white, bool) and 1 <= white <= DEEPEST
    if white not in ("auto", "bits") and not number:
        raise ValueError(f"white must be auto, bits, or a number from 1 to {DEEPEST}, got {white!r}")


def white_value(white: White, images: Iterable[Path]) -> int | None:
    """Returns the value that becomes 255; `None` for the largest value of the bits of each image.

    For `auto`, up to 64 images, evenly spread over the set, are read. The white level is the smallest 2^k - 1, k >= 8,
    that none of their values exceeds. Images of 8 bits and files that cannot be read are ignored.

    Args:
        white: The level: `auto`, `bits`, or a number. A number up to 16 is a number of bits, a larger one the value.
        images: Images of the set. Only `auto` reads them.

    Raises:
        ValueError: The level is none of these.
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
    """Parses a white level of a command line.

    Raises:
        ValueError: The text is not a white level.
    """
    white: Any = int(text) if text.isdecimal() else text
    check_white(white)
    return white
