"""Images and masks on disk: finding them, pairing them, reading them."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from afclip_lightning.data.names import find, normal_form, twice
from afclip_lightning.data.picture import Picture, upright
from afclip_lightning.data.reader import DICOM_MARK, DICOM_SUFFIXES, Source, is_dicom, read, read_shape
from afclip_lightning.errors import DatasetError, UnpairedError, UserError
from afclip_lightning.files import open_regular

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
IMAGE_SUFFIXES = (
    frozenset({".png", ".apng", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif", ".gif", ".tga", ".pcx", ".qoi"})
    | frozenset({".jp2", ".j2k", ".jpx", ".jpf", ".pbm", ".pgm", ".ppm", ".pnm", ".sgi", ".ras"})
    | JPEG_SUFFIXES
    | DICOM_SUFFIXES
)
DICOM_BY_CONTENT = frozenset({".ima"})  # and files without a suffix
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")  # whose slices are images
# What lies beside images and is none, in files that need no word.
OTHER_SUFFIXES = (
    frozenset({".txt", ".md", ".rst", ".log", ".html", ".htm", ".css", ".js", ".pdf", ".rtf", ".doc", ".docx", ".tex"})
    | frozenset({".json", ".jsonl", ".yaml", ".yml", ".xml", ".toml", ".ini", ".cfg", ".csv", ".tsv", ".xls", ".xlsx"})
    | frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".md5", ".sha1", ".sha256", ".bib"})
    | frozenset({".py", ".ipynb", ".sh", ".bat", ".m", ".ckpt", ".pt", ".pth", ".safetensors", ".onnx", ".lock"})
    | frozenset({".npy", ".npz", ".mat", ".db", ".lnk", ".url", ".tmp", ".part", ".bak"})
)
OTHER_NAMES = frozenset({"thumbs.db", "desktop.ini", "dicomdir"})


def list_images(folder: Path) -> list[Path]:
    """Returns the image files directly in `folder` but hidden ones, sorted by name; an absent folder has none.

    What an image file is, its suffix says. DICOM files are told by their content where they have no suffix, a number
    (part of a UID) or `.IMA` in its place. A link that leads nowhere, or to itself, counts as an image, and so does
    what has an image's name and is no file (a FIFO, a device): left out in silence it would change the counts.

    Raises:
        DatasetError: The folder cannot be listed.
    """
    return _sort(folder).images


def list_folders(folder: Path) -> list[Path]:
    """Returns the folders directly in `folder` but hidden ones, sorted by name; an absent folder has none.

    Raises:
        DatasetError: The folder cannot be listed, or a link that could be meant as a folder leads nowhere or to itself.
    """
    entries = _sort(folder)
    if entries.lost:
        raise DatasetError(_LOST.format(entries.lost[0]))
    return entries.folders


def walk_folders(folder: Path, leave_out: Collection[Path] = ()) -> Iterator[Path]:
    """Yields a folder and all below it but hidden ones, each before what lies in it; nothing if it does not exist.

    Args:
        folder: Where to begin.
        leave_out: Folders that are not stepped into.

    Raises:
        DatasetError: A folder cannot be listed, or a symbolic link leads nowhere or back to a folder that it lies in.
    """
    out = {os.path.abspath(path) for path in leave_out}
    return _walk(folder, out, ()) if folder.is_dir() else iter(())


def _walk(folder: Path, leave_out: Collection[str], above: tuple[str, ...]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:
        raise DatasetError(_BACK.format(folder, real))
    yield folder
    for inner in list_folders(folder):
        if os.path.abspath(inner) not in leave_out:
            yield from _walk(inner, leave_out, (*above, real))


def walk_images(folder: Path, leave_out: Collection[Path] = ()) -> list[Path]:
    """Returns the images in `folder` and all folders below it, sorted by path.

    Args:
        folder: Where to begin.
        leave_out: Folders that are not stepped into.

    Raises:
        DatasetError: A folder cannot be listed, or a symbolic link leads nowhere or back to a folder that it lies in.
    """
    found = survey(folder, leave_out)
    if found.problems:
        raise DatasetError(next(iter(found.problems.values())))
    return found.images


@dataclass(frozen=True)
class Found:
    """What lies in a folder and all folders below it.

    Attributes:
        images: The images, sorted by path.
        others: Files that are not read and look as if they were meant, sorted by path: of an unknown suffix
            (`.heic`, `.cr2`), or binary without one. Texts, tables, archives and hidden files are not among them.
        problems: By path, a sentence each: a folder that cannot be listed, a link that leads nowhere or back.
    """

    images: list[Path]
    others: list[Path]
    problems: dict[Path, str]


def survey(folder: Path, leave_out: Collection[Path] = ()) -> Found:
    """Returns the images in `folder` and all folders below it, and what else lies there; it goes on after a problem.

    Args:
        folder: Where to begin; an absent folder has nothing.
        leave_out: Folders that are not stepped into.
    """
    found = Found([], [], {})
    _survey(folder, leave_out, (), found)
    found.images.sort()
    found.others.sort()
    return found


def other_files(folder: Path) -> list[Path]:
    """Returns the `others` of `Found` that lie directly in `folder`, sorted by name.

    Raises:
        DatasetError: The folder cannot be listed.
    """
    return _sort(folder).others


def say_others(others: Sequence[Path]) -> str:
    """Returns a sentence that names files that are not read, with their number; empty for none."""
    if not others:
        return ""
    kinds = Counter(path.suffix.lower() or "without suffix" for path in others)
    named = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
    files = "1 file is" if len(others) == 1 else f"{len(others)} files are"
    return (
        f"{files} of no kind that is read here, and left out: {named}. The first: {others[0]}. Save what is an image "
        "as PNG, TIFF or JPEG."
    )


_BACK = "{}: this link leads back to {}, which it lies in. Remove the link."
_LOST = "{}: this link leads nowhere or to itself. Restore what it names, or remove it."


def _survey(folder: Path, leave_out: Collection[Path], above: tuple[str, ...], found: Found) -> None:
    real = os.path.realpath(folder)
    if real in above:
        found.problems[folder] = _BACK.format(folder, real)
        return
    try:
        entries = _sort(folder)
    except DatasetError as error:
        found.problems[folder] = str(error)
        return
    found.images.extend(entries.images)
    found.others.extend(entries.others)
    found.problems.update({link: _LOST.format(link) for link in entries.lost})
    for inner in entries.folders:
        if inner not in leave_out:
            _survey(inner, leave_out, (*above, real), found)


class _Entries(NamedTuple):
    """What lies directly in a folder, each sorted by name; `lost` are links that could be meant as folders."""

    images: list[Path]
    folders: list[Path]
    others: list[Path]
    lost: list[Path]


def _sort(folder: Path) -> _Entries:
    """Returns what lies directly in a folder but hidden entries.

    Raises:
        DatasetError: The folder cannot be listed.
    """
    try:
        with os.scandir(folder) as scan:
            entries = sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        entries = []
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be listed ({error.strerror}). Allow it to be read.") from error
    found = _Entries([], [], [], [])
    for entry in entries:
        path = folder / entry.name
        suffix = path.suffix.lower()
        if _is(entry.is_dir):
            found.folders.append(path)
        elif suffix in IMAGE_SUFFIXES:
            found.images.append(path)
        elif not _is(entry.is_file):
            if not suffix and _leads_nowhere(path):
                found.lost.append(path)
        elif entry.name.lower().endswith(VOLUME_SUFFIXES):
            found.others.append(path)
        elif suffix not in OTHER_SUFFIXES and entry.name.lower() not in OTHER_NAMES:
            unnamed = not suffix or suffix[1:].isdigit()
            start = first_bytes(path) if unnamed or suffix in DICOM_BY_CONTENT else b""
            if is_dicom(start):
                found.images.append(path)
            elif not unnamed or b"\0" in start:  # a text has no zero byte
                found.others.append(path)
    return found


def _is(what: Callable[[], bool]) -> bool:
    try:
        return what()
    except OSError:  # a link to itself, a closed folder
        return False


def first_bytes(path: Path) -> bytes:
    """Returns as much of a file's beginning as tells DICOM; nothing of a file that cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(DICOM_MARK.stop)
    except (OSError, UserError):
        return b""


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def file_inside(root: Path, relative: str, where: str) -> Path:
    """Returns the file that a table names by its path from `root`.

    Args:
        root: Folder that the table's paths start at.
        relative: The path as the table gives it.
        where: The table's file and line, for the message.

    Raises:
        DatasetError: The path leads out of `root`, or there is no such file.
    """
    path = find(root, relative)
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)):
        raise DatasetError(f"{where}: {relative!r} leads out of {root}. Paths start at that folder and stay in it.")
    try:
        there = path.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise DatasetError(f"{where}: {relative[:80]!r} names no file ({error.strerror}). Mend the line.") from error
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
        suffixes: What may follow the image's stem.
        roots: Folder of the images and folder of the masks, where files in subfolders are paired within equal
            subfolders; by default every file is taken to lie in one folder.

    Raises:
        UnpairedError: An image has no mask or two, a mask has no image, or two images share a stem; it names each
            file.
    """
    image_root, mask_root = roots or (None, None)
    problems: list[str] = []
    by_stem: dict[tuple[str | None, str], Path] = {}
    for image in images:
        twin = by_stem.setdefault(_place(image, image_root, image.stem), image)
        if twin is not image:
            alike = normal_form(twin.name) == normal_form(image.name)  # they would print alike, too
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

    Grey becomes three equal channels, more than 8 bits per channel are scaled to 8, a palette gives its colours and an
    alpha channel is dropped. Of a file with several pages the first is read, in TIFF files the first that is no
    thumbnail.

    Args:
        source: A file, the bytes of one, or a Pillow image.
        draft: Decode a JPEG at 1/2, 1/4 or 1/8 of its size, if no side falls below this many pixels; see
            `upright_shape`.
        white: The value that becomes 255, in images of more than 8 bits; by default the largest that their bits hold.

    Raises:
        DatasetError: It cannot be read or decoded to its end, holds fractions or values outside of 0 to 65535, or has
            more than `MAX_PIXELS` pixels.
    """
    return read(source, draft=draft).rgb(white)


