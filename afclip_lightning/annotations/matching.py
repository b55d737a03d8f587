"""Which file of a folder an export means by a path: tools add prefixes, drop folders, and name what is elsewhere."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from afclip_lightning.data.names import normal_form
from afclip_runtime.errors import DatasetError, UserError
from afclip_runtime.images.find import IMAGE_SUFFIXES, walk_images

UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")  # what Label Studio writes before the name of a file that is uploaded to it


class ImageFolder:
    """The images of a folder and of those below it, found by the paths that an export has.

    Args:
        root: The folder.
        leave_out: Folders that are not looked into.

    Attributes:
        root: The folder.
        images: Its images, sorted by path.

    Raises:
        UserError: It is no folder, has no image, or cannot be listed.
    """

    def __init__(self, root: Path, leave_out: Sequence[Path] = ()) -> None:
        if not root.is_dir():
            raise UserError(f"{root} is no folder. Name the folder of the images: --images DIR.")
        self.root = root
        self.images = walk_images(root, leave_out)
        if not self.images:
            raise UserError(f"{root}: holds no image. Name the folder of the images: --images DIR.")
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for image in self.images:
            self._by_name[normal_form(image.name)].append(image)

    def find(self, names: Sequence[str]) -> Path:
        """Returns the image that one of the paths of an export means, the first that means any.

        A path means the file at that very path in the folder; else the only file whose path in the folder ends with it,
        or ends it; else the one that it would mean without the prefix of an upload to Label Studio. No file outside of
        the folder is ever looked at.

        Args:
            names: Paths in the export, the likeliest first.

        Raises:
            UserError: A path leads out of the folder, it means several files, or there is none.
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
        raise DatasetError(f"there is no image {names[0][:200]!r} in {self.root}. Restore it, or mend --images")

    def relative(self, image: Path) -> PurePosixPath:
        """Returns the path of an image from the folder."""
        return PurePosixPath(image.relative_to(self.root).as_posix())

    def _parts(self, image: Path) -> tuple[str, ...]:
        return tuple(normal_form(part) for part in image.relative_to(self.root).parts)


def _without_prefix(names: Sequence[str]) -> list[str]:
    """Returns the paths of files that were uploaded to Label Studio as they were called before."""
    split = [name.rpartition("/") for name in names]
    return [folder + slash + UPLOAD.sub("", name, count=1) for folder, slash, name in split if UPLOAD.match(name)]


def is_image_name(text: object) -> bool:
    """Returns whether a text looks like the path of an image."""
    return isinstance(text, str) and PurePosixPath(text.replace("\\", "/")).suffix.lower() in IMAGE_SUFFIXES
