"""Checks a submission for files that the server would refuse or score wrongly."""

import gzip
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from afclip_lightning.datasets.mvtec_ad_2 import PRIVATE, PRIVATE_IMAGES, MVTecAD2
from afclip_lightning.inspection.submission.layout import MAPS, MASKS, PUBLIC, Item
from afclip_runtime.errors import DatasetError, UserError, shown
from afclip_runtime.files import read_bytes
from afclip_runtime.images.reader import read, read_shape

MOST_BYTES = 2**28
"""Size limit of one map. The map of the dataset's largest image takes 9 MB in float16."""

DAMAGED = (tarfile.TarError, EOFError, zlib.error, OSError)
"""Errors raised by archives that are not `.tar.gz`, or are truncated."""

File = tuple[str, int, Callable[[], bytes]]
"""Path with `/`, size in bytes, and the function that reads the file."""
Progress = Callable[..., Any]


@dataclass
class Report:
    """The result of a check.

    Attributes:
        problems: Problems that the server would refuse, or that would spoil the scores, with their files.
        maps: Number of maps.
        masks: Number of masks.
    """

    problems: dict[str, list[str]] = field(default_factory=dict)
    maps: int = 0
    masks: int = 0

    def add(self, problem: str, name: str) -> None:
        """Adds a file to a problem."""
        self.problems.setdefault(problem, []).append(name)

    def lines(self) -> list[str]:
        """Returns one sentence per problem: the problem, the number of files, and the first file."""
        return [
            f"{problem}: {len(names)}, the first is {shown(names[0])}"
            if len(names) > 1
            else f"{problem}: {shown(*names)}"
            for problem, names in self.problems.items()
        ]


def check(place: Path, expected: Sequence[Item] | None, progress: Progress = iter) -> Report:
    """Returns the problems of a submission. Each file is read once, and nothing is unpacked to disk.

    Args:
        place: Folder of the submission, or the packed file.
        expected: Images that must have a map. `None` without the dataset: then only categories, parts and the number of
            maps are checked, and sizes are compared with those of the masks.
        progress: Wraps the loop over the files, and shows its progress.

    Raises:
        UserError: The folder or file does not exist, or is not a `.tar.gz`.
    """
    report = Report()
    images = {item.key: item.image for item in expected} if expected is not None else None
    shapes: dict[str, dict[str, tuple[int, int]]] = {MAPS: {}, MASKS: {}}
    for name, size, content in progress(_files(place)):
        parts = PurePosixPath(name).parts
        suffix = {MAPS: ".tiff", MASKS: ".png"}.get(parts[0])
        if suffix is None:
            report.add(f"files outside of {MAPS} and {MASKS}", name)
            continue
        key = "/".join(parts[1:])
        if not key.endswith(suffix) or len(parts) != 4 or parts[1] not in MVTecAD2.published or parts[2] not in PRIVATE:
            report.add(f"files that are not <category>/<part>/<name>{suffix}", name)
            continue
        key = key.removesuffix(suffix)
        if images is not None and key not in images:
            report.add("files of images that do not exist", name)
            continue
        if size > MOST_BYTES:
            report.add(f"files of more than {MOST_BYTES // 2**20} MB", name)
            continue
        looked = _map_problem if parts[0] == MAPS else _mask_problem
        problem, shape = looked(content)
        if problem:
            report.add(problem, name)
        shapes[parts[0]][key] = shape or (0, 0)
    report.maps, report.masks = len(shapes[MAPS]), len(shapes[MASKS])
    _complete(report, shapes, images)
    _sizes(report, shapes, images)
    return report


def _files(place: Path) -> Iterator[File]:
    """Yields the files of a submission. In a folder, it yields only those that would be packed."""
    if place.is_dir():
        if not (place / MAPS).is_dir():
            deeper = [path.name for path in sorted(place.iterdir()) if (path / MAPS).is_dir()]
            hint = f" It seems to be {place / deeper[0]}." if deeper else ""
            raise UserError(f"{place} has no folder {MAPS}, so it is not a submission.{hint}")
        for kind in (MAPS, MASKS):
            for folder, inner, names in os.walk(place / kind):
                inner[:] = sorted(set(inner) - {PUBLIC})
                for name in sorted(names):
                    path = Path(folder, name)
                    yield path.relative_to(place).as_posix(), path.stat().st_size, lambda p=path: read_bytes(p)  # type: ignore[misc]
        return
    if not place.is_file():
        raise UserError(f"{place} does not exist. Name the folder of a submission, or its tar.gz.")
    try:
        with gzip.open(place) as packed, tarfile.open(fileobj=packed, mode="r|") as archive:
            for member in archive:
                if member.isdir():
                    continue
                name = member.name.removeprefix("./")
                file = archive.extractfile(member) if member.isfile() else None
                yield name, member.size, partial(_member, place, file)
            while packed.read(2**20):  # to its end, to find a truncated archive
                pass
    except DAMAGED as error:
        raise _unreadable(place, error) from error


