"""Converts the export of an annotation tool to a set. Every shape is converted or reported."""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from afclip_lightning.annotations.labels import Judged, Labels, judge
from afclip_lightning.annotations.matching import ImageFolder
from afclip_lightning.annotations.rle import mask_to_png
from afclip_lightning.annotations.shapes import Annotated, Export, Shape
from afclip_lightning.annotations.writing import (
    IMAGES,
    LISTING,
    MASKS,
    Item,
    Placing,
    check_read_back,
    listing_of,
    place_image,
    sets_below,
    write_new,
)
from afclip_lightning.data.names import normal_form
from afclip_runtime.errors import DatasetError, UserError, shown, typed
from afclip_runtime.files import only_writer
from afclip_runtime.images.picture import upright
from afclip_runtime.images.rasterise import mark
from afclip_runtime.images.reader import read_shape

NAMED = 8  # maximum number of images in a message
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
NO_AREA = "without an area"
NOT_FINISHED = "nobody has finished annotating them"


@dataclass(frozen=True)
class Settings:
    """How a set is made.

    Attributes:
        labels: Meaning of the labels.
        category: Category of all images; empty if `category_by` decides.
        category_by: Source of the category: `folder` of the image, or `project` of the tool.
        empty: Use of images without a shape, if the tool does not say that somebody looked at them.
        split: `test` or `train` for all images, or `subset` for the split of the tool.
        line_width: Width of lines without a width of their own, in pixels.
    """

    labels: Labels
    category: str = ""
    category_by: str = ""
    empty: str = "error"
    split: str = "test"
    line_width: float = 1.0


@dataclass
class Found:
    """The result of a conversion.

    Attributes:
        items: Images of the set, with their files.
        masks: Masks of the images as PNG files, by the path of the image in the set.
        problems: One sentence per invalid image.
        left_out: Images that were left out, by reason.
        shapes: Number of shapes by kind and by outcome.
        normal: Labels that mean normal, with their number.
        clipped: Number of shapes that reach beyond their image.
        unmasked: Images with a defect without area, whose mask is therefore unknown.
    """

    items: list[tuple[Item, Path]] = field(default_factory=list)
    masks: dict[PurePosixPath, bytes] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    shapes: Counter[tuple[str, str]] = field(default_factory=Counter)
    normal: Counter[str] = field(default_factory=Counter)
    clipped: int = 0
    unmasked: list[str] = field(default_factory=list)


class _LeftOutError(Exception):
    """An image is left out on purpose. The message is the reason."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that are common to all annotation tools."""
    whole = parser.add_argument_group("images and categories")
    whole.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="folder of the images, with its subfolders"
    )
    category = whole.add_mutually_exclusive_group()
    category.add_argument(
        "--category", default="", metavar="NAME", help="category of all images; by default SET's name"
    )
    category.add_argument(
        "--category_by",
        choices=("folder", "project"),
        help="source of the category of an image: its folder in DIR, or the project in the tool",
    )
    whole.add_argument(
        "--split",
        choices=("test", "train", "subset"),
        default="test",
        help="split of all images; subset: as stated by the tool (%(default)s)",
    )
    whole.add_argument(
        "--place", choices=("link", "copy"), default="link", help="images as hard links, or copied (%(default)s)"
    )
    meaning = parser.add_argument_group("what labels mean")
    meaning.add_argument(
        "--normal_label",
        action="append",
        metavar="LABEL",
        help="label or tag that means normal; may be given again. By default those called good, OK, normal …",
    )
    meaning.add_argument(
        "--ignore_label",
        action="append",
        default=[],
        metavar="LABEL",
        help="label or tag to ignore; may be given again",
    )
    meaning.add_argument(
        "--empty",
        choices=("error", "normal", "skip"),
        default="error",
        help="meaning of images without a shape, unless the tool says that somebody looked at them (%(default)s)",
    )
    meaning.add_argument(
        "--line_width", type=_width, default=1.0, metavar="PX", help="width of lines, in pixels (%(default)s)"
    )
    parser.add_argument(
        "--on_error",
        choices=("stop", "skip"),
        default="stop",
        help="stop: write nothing if an image is wrong; skip: leave it out and name it, exit code 1 (%(default)s)",
    )


