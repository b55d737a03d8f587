"""Masks as run lengths, in the three forms of annotation tools, and as PNG inside JSON.

Each decoder returns `[H, W]`, bool, and raises `ValueError` if the input is not a mask of that size. No decoder
allocates more than the expected size.
"""

import base64
import binascii
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from afclip_runtime.errors import DatasetError
from afclip_runtime.images.limits import check_size

RUN_SIZES = (3, 4, 8, 16)  # bits of a run length in Label Studio's own writer
MOST_PACKED = 2**28  # size limit of an unpacked picture inside JSON, in bytes


def runs_to_mask(counts: Sequence[int] | np.ndarray, height: int, width: int, by_columns: bool) -> np.ndarray:
    """Returns the mask of run lengths, whose first run is unmarked.

    Args:
        counts: Lengths of runs, unmarked and marked in turn.
        height: Height of the mask.
        width: Width of the mask.
        by_columns: Whether runs go down the columns, as in COCO, or along the rows, as in CVAT.

    Raises:
        ValueError: The lengths are not whole numbers from 0 on, or do not add up to the size.
    """
    check_size("the mask", width, height)
    lengths = np.asarray(counts)
    if lengths.ndim != 1 or (lengths.size and lengths.dtype.kind not in "iu"):
        raise ValueError("its run lengths are not whole numbers")
    lengths = lengths.astype(np.int64)
    total = sum(lengths.tolist())
    if (lengths < 0).any() or total != height * width:
        raise ValueError(f"its run lengths add up to {total:,} pixels, and {width}×{height} are {height * width:,}")
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return flat.reshape(width, height).T if by_columns else flat.reshape(height, width)


@dataclass(frozen=True)
class Place:
    """The position of a part of an image.

    Attributes:
        left: First column of the part.
        top: First row of the part.
        shape: Height and width of the image.
    """

    left: int
    top: int
    shape: tuple[int, int]


def mask_to_runs(mask: np.ndarray, by_columns: bool, place: Place | None = None) -> list[int]:
    """Returns the run lengths of a mask; the first run is unmarked. See `runs_to_mask`.

    Args:
        mask: `[h, w]`, bool.
        by_columns: Whether runs go down the columns.
        place: Position of the mask, if it is a part of an image. The rest of the image is unmarked.
    """
    whole = place or Place(0, 0, (mask.shape[0], mask.shape[1]))
    (height, width), left, top = whole.shape, whole.left, whole.top
    if by_columns:
        mask, height, width, left, top = mask.T, width, height, top, left
    steps = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    starts, ends = ((top + row) * width + left + column for row, column in (np.nonzero(steps == s) for s in (1, -1)))
    joined = ends[:-1] == starts[1:]  # the end of a line and the start of the next
    starts, ends = starts[np.append(True, ~joined)[: len(starts)]], ends[np.append(~joined, True)[: len(ends)]]
    edges = np.concatenate([[0], np.stack([starts, ends], axis=1).reshape(-1), [height * width]])
    lengths: list[int] = np.diff(edges).tolist()
    return lengths[:-1] if len(lengths) > 1 and not lengths[-1] else lengths


def coco_to_mask(value: Any, shape: tuple[int, int]) -> np.ndarray:
    """Returns the mask of COCO's run lengths, compressed to text or not.

    Args:
        value: `{"size": [height, width], "counts": text or a list}`.
        shape: Height and width of the image, which the mask must have.

    Raises:
        ValueError: The value is not such a mask.
    """
    size, counts = (value.get("size"), value.get("counts")) if isinstance(value, dict) else (None, None)
    if not isinstance(size, list) or [type(side) for side in size] != [int, int] or not counts:
        raise ValueError("its run lengths have no size, or no counts")
    if tuple(size) != shape:
        raise ValueError(f"its run lengths are of {size[1]}×{size[0]} pixels, and the image is {shape[1]}×{shape[0]}")
    lengths = _from_text(counts) if isinstance(counts, str) else counts
    return runs_to_mask(lengths, *shape, by_columns=True)


def mask_to_coco(mask: np.ndarray, place: Place | None = None) -> dict[str, Any]:
    """Returns a mask as COCO's compressed run lengths; see `mask_to_runs`."""
    size = place.shape if place else mask.shape
    return {"size": list(size), "counts": _to_text(mask_to_runs(mask, by_columns=True, place=place))}


# Own code, because pycocotools 2.0.11 fills a mask whose text is too short with uninitialised memory. A character has
# five bits, the lowest first, and a sixth that says whether more follow. From the fourth number on, numbers are
# differences from the last but one.


def _from_text(text: str) -> list[int]:
    lengths: list[int] = []
    value = shift = 0
    for code in text.encode("ascii", "replace"):
        digit = code - 48
        if not 0 <= digit < 64 or shift > 60:
            raise ValueError("its run lengths are not in COCO's text form")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (digit & 16) << (shift - 4)  # a negative number
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its run lengths are cut off")
    return lengths


def _to_text(lengths: Sequence[int]) -> str:
    codes = bytearray()
    for number, length in enumerate(lengths):
        value = length - (lengths[number - 2] if number > 2 else 0)
        more = True
        while more:
            digit = value & 31
            value >>= 5
            more = value != (-1 if digit & 16 else 0)
            codes.append(48 + digit + 32 * more)
    return codes.decode("ascii")