def mask_files(path: Path) -> list[Path]:
    """Returns the files of a mask: itself, or, of a folder of masks, its images by name.

    Raises:
        DatasetError: The folder has no image, or cannot be listed.
    """
    if not path.is_dir():
        return [path]
    if files := list_images(path):
        return files
    raise DatasetError(f"{path}: this folder of masks has no image. Restore its masks.")


def union_of(regions: Sequence[np.ndarray], files: Sequence[Path]) -> np.ndarray:
    """Returns what any of several masks marks, `[H, W]`.

    Args:
        regions: What each marks, at least one.
        files: Where each is from, for the message.

    Raises:
        DatasetError: They are not of one size.
    """
    for file, region in zip(files, regions, strict=True):
        if region.shape != regions[0].shape:
            raise DatasetError(
                f"{file}: the mask has another size than {files[0].name} beside it. Replace one of them."
            )
    return np.asarray(np.maximum.reduce(regions))


def read_mask(source: Source, threshold: int | None = None) -> np.ndarray:
    """Returns the mask as `[H, W]`, uint8 in {0, 1}, upright: any value above `threshold` in any colour is anomalous.

    A palette counts by its colours, so black is normal whatever its index; an alpha channel says nothing of the region.

    Args:
        source: A file, the bytes of one, or a Pillow image; or a folder of masks, of which this is the union.
        threshold: Highest value of the file that is still normal. By default 0, and half of the range in files of lossy
            formats, which blur the edges of masks.

    Raises:
        DatasetError: It cannot be read or decoded to its end.
    """
    if isinstance(source, Path) and source.is_dir() and (files := list_images(source)):
        return union_of([read_mask(file, threshold) for file in files], files)
    return read(source, stored=True).region(threshold)


