"""A contact sheet: one image with pictures of every category and defect type in rows, with outlined masks."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from afclip_lightning.data.overview import Group, Look, Overview
from afclip_runtime.errors import counted, shown
from afclip_runtime.files import atomic_path

TILE, SMALL_TILE = 176, 128  # pixels of a tile; the small one is for sheets of many rows
MANY_ROWS = 30
LABEL, GAP, CAPTION = 200, 12, 18  # pixels: width of a row's label, gap between tiles, height of a caption
TITLE, HEADING = 78, 34  # pixels: heights of the title and of a category's heading
BACK, PLACE, INK, SOFT, LOUD = (247, 247, 245), (232, 232, 230), (28, 31, 35), (91, 98, 107), (180, 69, 31)
LINE, HALO = (255, 214, 0), (0, 0, 0)  # colours of an outline and of its border, visible on any picture


@dataclass(frozen=True)
class _Block:
    """The rows of a category."""

    category: str
    groups: tuple[Group, ...]
    height: int


def draw(overview: Overview) -> Image.Image:
    """Returns the sheet, RGB. Its number of columns makes it about as wide as high.

    Args:
        overview: Overview of the dataset.
    """
    tile = TILE if len(overview.groups) <= MANY_ROWS else SMALL_TILE
    blocks = []
    for category, found in groupby(overview.groups, key=lambda group: group.category):
        groups = tuple(found)
        blocks.append(_Block(category, groups, HEADING + sum(_row_height(group, tile) for group in groups)))
    width = LABEL + max(3, *(len(group.shown) for group in overview.groups)) * (tile + GAP) + 2 * GAP
    columns = _in_columns(blocks, width)
    height = TITLE + max(sum(block.height for block in column) for column in columns) + GAP
    sheet = Image.new("RGB", (len(columns) * width, height), BACK)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), _cut(overview.name, 24, sheet.width - 2 * GAP), INK, _font(24))
    pen.text((GAP, GAP + 34), _cut(summary(overview), 14, sheet.width - 2 * GAP), SOFT, _font(14))
    for index, column in enumerate(columns):
        left, top = index * width, TITLE
        for block in column:
            pen.line((left + GAP, top + 2, left + width - GAP, top + 2), PLACE, 2)
            pen.text((left + GAP, top + 7), _cut(block.category, 17, width - 2 * GAP), INK, _font(17))
            y = top + HEADING
            for group in block.groups:
                _draw_row(sheet, pen, group, left, y, tile)
                y += _row_height(group, tile)
            top += block.height
    return sheet


def _row_height(group: Group, tile: int) -> int:
    close = any(look.close_up is not None for look in group.shown)
    return tile + CAPTION + GAP + (tile // 2 if close else 0)


def _in_columns(blocks: Sequence[_Block], width: int) -> list[list[_Block]]:
    """Returns the blocks in columns of that width, of about equal height."""
    total = sum(block.height for block in blocks)
    count = min(max(1, round(math.sqrt(total / width))), len(blocks))
    columns: list[list[_Block]] = [[]]
    before = 0
    for block in blocks:
        # the position of its middle decides its column
        if columns[-1] and (before + block.height / 2) * count >= len(columns) * total:
            columns.append([])
        columns[-1].append(block)
        before += block.height
    return columns


def write(path: Path, overview: Overview) -> None:
    """Writes the sheet as a PNG file, atomically.

    Raises:
        UserError: The file cannot be written.
    """
    sheet = draw(overview)
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")


def summary(overview: Overview) -> str:
    """Returns a line with the numbers of images and masks."""
    kinds = [(kind, overview.images_of(kind)) for kind in ("normal", "anomalous", "not labelled")]
    parts = [
        f"{overview.images:,} images of {counted(len(overview.counts), 'category', 'categories')}",
        *(f"{count:,} {kind}" for kind, count in kinds if count),
        f"{overview.masks:,} with a mask" if overview.masks else "no masks",
    ]
    return ", ".join(parts)


def how_many(group: Group) -> str:
    """Returns a text with the number of a group's images, and of those shown."""
    images = counted(group.images, "image")
    return f"{len(group.shown)} of {images}" if len(group.shown) < group.images else images


