"""Images that a calibration is made from, each known to be normal or anomalous."""

import sys
from pathlib import Path

from afclip_lightning.backbones.store_files import image_digest
from afclip_lightning.data.images import file_inside
from afclip_runtime.errors import DatasetError, UserError
from afclip_runtime.files import read_rows
from afclip_runtime.images.find import walk_images

NORMAL_FOLDER = "good"
Labelled = list[tuple[Path, bool]]


def read_labelled(source: Path) -> Labelled:
    """Returns images, and whether each is anomalous.

    Args:
        source: A folder, in which images below a folder `good` are normal and all others anomalous; or a CSV file with
            the columns `path`, from the file's folder, and `label`, 0 or 1.

    Raises:
        DatasetError: It is neither, or a line of the file is wrong.
    """
    if source.is_dir():
        return [(path, NORMAL_FOLDER not in path.relative_to(source).parts[:-1]) for path in walk_images(source)]
    found = []
    for number, row in read_rows(source, remedy="Name a folder, or a CSV file.", error=DatasetError):
        where = f"{source}, line {number}"
        if row.get("label") not in ("0", "1") or not row.get("path"):
            raise DatasetError(f"{where}: needs the columns path and label, 0 for normal and 1 for anomalous.")
        found.append((file_inside(source.parent, row["path"], where), row["label"] == "1"))
    return found


def without_copies(labelled: Labelled, few_shot_dir: Path | None) -> Labelled:
    """Returns images without copies, and says how many there were.

    Raises:
        UserError: One cannot be read; has copies with both labels; or is one of the few-shot images: to the
            model these are normal beyond all others.
    """
    few_shot = set() if few_shot_dir is None else {image_digest(path) for path in walk_images(few_shot_dir)}
    found: dict[str, tuple[Path, bool]] = {}
    for path, label in labelled:
        digest = image_digest(path)
        if digest in few_shot:
            raise UserError(
                f"{path} is one of --few_shot_dir too: a threshold from images that the model compares with is too low."
            )
        first, known = found.setdefault(digest, (path, label))
        if known != label:
            raise UserError(f"{path} is a copy of {first}, and one is called normal and the other anomalous. Keep one.")
    if copies := len(labelled) - len(found):
        said = (
            "1 image is a copy of another one, and is"
            if copies == 1
            else f"{copies} images are copies of others, and are"
        )
        print(f"note: {said} counted once.", file=sys.stderr)
    return list(found.values())
