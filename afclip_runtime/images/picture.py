"""A decoded image: the values of the file, upright, larger = brighter, and their conversion to RGB and to masks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from afclip_runtime.errors import DatasetError

DEEPEST = 65535  # largest value that an image may hold
SMALL_SHARE = 8  # an image whose values stay below range / SMALL_SHARE is nearly black
NEARLY_BLACK = (
    "uses less than an eighth of its range, as 12 bits in a 16-bit file do, and looks nearly black to the model: set "
    "the white level (--white or, of a dataset, --loading.white: auto, or the number of bits)"
)

# Steps from an EXIF orientation to upright: transpose first, then flip the rows, then the columns.
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
        name: Name of the image in messages.
        values: `[H, W]`, or `[H, W, 3]` in RGB, in the precision of the file. Upright, larger = brighter, no alpha.
        bits: Bits per value as the file declares, for unsigned integers; else 0.
        shape: Height and width of the upright image in the file. A draft does not change them.
        orientation: EXIF orientation of the image in the file, 1 to 8.
        lossy: Whether the compression changed values. `None` if the file does not tell.
        notes: Remarks for the user, each the end of a sentence that begins with a number of images.
        texts: Texts of a PNG file, by name.
    """

    name: str
    values: np.ndarray
    bits: int
    shape: tuple[int, int]
    orientation: int = 1
    lossy: bool | None = False
    notes: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)

    def rgb(self, white: int | None = None) -> np.ndarray:
        """Returns the image in the form of a backbone's input: `[H, W, 3]`, uint8, RGB.

        Signed integers, and integers of more than 16 bits, count as 16-bit values if all are in 0 to 65535.

        Args:
            white: Value that becomes 255, for images of more than 8 bits. By default the largest value of their bits.

        Raises:
            DatasetError: The image contains floating-point values, or values outside 0 to 65535.
        """
        values = self.values
        if values.dtype != np.uint8:
            values = np.take(_eight_bits(white or 2 ** self._depth() - 1), values.astype(np.uint16, copy=False))
        if values.ndim == 3:
            return values
        rgb = np.empty((*values.shape, 3), np.uint8)
        for channel in range(3):  # one channel at a time is 4 times as fast as all at once
            rgb[..., channel] = values
        return rgb

    def _depth(self) -> int:
        if self.values.dtype.kind == "f":
            raise DatasetError(
                f"{self.name}: holds {self.values.dtype} values, and nothing says which of them is white. Scale them "
                "to 0 … 65535 and save it with 16 bits, or to 0 … 255 with 8."
            )
        if self.values.min() < 0 or self.values.max() > DEEPEST:
            raise DatasetError(
                f"{self.name}: holds {self.values.dtype} values outside of 0 … 65535. Scale them to that range and "
                "save it with 16 bits, or to 0 … 255 with 8."
            )
        return self.bits if 0 < self.bits <= 16 else 16

    @property
    def highest(self) -> int:
        """Returns the largest value of an image of more than 8 bits, 0 for other images."""
        return int(self.values.max()) if self.bits > 8 else 0

    def nearly_black(self, white: int | None = None) -> bool:
        """Returns whether an image of more than 8 bits uses less than an eighth of its range."""
        return 8 < self.bits <= 16 and self.highest < (white or 2**self.bits - 1) / SMALL_SHARE

    def remarks(self, white: int | None = None) -> tuple[str, ...]:
        """Returns the notes of the image, and a remark if it is nearly black."""
        return (*self.notes, NEARLY_BLACK) if self.nearly_black(white) else self.notes

    def region(self, threshold: int | None = None) -> np.ndarray:
        """Returns the anomalous region of a mask: `[H, W]`, uint8 in {0, 1}.

        Args:
            threshold: Highest normal value, in the values of the file. By default 0, or half of the range if lossy
                compression blurred the edges of the mask.
        """
        values = self.grey()
        return (values > self.cut(threshold)).astype(np.uint8)

    def cut(self, threshold: int | None = None) -> int:
        """Returns the highest normal value of a mask; see `region`."""
        if threshold is not None:
            return threshold
        half = (2**self.bits - 1) // 2
        if self.lossy is None:  # not known: if all values are small, they are labels, so the mask is lossless
            return half if self.values.max() > half else 0
        return half if self.lossy else 0

    def grey(self) -> np.ndarray:
        """Returns the maximum over the colour channels, `[H, W]`, which counts in a mask."""
        return self.values if self.values.ndim == 2 else self.values.max(axis=-1)


def say(notes: Mapping[str, int], noun: str = "image") -> list[str]:
    """Returns one sentence per note, with the number of images (or masks) that have it."""
    return [f"1 {noun} {note}." if count == 1 else f"{count} {noun}s: each {note}." for note, count in notes.items()]


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Returns values `[H, W, …]` turned upright by their EXIF orientation. An unknown orientation changes nothing."""
    transposed, rows, columns = _TURNS.get(orientation, _TURNS[1])
    if transposed:
        values = values.swapaxes(0, 1)
    return np.ascontiguousarray(values[:: -1 if rows else 1, :: -1 if columns else 1])


def inverted(values: np.ndarray, bits: int) -> np.ndarray:
    """Inverts values in which 0 is white, so that larger = brighter."""
    if values.dtype.kind == "f":
        return -values
    return ~values if values.dtype.kind == "i" else (2**bits - 1 - values).astype(values.dtype)


def widened(values: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    """Scales unsigned values of less than 8 bits to 8 bits, as for bilevel images. Returns values and bits."""
    if not 0 < bits < 8:
        return values, bits
    return np.rint(values.astype(np.float32) * (255 / (2**bits - 1))).astype(np.uint8), 8


@lru_cache
def _eight_bits(white: int) -> np.ndarray:
    """Returns the 8-bit value of each value from 0 to 65535."""
    return np.minimum(np.rint(np.arange(DEEPEST + 1) / (white / 255)), 255).astype(np.uint8)