def outlined(look: Look, width: int, height: int) -> np.ndarray:
    """Returns the picture of a look with its outlines drawn in, `[height, width, 3]`, uint8, RGB.

    Args:
        look: Look with a picture.
        width: Width in pixels.
        height: Height in pixels.
    """
    assert look.picture is not None
    drawn = _resized(look.picture, width, height)
    scale = (
        np.array([width / look.picture.shape[1], height / look.picture.shape[0]]) * 16
    )  # in sixteenths of a pixel, for OpenCV
    lines = [np.rint(line * scale - 8).astype(np.int32) for line in look.outline]
    for colour, thickness in ((HALO, 3), (LINE, 1), (LINE, 1)):  # twice: a single line is faint between pixels
        cv2.polylines(drawn, lines, True, colour, thickness, cv2.LINE_AA, shift=4)
    return drawn


def _draw_row(sheet: Image.Image, pen: ImageDraw.ImageDraw, group: Group, left: int, top: int, tile: int) -> None:
    label = [f"{group.split}, {group.kind}", group.defect_type, how_many(group)]
    if group.kind == "anomalous":
        label.append(f"{group.masks:,} with a mask" if group.masks else "no masks")
    if group.median is not None:
        label.append(f"median area {share(group.median)}")
    y = top
    for index, text in enumerate(filter(None, label)):
        strong = text == group.defect_type or (index == 0 and not group.defect_type)
        for line in _wrapped(text, 14 if strong else 13, LABEL - GAP, 3):
            pen.text((left + GAP, y), line, INK if strong else SOFT, _font(14 if strong else 13))
            y += 18
    for column, look in enumerate(group.shown):
        _draw_tile(sheet, pen, look, left + LABEL + GAP + column * (tile + GAP), top, tile)


def _draw_tile(sheet: Image.Image, pen: ImageDraw.ImageDraw, look: Look, x: int, y: int, tile: int) -> None:
    pen.rectangle((x, y, x + tile - 1, y + tile - 1), PLACE)
    if look.picture is not None:
        size, corner = _fit(look.picture, tile, tile)
        sheet.paste(Image.fromarray(outlined(look, *size)), (x + corner[0], y + corner[1]))
    elif look.problem:
        reason = look.problem.removeprefix(f"{look.sample.image_path}: ")
        for index, line in enumerate(["cannot be read", *_wrapped(reason, 12, tile - 12, 6)]):
            pen.text((x + 6, y + 6 + 16 * index), line, SOFT if index else LOUD, _font(12))
    name = look.sample.image_path.name
    if look.picture is not None and look.problem:
        name = f"no mask read: {name}"
    if look.close_up is not None:
        size, corner = _fit(look.close_up, tile, tile // 2 - 2)
        sheet.paste(Image.fromarray(_resized(look.close_up, *size)), (x + corner[0], y + tile + 2))
        y += tile // 2
    pen.text((x, y + tile + 2), _cut(name, 12, tile), LOUD if look.problem else SOFT, _font(12))


def _fit(picture: np.ndarray, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns width and height of a picture in a tile, and its offset from the tile's corner."""
    scale = min(width / picture.shape[1], height / picture.shape[0])
    size = max(round(picture.shape[1] * scale), 1), max(round(picture.shape[0] * scale), 1)
    return size, ((width - size[0]) // 2, (height - size[1]) // 2)


def _resized(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """Returns a picture at another size. Pixels that become larger stay squares."""
    factor = width / picture.shape[1]
    inter = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR if factor < 3 else cv2.INTER_NEAREST
    return cv2.resize(picture, (width, height), interpolation=inter)


def share(value: float) -> str:
    """Returns a share of an image in percent, with two significant digits."""
    return f"{np.format_float_positional(100 * value, 2, fractional=False, trim='-')} %" if value < 0.995 else "100 %"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _cut(text: str, size: int, width: int) -> str:
    """Returns a text that fits a width. The middle of a longer text is left out: names differ at their ends."""
    font, text = _font(size), shown(text)
    if font.getlength(text) <= width:
        return text
    keep = len(text)
    while keep > 4 and font.getlength(f"{text[: keep // 2]}…{text[-(keep - keep // 2) :]}") > width:
        keep -= 1
    return f"{text[: keep // 2]}…{text[-(keep - keep // 2) :]}"


def _wrapped(text: str, size: int, width: int, most: int) -> list[str]:
    """Returns a text in at most `most` lines of a width."""
    lines = list(_lines(text, size, width))
    return [*lines[: most - 1], _cut(" ".join(lines[most - 1 :]), size, width)] if len(lines) > most else lines


def _lines(text: str, size: int, width: int) -> Iterator[str]:
    font, line = _font(size), ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            yield _cut(line, size, width)
            line = word
        else:
            line = longer
    if line:
        yield _cut(line, size, width)