def read_mask_of(image: Picture | Path, mask_path: Path, threshold: int | None = None) -> tuple[np.ndarray, int]:
    """Returns the mask of an image, `[H, W]`, uint8 in {0, 1}, and how it was turned to lie as its image does.

    A mask with an orientation of its own is turned by that alone (1: no more). One without is turned as its image, if
    the image has one and the sizes fit only so: it was drawn on the image as that lies in the file.

    Args:
        image: The image, or its file, of which the header is read.
        mask_path: The mask, or a folder of masks, of which this is the union.
        threshold: See `read_mask`.

    Raises:
        DatasetError: One of them cannot be read, or they are not of one size.
    """
    if mask_path.is_dir():
        files = mask_files(mask_path)
        parts = [read_mask_of(image, file, threshold) for file in files]
        if len({turn for _, turn in parts}) > 1:
            raise DatasetError(f"{mask_path}: its masks do not all lie as one another. Save them upright.")
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
    """Returns how a mask has to be turned to lie as its image does, 1 to 8; see `read_mask_of`.

    Args:
        mask: The mask.
        shape: Height and width of the upright image.
        orientation: How the image lies in its file.
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
    """Returns height and width of the upright image, from the file's header: what `draft` does not change.

    Raises:
        DatasetError: The header cannot be read, or the image has more than `MAX_PIXELS` pixels.
    """
    return read_shape(path)[0]