def brush_to_mask(numbers: Any, height: int, width: int) -> np.ndarray:
    """Returns the mask of Label Studio's brush: a bit stream with red, green, blue and alpha of each pixel.

    A pixel is marked if its alpha is not 0. The stream of the library `rle-pack` begins with the number of values (32
    bits), the bits per value less 1 (5 bits), and four sizes of lengths in bits, less 1 (4 bits each). Packets follow:
    1 bit, whether one value is repeated; 2 bits, which of the four sizes; a length less 1; the value, or as many
    values.

    Args:
        numbers: The bytes, as a list of numbers.
        height: Height of the image.
        width: Width of the image.

    Raises:
        ValueError: The stream is invalid or truncated, or has another size.
    """
    check_size("the mask", width, height)
    try:
        content = bytes(numbers if isinstance(numbers, list) else [-1])
    except (TypeError, ValueError) as error:
        raise ValueError("its run lengths are not a list of bytes") from error
    place = 0

    def take(bits: int) -> int:
        nonlocal place
        if place + bits > 8 * len(content):
            raise ValueError("its run lengths are cut off")
        window = int.from_bytes(content[place >> 3 : (place + bits + 7) >> 3], "big")
        place += bits
        return (window >> (-place % 8)) & ((1 << bits) - 1)

    count, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    if count != 4 * height * width or word > 8:
        raise ValueError(f"its run lengths are of {count // 4:,} pixels, and {width}×{height} are {height * width:,}")
    values = np.zeros(count, np.uint8)
    done = 0
    while done < count:
        repeated, size = take(1), sizes[take(2)]
        length = take(size) + 1
        if done + length > count:
            raise ValueError("its run lengths exceed its pixels")
        if repeated:
            values[done : done + length] = take(word)
        else:
            values[done : done + length] = [take(word) for _ in range(length)]
        done += length
    return values.reshape(height, width, 4)[..., 3] > 0


def mask_to_brush(mask: np.ndarray, place: Place | None = None) -> list[int]:
    """Returns a mask as Label Studio's brush; see `brush_to_mask` and `mask_to_runs`."""
    longest = 1 << RUN_SIZES[-1]
    runs = mask_to_runs(mask, by_columns=False, place=place)
    packets = [f"{4 * sum(runs):032b}", f"{8 - 1:05b}", *(f"{bits - 1:04b}" for bits in RUN_SIZES)]
    for number, run in enumerate(runs):
        value = f"{255 * (number % 2):08b}"
        left = 4 * run
        while left:
            length = min(left, longest)
            which = next(i for i, bits in enumerate(RUN_SIZES) if length <= 1 << bits)
            packets.append(f"1{which:02b}{length - 1:0{RUN_SIZES[which]}b}{value}")
            left -= length
    bits = "".join(packets)
    bits += "0" * (-len(bits) % 8)
    return list(int(bits, 2).to_bytes(len(bits) // 8, "big"))


def png_to_mask(text: Any, packed: bool = False) -> np.ndarray:
    """Returns the mask of a picture in base64: its opaque pixels, or without transparency, those that are not black.

    Args:
        text: The picture, or its `data:` URL.
        packed: Whether zlib may have packed it once more, as in Supervisely.

    Raises:
        ValueError: The text is not a picture, or the picture is too large.
    """
    if not isinstance(text, str):
        raise ValueError("its picture is not text")
    try:
        content = base64.b64decode(text.rpartition("base64,")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"its picture is not base64 ({error})") from error
    if packed and not content.startswith(b"\x89PNG"):
        content = _unpack(content)
    import cv2

    from afclip_runtime.images.reader import read_shape

    try:
        read_shape(content)  # its size is checked before it is decoded
    except DatasetError as error:
        raise ValueError(f"its picture: {error}") from error
    values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("its picture cannot be decoded")
    if values.ndim == 3:
        values = values[..., 3] if values.shape[2] == 4 else values.max(axis=2)
    return values > 0


def mask_to_png(mask: np.ndarray) -> bytes:
    """Returns a mask `[H, W]`, bool, as a PNG file of 0 and 255."""
    import cv2

    written, content = cv2.imencode(".png", mask.astype(np.uint8) * np.uint8(255), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not written:
        raise ValueError("the mask cannot be written as PNG")
    return bytes(content)


def _unpack(content: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(content, MOST_PACKED)
    except zlib.error as error:
        raise ValueError(f"its picture cannot be unpacked ({error})") from error
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise ValueError("its picture is cut off, or unpacks to more than is read")
    return unpacked


def whole_numbers(text: str, separators: str = ",") -> list[int]:
    """Returns the numbers of a text such as `3, 4, 5`.

    Raises:
        ValueError: A part is not a whole number of at most 18 digits.
    """
    parts: Iterable[str] = [text]
    for separator in separators:
        parts = chain.from_iterable(part.split(separator) for part in parts)
    stripped = [part.strip() for part in parts if part.strip()]
    if bad := next((part for part in stripped if not part.isascii() or not part.isdigit() or len(part) > 18), ""):
        raise ValueError(f"{bad[:30]!r} is not a whole number")
    return [int(part) for part in stripped]
