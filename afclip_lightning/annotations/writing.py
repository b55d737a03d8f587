"""Writing a set of one's own: images, masks and the listing that names them, as `Listing` reads it without options.

The layout is `images/`, where each image keeps its path, `masks/` with the same paths, and `meta.json` as AnomalyCLIP's
scripts write it. MVTec AD's folders would not do: they have no place for an image that is anomalous and whose mask is
not known, for one with several defects, nor for two images that differ in their suffix only; and the code of other
methods reads `meta.json`.

Nothing that is there is overwritten: what is equal stays, and what differs is an error. So a stopped run goes on.
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
BEGINNING = b'{\n  "train": {'  # of the listing, as it is written here
MOST_BYTES = 2**31  # of a file that is compared

Placing = Literal["link", "copy"]


@dataclass(frozen=True)
class Item:
    """An image of the set.

    Attributes:
        category: Its category.
        split: `train` or `test`.
        image: Its path below `images/`.
        label: 1 = anomalous, 0 = normal.
        has_mask: Whether its mask lies at the same path below `masks/`, with `.png` after it.
        defect_type: What is wrong with it.
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
    """Returns the folders below a folder that hold a set of this program: its images and masks are nobody's photos.

    Raises:
        UserError: A listing cannot be read.
    """
    listings = (path for path in sorted(folder.rglob(LISTING)) if path.parent != folder)
    found = (path for path in listings if path.is_file() and (path.parent / IMAGES).is_dir())
    return [path.parent for path in found if read_bytes(path, limit=MOST_BYTES).startswith(BEGINNING)]


def place_image(source: Path, target: Path, how: Placing) -> bool:
    """Puts an image into the set: as a hard link, which takes no space, or as a copy; returns whether it was copied.

    Where a file system has no hard links, or the set lies on another one, it is copied.

    Raises:
        UserError: Another file is there already, or the place cannot be written.
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
    """Writes a file of the set, unless it is there already.

    Raises:
        UserError: A file with another content is there, or the place cannot be written.
    """
    if os.path.lexists(target):
        if not target.is_file() or read_bytes(target, limit=MOST_BYTES) != content:
            raise _differs(target)
        return
    with atomic_path(target, durable=False) as temporary:
        temporary.write_bytes(content)


def listing_of(items: Iterable[Item]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Returns the content of `meta.json`: images by split and category, with paths from the set's folder."""
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
    """Checks that `Listing` reads the set as it was meant.

    Raises:
        DatasetError: It does not.
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
        f"{target}: is there already, with another content; nothing was overwritten. Choose another --out, or remove "
        "it."
    )
