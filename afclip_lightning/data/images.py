"""Finds, pairs and reads images and masks on disk."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from afclip_lightning.data.names import find, normal_form, twice
from afclip_runtime.errors import DatasetError, UnpairedError
from afclip_runtime.images.find import list_images
from afclip_runtime.images.picture import Picture, upright
from afclip_runtime.images.reader import Source, read, read_shape


def file_inside(root: Path, relative: str, where: str) -> Path:
    """Returns the file that a table names by its path from `root`.

    Args:
        root: Folder to which the table's paths are relative.
        relative: The path as the table gives it.
        where: The table's file and line, for the message.

    Raises:
        DatasetError: The path leads out of `root`, or there is no such file.
    """
    path = find(root, relative)
    base, absolute = os.path.abspath(root), os.path.abspath(path)  # strings, which are fast for many files
    if absolute != base and not absolute.startswith(base.rstrip(os.sep) + os.sep):
        raise DatasetError(f"{where}: {relative!r} leads out of {root}. Paths start at that folder and stay in it.")
    try:
        there = path.is_file()
    except OSError as error:  # such as a name that is too long, or a folder without read permission
        raise DatasetError(f"{where}: {relative[:80]!r} names no file ({error.strerror}). Correct the line.") from error
    if not there:
        raise DatasetError(f"{where}: there is no file {path}. Restore it or remove the line.")
    return path


def pair_masks(
    images: Sequence[Path],
    masks: Sequence[Path],
    suffixes: Sequence[str] = ("", "_mask"),
    roots: tuple[Path, Path] | None = None,
) -> dict[Path, Path]:
    """Returns the mask of every image, paired by file stem, in whatever Unicode form, and never by position.

    Args:
        images: Anomalous images.
        masks: Mask files. The stem of a mask is the stem of its image followed by one of `suffixes`.
        suffixes: Suffixes of a mask's stem after the image's stem.
        roots: Folder of the images and folder of the masks. Files are then paired within corresponding subfolders. By
            default, subfolders are ignored.

    Raises:
        UnpairedError: An image has no mask or two, a mask has no image, or two images share a stem. It names each file.
    """
    image_root, mask_root = roots or (None, None)
    problems: list[str] = []
    by_stem: dict[tuple[str | None, str], Path] = {}
    for image in images:
        twin = by_stem.setdefault(_place(image, image_root, image.stem), image)
        if twin is not image:
            alike = normal_form(twin.name) == normal_form(image.name)  # they would also look equal when printed
            names = twice(twin.name, image.name) if alike else f"{twin.name} beside it has the same name."
            problems.append(f"{image}: {names} A mask fits both. Rename one.")
    paired: dict[Path, Path] = {}
    for mask in masks:
        name = normal_form(mask.stem)
        stems = [name.removesuffix(s) for s in suffixes if name.endswith(s)]
        places = [_place(mask, mask_root, stem) for stem in stems]
        owner = next((by_stem[place] for place in places if place in by_stem), None)
        if owner is None:
            problems.append(f"{mask}: no image has the name of this mask. Restore the image or remove the mask.")
        elif owner in paired:
            problems.append(f"{owner}: has two masks, {paired[owner].name!a} and {mask.name!a}. Keep one.")
        else:
            paired[owner] = mask
    for image in by_stem.values():
        if image not in paired:
            problems.append(f"{image}: this anomalous image has no mask of the same name. Restore the mask.")
    if problems:
        raise UnpairedError(problems)
    return paired


def _place(path: Path, root: Path | None, stem: str) -> tuple[str | None, str]:
    folder = normal_form(path.parent.relative_to(root).as_posix()) if root else None
    return folder, normal_form(stem)


def read_image(source: Source, draft: int | None = None, white: int | None = None) -> np.ndarray:
    """Returns the image as `[H, W, 3]`, uint8, RGB, upright.

    Grey becomes three equal channels, more than 8 bits per channel are scaled to 8, a palette is replaced by its
    colours, and an alpha channel is dropped. In a file with several pages, the first is read; in TIFF files, the first
    that is not a thumbnail.

    Args:
        source: A file, the bytes of one, or a Pillow image.
        draft: Decode a JPEG at 1/2, 1/4 or 1/8 of its size if no side becomes smaller than this number of pixels; see
            `upright_shape`.
        white: The value that becomes 255, in images of more than 8 bits; by default the largest value of their bits.

    Raises:
        DatasetError: The image cannot be read or decoded to its end, has fractions or values outside of 0 to 65535, or
            has more than `MAX_PIXELS` pixels.
    """
    return read(source, draft=draft).rgb(white)


def mask_files(path: Path) -> list[Path]:
    """Returns the files of a mask: the file itself, or the images of a folder of masks, sorted by name.

    Raises:
        DatasetError: The folder has no image, or cannot be listed.
    """
    if not path.is_dir():
        return [path]
    if files := list_images(path):
        return files
    raise DatasetError(f"{path}: this folder of masks has no image. Restore its masks.")


def union_of(regions: Sequence[np.ndarray], files: Sequence[Path]) -> np.ndarray:
    """Returns the union of several masks, `[H, W]`.

    Args:
        regions: The masks, at least one.
        files: The file of each mask, for the message.

    Raises:
        DatasetError: The masks have different sizes.
    """
    for file, region in zip(files, regions, strict=True):
        if region.shape != regions[0].shape:
            raise DatasetError(
                f"{file}: the mask has another size than {files[0].name} beside it. Replace one of them."
            )
    return np.asarray(np.maximum.reduce(regions))


def read_mask(source: Source, threshold: int | None = None) -> np.ndarray:
    """Returns the mask as `[H, W]`, uint8 in {0, 1}, upright: any value above `threshold` in any colour is anomalous.

    A palette is replaced by its colours, so black is normal whatever its index. An alpha channel is ignored.

    Args:
        source: A file, the bytes of one, or a Pillow image; or a folder of masks, whose union is returned.
        threshold: Highest value of the file that is still normal. By default it is 0, or half of the range for lossy
            formats, which blur the edges of masks.

    Raises:
        DatasetError: The mask cannot be read or decoded to its end.
    """
    if isinstance(source, Path) and source.is_dir() and (files := list_images(source)):
        return union_of([read_mask(file, threshold) for file in files], files)
    return read(source, stored=True).region(threshold)


def read_mask_of(image: Picture | Path, mask_path: Path, threshold: int | None = None) -> tuple[np.ndarray, int]:
    """Returns the mask of an image, `[H, W]`, uint8 in {0, 1}, and the orientation by which it was turned upright.

    A mask with its own orientation is turned by that only (1 means not at all). A mask without one is turned like its
    image, if the image has an orientation and the sizes match only then: it was drawn on the image as stored.

    Args:
        image: The image, or its file, whose header is read.
        mask_path: The mask, or a folder of masks, whose union is returned.
        threshold: See `read_mask`.

    Raises:
        DatasetError: The image or the mask cannot be read, or their sizes differ.
    """
    if mask_path.is_dir():
        files = mask_files(mask_path)
        parts = [read_mask_of(image, file, threshold) for file in files]
        if len({turn for _, turn in parts}) > 1:
            raise DatasetError(f"{mask_path}: its masks have different orientations. Save them upright.")
        return union_of([region for region, _ in parts], files), parts[0][1]
    mask = read(mask_path, stored=True)
    if isinstance(image, Picture):
        name, shape, orientation = image.name, image.shape, image.orientation
    else:
        name, (shape, orientation) = str(image), read_shape(image)
    turn = turn_of(mask, shape, orientation)
    region = upright(mask.region(threshold), turn)
    if region.shape != shape:
        raise DatasetError(
            f"{mask_path}: the mask is {region.shape[1]}×{region.shape[0]} pixels and its image {name} is "
            f"{shape[1]}×{shape[0]}. Replace one of them."
        )
    return region, turn


def turn_of(mask: Picture, shape: tuple[int, int], orientation: int) -> int:
    """Returns the orientation, 1 to 8, by which a mask is turned to match its image; see `read_mask_of`.

    Args:
        mask: The mask.
        shape: Height and width of the upright image, in pixels.
        orientation: Orientation of the image in its file, 1 to 8.
    """
    lies = mask.shape != shape and mask.shape[::-1] == shape
    return orientation if lies and mask.orientation == 1 and orientation >= 5 else 1


def image_size(path: Path) -> tuple[int, int]:
    """Returns width and height of the upright image, from the file's header.

    Raises:
        DatasetError: The header cannot be read, or the image has more than `MAX_PIXELS` pixels.
    """
    height, width = upright_shape(path)
    return width, height


def upright_shape(path: Path) -> tuple[int, int]:
    """Returns height and width of the upright image, from the file's header. `draft` does not change them.

    Raises:
        DatasetError: The header cannot be read, or the image has more than `MAX_PIXELS` pixels.
    """
    return read_shape(path)[0]
