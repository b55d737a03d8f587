"""Finds the image file for a path in an export: tools add prefixes, drop folders, and name paths of other machines."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from afclip_lightning.data.names import normal_form
from afclip_runtime.errors import DatasetError, UserError
from afclip_runtime.images.find import IMAGE_SUFFIXES, walk_images

UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")  # Label Studio's prefix of the names of uploaded files


class ImageFolder:
    """The images of a folder and its subfolders, found by the paths of an export.

    Args:
        root: The folder.
        leave_out: Folders that are not searched.

    Attributes:
        root: The folder.
        images: Images of the folder, sorted by path.

    Raises:
        UserError: The path is not a folder, or the folder has no image or cannot be listed.
    """

    def __init__(self, root: Path, leave_out: Sequence[Path] = ()) -> None:
        if not root.is_dir():
            raise UserError(f"{root} is not a folder. Name the folder of the images: --images DIR.")
        self.root = root
        self.images = walk_images(root, leave_out)
        if not self.images:
            raise UserError(f"{root}: holds no image. Name the folder of the images: --images DIR.")
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for image in self.images:
            self._by_name[normal_form(image.name)].append(image)

    def find(self, names: Sequence[str]) -> Path:
        """Returns the image for the first path that matches a file.

        A path matches the file at exactly this path in the folder; otherwise the only file whose path ends with it, or
        is its end; otherwise the file that matches without Label Studio's upload prefix. Files outside the folder are
        never considered.

        Args:
            names: Paths in the export, the likeliest first.

        Raises:
            UserError: A path leads out of the folder, several files match, or none does.
        """
        for name in (*names, *_without_prefix(names)):
            parts = tuple(part for part in PurePosixPath(normal_form(name).replace("\\", "/")).parts if part != "/")
            if ".." in parts or not parts:
                raise DatasetError(f"{name[:200]!r} leads out of {self.root}, or names nothing: refused")
            found = [(image, self._parts(image)) for image in self._by_name.get(parts[-1], ())]
            exact = [image for image, own in found if own == parts]
            ending = [image for image, own in found if own[-len(parts) :] == parts or parts[-len(own) :] == own]
            if len(exact or ending) == 1:
                return (exact or ending)[0]
            if len(exact or ending) > 1:
                names_found = " and ".join(str(image) for image in (exact or ending)[:2])
                raise DatasetError(
                    f"{name[:200]!r} may be {names_found}. Rename one, or give --images the folder that the tool's "
                    "paths start at"
                )
        raise DatasetError(f"there is no image {names[0][:200]!r} in {self.root}. Restore it, or correct --images")

    def relative(self, image: Path) -> PurePosixPath:
        """Returns the path of an image relative to the folder."""
        return PurePosixPath(image.relative_to(self.root).as_posix())

    def _parts(self, image: Path) -> tuple[str, ...]:
        return tuple(normal_form(part) for part in image.relative_to(self.root).parts)


def _without_prefix(names: Sequence[str]) -> list[str]:
    """Returns the paths of files that were uploaded to Label Studio, without its prefix."""
    split = [name.rpartition("/") for name in names]
    return [folder + slash + UPLOAD.sub("", name, count=1) for folder, slash, name in split if UPLOAD.match(name)]


def is_image_name(text: object) -> bool:
    """Returns whether a text looks like the path of an image."""
    return isinstance(text, str) and PurePosixPath(text.replace("\\", "/")).suffix.lower() in IMAGE_SUFFIXES
