"""Writes a set: images, masks and their listing, which `Listing` reads without options.

The layout is `images/`, where each image keeps its path, `masks/` with the same paths, and `meta.json` as AnomalyCLIP's
scripts write it. The code of other methods also reads `meta.json`. MVTec AD's layout has no place for an anomalous
image with an unknown mask, for an image with several defects, or for two images that differ in their suffix only.

Existing files are never overwritten. An equal file stays, and a different file is an error. So a stopped run can
resume.
"""

import filecmp
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from afclip_runtime.errors import DatasetError, UserError
from afclip_runtime.files import atomic_path, read_bytes

IMAGES, MASKS, LISTING = "images", "masks", "meta.json"
BEGINNING = b'{\n  "train": {'  # first lines of a listing that this module writes
MOST_BYTES = 2**31  # size limit of a file that is compared

Placing = Literal["link", "copy"]


@dataclass(frozen=True)
class Item:
    """An image of the set.

    Attributes:
        category: Category of the image.
        split: `train` or `test`.
        image: Path below `images/`.
        label: 1 = anomalous, 0 = normal.
        has_mask: Whether it has a mask at the same path below `masks/`, with `.png` appended.
        defect_type: Defect types of the image.
    """

    category: str
    split: str
    image: PurePosixPath
    label: int
    has_mask: bool = False
    defect_type: str = ""

    @property
    def mask(self) -> str:
        """Returns the path of its mask below `masks/`."""
        return f"{self.image}.png"


def sets_below(folder: Path) -> list[Path]:
    """Returns the folders below a folder that hold a set of this program, so that its files are not used as input.

    Raises:
        UserError: A listing cannot be read.
    """
    listings = (path for path in sorted(folder.rglob(LISTING)) if path.parent != folder)
    found = (path for path in listings if path.is_file() and (path.parent / IMAGES).is_dir())
    return [path.parent for path in found if read_bytes(path, limit=MOST_BYTES).startswith(BEGINNING)]


def place_image(source: Path, target: Path, how: Placing) -> bool:
    """Puts an image into the set as a hard link or a copy, and returns whether it was copied.

    A hard link takes no space. If the file system has no hard links, or the set lies on another file system, the image
    is copied.

    Raises:
        UserError: Another file exists there, or the file cannot be written.
    """
    if os.path.lexists(target):
        if not target.is_file() or not (os.path.samefile(source, target) or filecmp.cmp(source, target, shallow=False)):
            raise _differs(target)
        return False
    with atomic_path(target, durable=False) as temporary:
        if how == "link":
            with suppress(OSError):
                os.link(os.path.realpath(source), temporary)
                return False
        shutil.copyfile(source, temporary)
    return True


def write_new(target: Path, content: bytes) -> None:
    """Writes a file of the set, unless it exists already.

    Raises:
        UserError: A file with other contents exists, or the file cannot be written.
    """
    if os.path.lexists(target):
        if not target.is_file() or read_bytes(target, limit=MOST_BYTES) != content:
            raise _differs(target)
        return
    with atomic_path(target, durable=False) as temporary:
        temporary.write_bytes(content)


def listing_of(items: Iterable[Item]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Returns the content of `meta.json`: images by split and category, with paths relative to the set's folder."""
    content: dict[str, dict[str, list[dict[str, Any]]]] = {"train": {}, "test": {}}
    for item in sorted(items, key=lambda item: (item.category, str(item.image))):
        content[item.split].setdefault(item.category, []).append(
            {
                "img_path": f"{IMAGES}/{item.image}",
                "mask_path": f"{MASKS}/{item.mask}" if item.has_mask else "",
                "cls_name": item.category,
                "specie_name": item.defect_type if item.label else "good",
                "anomaly": item.label,
            }
        )
    return content


def check_read_back(folder: Path, items: Iterable[Item]) -> None:
    """Raises if `Listing` does not read the set as intended.

    Raises:
        DatasetError: `Listing` reads other images.
    """
    from afclip_lightning.datasets.listing import Listing

    dataset = Listing(folder)
    wanted: dict[tuple[str, str], int] = {}
    for item in items:
        wanted[item.category, item.split] = wanted.get((item.category, item.split), 0) + 1
    for (category, split), count in wanted.items():
        found = len(dataset.find_samples(category, "train" if split == "train" else "test"))
        if found != count:
            raise DatasetError(f"{folder / LISTING}: {found} images of {category!r} are read back, of {count}.")


def _differs(target: Path) -> UserError:
    return UserError(
        f"{target} already exists with other content. Nothing was overwritten. Choose another --out, or remove it."
    )
