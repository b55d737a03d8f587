"""Files in a dataset's folders that are not read. They are reported, so that no count is silently wrong."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from afclip_lightning.data.names import holds_no_pictures
from afclip_runtime.errors import shown
from afclip_runtime.images.find import Found, list_folders, list_images, other_files

UNKNOWN_KIND = "of a kind that is not read as an image"
MISPLACED = "where no image is looked for"
NO_PICTURE = "in a folder whose name means masks, labels or depths"
NAMED = 3  # files per reason that a sentence names


@dataclass(frozen=True)
class LeftOut:
    """A file, or a folder with images, that a dataset does not read.

    Attributes:
        path: The file or folder.
        reason: Why it is not read.
    """

    path: Path
    reason: str


def directly_in(folder: Path) -> Found:
    """Returns the images and other files in a folder, without its subfolders."""
    return Found(list_images(folder), other_files(folder), {})


def unread(found: Found, read: Collection[Path] | None, image: str = MISPLACED) -> list[LeftOut]:
    """Returns the found files that are not read, each with its reason, except text, tables and archives.

    Args:
        found: Images and other files.
        read: Files that are read; `None` if they are not known, and every image counts as read.
        image: Reason for images.
    """
    images = [] if read is None else [path for path in found.images if path not in read]
    others = [path for path in found.others if read is None or path not in read]

    def reason(path: Path) -> str:
        return NO_PICTURE if image == MISPLACED and holds_no_pictures(path.parent.name) else image

    return [*(LeftOut(path, reason(path)) for path in images), *(LeftOut(path, UNKNOWN_KIND) for path in others)]


def unread_folders(folder: Path, known: Collection[str], reason: str) -> list[LeftOut]:
    """Returns the unknown folders in `folder` with images: directly in them, or up to two levels below.

    Args:
        folder: The folder. If it is missing, the result is empty.
        known: Names of folders that are read, or are left out on purpose.
        reason: Reason why they are not read.
    """
    others = (inner for inner in list_folders(folder) if inner.name not in known)
    return [LeftOut(inner, reason) for inner in others if _holds_images(inner, depth=2)]


def _holds_images(folder: Path, depth: int) -> bool:
    if list_images(folder):
        return True
    return depth > 0 and any(_holds_images(inner, depth - 1) for inner in list_folders(folder))


def sentences(left_out: Iterable[LeftOut], root: Path) -> list[str]:
    """Returns one sentence per reason: the number of files, the reason and the first names."""
    by_reason: dict[str, list[Path]] = {}
    for item in left_out:
        by_reason.setdefault(item.reason, []).append(item.path)
    found = []
    for reason, paths in by_reason.items():
        names = ", ".join(short(path, root) for path in paths[:NAMED]) + (" …" if len(paths) > NAMED else "")
        found.append(f"{len(paths)} left out, {reason}: {names}")
    return found


def short(path: Path, root: Path) -> str:
    """Returns a path relative to `root`, or the whole path if it is outside."""
    return shown(path.relative_to(root).as_posix() if path.is_relative_to(root) else path)