def _width(text: str) -> float:
    try:
        width = float(text)
    except ValueError:
        width = 0.0
    if not 1 <= width <= 1000:
        raise argparse.ArgumentTypeError(f"must be from 1 to 1000 pixels, got {text}")
    return width


def convert(options: argparse.Namespace, read: Callable[[argparse.Namespace], Export]) -> int:
    """Converts an export to a set, prints a summary, and returns the exit code.

    Args:
        options: Options of the command.
        read: Reads the export.

    Raises:
        UserError: The export or an image is wrong, or the set cannot be written. Nothing is written then.
    """
    normal = None if options.normal_label is None else frozenset(map(normal_form, options.normal_label))
    settings = Settings(
        Labels(normal, frozenset(map(normal_form, options.ignore_label))),
        normal_form(options.category or ("" if options.category_by else options.out.resolve().name)),
        options.category_by or "",
        options.empty,
        options.split,
        options.line_width,
    )
    inside = os.path.relpath(os.path.abspath(options.out), os.path.abspath(options.images))
    if inside == os.curdir:
        raise UserError(f"--out {options.out} is the folder of the images. Name another one, which may lie in it.")
    export = read(options)
    sets = sets_below(options.images)
    folder = ImageFolder(options.images, [options.images / inside, *sets])
    found = interpret(export, folder, settings)
    if found.problems and (options.on_error == "stop" or not found.items):
        raise DatasetError(_several(found.problems, options.on_error))
    if not found.items:
        why = "no image is left" if export.images else "it names no image"
        raise DatasetError("\n".join([f"{options.file}: {why}.", *_remarks(export), *_left_out(found)]))
    with only_writer(options.out):
        copied = write(options.out, found, options.place)
    for line in summary(export, found, copied):
        print(shown(line))
    for place in sets:
        if not os.path.samefile(place, options.out):
            print(f"{shown(place)} holds a set that was written before: its images were not looked at.")
    for problem in found.problems:
        print(f"left out: {problem}", file=sys.stderr)
    print(f"Next: {typed('datasets', 'check', 'Listing', '--root', options.out)}")
    print(f"Look: {typed('datasets', 'show', 'Listing', '--root', options.out)}")
    return 1 if found.problems else 0


def interpret(export: Export, folder: ImageFolder, settings: Settings) -> Found:
    """Converts an export with the images of a folder. It writes nothing."""
    found = Found()
    seen: dict[Path, str] = {}
    left_out: set[Path] = set()
    for image in export.images:
        if image.finished is False:
            found.left_out.setdefault(NOT_FINISHED, []).append(image.names[0])
            _count_left_out(found, image)
            with suppress(UserError):  # an unused image may be missing
                left_out.add(folder.find(image.names))
        else:
            _add(found, image, folder, settings, seen)
    rest = [image for image in folder.images if image not in seen and image not in left_out]
    if export.unlisted:
        for path in rest:
            bare = Annotated(f"{path} (without a file of the tool)", (str(folder.relative(path)),))
            _add(found, bare, folder, settings, seen)
    elif rest:
        found.left_out["the export does not name them"] = [str(image) for image in rest]
    return found


def _add(found: Found, image: Annotated, folder: ImageFolder, settings: Settings, seen: dict[Path, str]) -> None:
    """Adds an image, or the reason why it is left out or wrong, and counts its shapes."""
    judged = judge(image, settings.labels)
    try:
        path = folder.find(image.names)
        if path in seen:
            raise DatasetError(f"{path} is also named by {seen[path]}. Remove one of the entries")
        seen[path] = image.where
        if image.problem:
            raise DatasetError(image.problem)
        item, mask = _item(image, judged, path, folder, settings, found)
    except _LeftOutError as reason:
        found.left_out.setdefault(str(reason), []).append(image.names[0])
    except UserError as error:
        message = str(error)
        found.problems.append(f"{shown(image.where)}: {message}{'' if message.endswith('.') else '.'}")
    else:
        found.items.append((item, path))
        if mask is not None:
            found.masks[item.image] = mask_to_png(mask)
        fate = "in masks" if mask is not None else f"in no mask, since another shape of the image is {NO_AREA}"
        _count(found, image, settings.labels, fate)
        return
    _count_left_out(found, image)