def _member(place: Path, file: IO[bytes] | None) -> bytes:
    """Returns the bytes of a file in an archive; no bytes if the entry is not a file."""
    try:
        return file.read() if file else b""
    except DAMAGED as error:
        raise _unreadable(place, error) from error


def _unreadable(place: Path, error: Exception) -> UserError:
    return UserError(f"{place}: cannot be read as a tar.gz ({error}). Pack it again with submit.")


def _map_problem(content: Callable[[], bytes]) -> tuple[str, tuple[int, int] | None]:
    """Returns the problem of a map, or an empty text, and its height and width."""
    try:
        found = read(content(), stored=True)
    except DatasetError as error:
        return f"maps that cannot be read ({str(error).partition('(')[2].partition(')')[0]})", None
    values = found.values
    if found.notes:
        return "maps with several pages", found.shape
    if values.ndim != 2:
        return f"maps that are not [H, W] ({[*values.shape]})", found.shape
    if values.dtype != np.float16:
        return f"maps that are not float16 ({values.dtype})", found.shape
    if not np.isfinite(values).all():
        return "maps with NaN or infinity", found.shape
    return "constant maps, which say nothing" if (values == values[0, 0]).all() else "", found.shape


def _mask_problem(content: Callable[[], bytes]) -> tuple[str, tuple[int, int] | None]:
    """Returns the problem of a mask, or an empty text, and its height and width."""
    held = content()
    try:
        found = read(held, stored=True)
    except DatasetError as error:
        return f"masks that cannot be read ({str(error).partition('(')[2].partition(')')[0]})", None
    if held[:4] != b"\x89PNG" or tuple(held[24:26]) != (8, 0):  # header: bits per value, and grey
        return "masks that are not grey PNG files of 8 bits", found.shape
    if np.isin(found.values, (0, 255)).all():
        return "", found.shape
    return "masks with values other than 0 and 255", found.shape


def _complete(report: Report, shapes: dict[str, dict[str, Any]], images: dict[str, Path] | None) -> None:
    """Adds the missing files to the report."""
    maps, masks = shapes[MAPS], shapes[MASKS]
    if images is not None:
        for key in sorted(images.keys() - maps.keys()):
            report.add("images without a map", key)
    else:
        there = {tuple(key.split("/")[:2]) for key in maps}
        for category in MVTecAD2.published:
            for part in PRIVATE:
                if (category, part) not in there:
                    report.add("parts without a map", f"{category}/{part}")
        if len(maps) != PRIVATE_IMAGES:
            report.add(f"the server expects {PRIVATE_IMAGES} maps", f"there are {len(maps)}")
    if masks:
        for key in sorted(maps.keys() - masks.keys()):
            report.add("maps without a mask, while others have one", key)
    for key in sorted(masks.keys() - maps.keys()):
        report.add("masks without a map", key)


def _sizes(report: Report, shapes: dict[str, dict[str, tuple[int, int]]], images: dict[str, Path] | None) -> None:
    """Adds the files of a wrong size to the report. Unreadable files are in it already."""
    for kind, found in shapes.items():
        for key, shape in found.items():
            if shape == (0, 0) or images is None:
                continue
            image = read_shape(images[key])[0]
            if kind == MASKS and shape != image:
                report.add("masks of another size than their image", _sizes_text(key, shape, image))
            elif kind == MAPS and (shape[0] > image[0] or shape[1] > image[1]):
                report.add("maps that are larger than their image", _sizes_text(key, shape, image))
    if images is None:
        for key, shape in shapes[MASKS].items():
            of_map = shapes[MAPS].get(key, (0, 0))
            if (0, 0) not in (shape, of_map) and (of_map[0] > shape[0] or of_map[1] > shape[1]):
                report.add("maps that are larger than their mask", _sizes_text(key, of_map, shape))


def _sizes_text(key: str, shape: tuple[int, int], other: tuple[int, int]) -> str:
    return f"{key} ({shape[1]}×{shape[0]}, and not {other[1]}×{other[0]})"