def _count_left_out(found: Found, image: Annotated) -> None:
    found.shapes.update((shape.kind, "of images left out") for shape in image.shapes)
    found.shapes.update(("tag", "of images left out") for _ in image.tags)


def _count(found: Found, image: Annotated, labels: Labels, fate_of_areas: str) -> None:
    for shape in image.shapes:
        meaning = labels.meaning(shape.labels)
        fate = "for normal" if meaning == "normal" else "ignored"
        if meaning == "defect":
            fate = NO_AREA if shape.area is None else fate_of_areas
        found.shapes[shape.kind, fate] += 1
    named = [*image.tags, *(label for shape in image.shapes for label in shape.labels)]
    found.normal.update(label for label in named if labels.of(label) == "normal")
    fates = {"defect": "for a defect", "normal": "for normal", "ignored": "ignored"}
    found.shapes.update(("tag", fates[labels.meaning([tag])]) for tag in image.tags)


def _item(
    image: Annotated, judged: Judged, path: Path, folder: ImageFolder, settings: Settings, found: Found
) -> tuple[Item, np.ndarray | None]:
    """Returns an image of the set and its mask, if it has one."""
    split = SPLITS.get(image.subset.lower(), "") if settings.split == "subset" else settings.split
    if not split:
        raise _LeftOutError(f"their subset {image.subset!r} is neither train nor test")
    if judged.contradicts:
        names = judged.defect_type or "a shape without label"
        raise DatasetError(
            f"the tag {judged.contradicts!r} says that it is normal, but it has a defect ({names}). Correct it in the "
            "tool, or --ignore_label one of them"
        )
    label = judged.label
    if label is None:
        if settings.empty == "skip":
            raise _LeftOutError("they have no shape, and nothing says that they are normal (--empty skip)")
        if settings.empty == "error":
            raise DatasetError(
                "has no shape and no label, and the export does not say that somebody looked at it. Say what such "
                "images are: --empty normal, or --empty skip"
            )
        label = 0
    shape, orientation = read_shape(path)
    drawn, turn = _frame(image, shape, orientation)
    relative = folder.relative(path)
    category = _category(image, relative, settings)
    mask = None
    if judged.defects:
        missing = sorted({defect.kind for defect in judged.defects if defect.area is None})
        if missing:
            found.unmasked.append(f"{path} ({', '.join(missing)})")
        else:
            mask, clipped = _mask(judged.defects, drawn, settings.line_width)
            mask = upright(mask, turn)
            found.clipped += clipped
    return Item(category, split, relative, label, mask is not None, judged.defect_type), mask


def _frame(image: Annotated, shape: tuple[int, int], orientation: int) -> tuple[tuple[int, int], int]:
    """Returns height and width of the image on which shapes were drawn, and the EXIF orientation to apply to its mask.

    Browsers and most tools apply the EXIF orientation, so shapes are assumed to lie on the upright image. If the export
    states the size of the image without its orientation, they lie on that image.

    Raises:
        DatasetError: The export states another size than that of the image.
    """
    if image.size is None or image.size[::-1] == shape:
        return shape, 1
    if orientation >= 5 and image.size == shape:
        return shape[::-1], orientation
    width, height = image.size
    raise DatasetError(
        f"the export says that the image is {width}×{height} pixels, and it is {shape[1]}×{shape[0]}. Give --images "
        "those that were annotated"
    )


def _category(image: Annotated, relative: PurePosixPath, settings: Settings) -> str:
    if settings.category_by == "folder":
        if len(relative.parts) < 2:
            raise DatasetError("it lies in no folder that could be its category. Give --category NAME")
        return normal_form(relative.parts[0])
    if settings.category_by == "project":
        if not image.project:
            raise DatasetError("the export names no project. Give --category NAME")
        return normal_form(image.project)
    return settings.category


def _mask(defects: Sequence[Shape], shape: tuple[int, int], line_width: float) -> tuple[np.ndarray, int]:
    """Returns the union of shapes, `[H, W]`, bool, and how many of them reach beyond the image.

    Raises:
        DatasetError: A shape marks nothing, or cannot be decoded.
    """
    mask, clipped = np.zeros(shape, bool), 0
    for number, defect in enumerate(defects, 1):
        name = f"its {defect.kind} {number} ({', '.join(defect.labels) or 'without label'})"
        if defect.area is None:
            continue
        try:
            marked = mark(defect.area, shape, line_width)
        except ValueError as error:
            raise DatasetError(f"{name}: {error}. Correct it in the tool, and export again") from error
        if not marked.mask.any():
            where = "lies outside of the image" if marked.clipped else "marks no pixel"
            raise DatasetError(f"{name} {where}. Correct it in the tool, and export again")
        clipped += marked.clipped
        mask |= marked.mask
    return mask, clipped


def write(out: Path, found: Found, how: Placing) -> int:
    """Writes the set, the listing last, and returns how many images were copied.

    Raises:
        UserError: Other files exist there, or the folder cannot be written.
    """
    items = [item for item, _ in found.items]
    copied = 0
    for item, path in found.items:
        copied += place_image(path, out / IMAGES / item.image, how)
        if item.has_mask:
            write_new(out / MASKS / item.mask, found.masks[item.image])
    write_new(out / LISTING, (json.dumps(listing_of(items), indent=2) + "\n").encode("ascii"))
    check_read_back(out, items)
    return copied


def summary(export: Export, found: Found, copied: int) -> Iterator[str]:
    """Yields the lines of the summary of shapes and images."""
    total = sum(found.shapes.values())
    yield f"Shapes and tags in the export: {total}"
    for kind in sorted({kind for kind, _ in found.shapes}):
        fates = {fate: count for (name, fate), count in found.shapes.items() if name == kind}
        yield f"  {kind}: {sum(fates.values())} (" + ", ".join(f"{count} {fate}" for fate, count in fates.items()) + ")"
    for kind, count in export.nothing.items():
        yield f"  {kind}: {count} (not of defects)"
    if found.clipped:
        yield f"Shapes cut off at the border of their image: {found.clipped}"
    yield from _remarks(export)
    if found.unmasked:
        yield (
            f"Anomalous images without a mask, since one of their shapes has no area: {len(found.unmasked)} "
            f"({_some(found.unmasked)}). Draw this shape as an area to get a mask."
        )
    yield from _left_out(found)
    labels = {item.defect_type for item, _ in found.items if item.label}
    yield f"Defect types: {', '.join(sorted(filter(None, labels))) or 'none with a name'}"
    if found.normal:
        normal = ", ".join(f"{label} ({count})" for label, count in sorted(found.normal.items()))
        yield f"Labels that mean normal (--normal_label): {normal}"
    for category in sorted({item.category for item, _ in found.items}):
        of_it = [item for item, _ in found.items if item.category == category]
        anomalous, masks = sum(item.label for item in of_it), sum(item.has_mask for item in of_it)
        yield f"{shown(category)}: {len(of_it) - anomalous} normal, {anomalous} anomalous ({masks} with a mask)"
    if copied:
        yield f"Images copied, since hard links are not possible or --place copy was given: {copied}"


def _remarks(export: Export) -> Iterator[str]:
    yield from export.remarks
    borne = {label for image in export.images for label in image.tags}
    borne |= {label for image in export.images for shape in image.shapes for label in shape.labels}
    if unused := [label for label in dict.fromkeys(export.labels) if label not in borne]:
        yield f"Nothing is labelled {', '.join(map(repr, unused))}, which the tool offers."


def _left_out(found: Found) -> Iterator[str]:
    for reason, images in found.left_out.items():
        yield f"Images left out, as {reason}: {len(images)} ({_some(images)})"


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:NAMED])) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _several(problems: Sequence[str], on_error: str) -> str:
    more = f"\nand {len(problems) - NAMED} more." if len(problems) > NAMED else ""
    hint = "\nNothing was written. --on_error skip leaves such images out." if on_error == "stop" else ""
    return "\n".join(problems[:NAMED]) + more + hint
