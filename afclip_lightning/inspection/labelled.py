"""Labelled images for a calibration, each normal or anomalous."""

from pathlib import Path

from afclip_lightning.data.images import file_inside
from afclip_runtime.errors import DatasetError
from afclip_runtime.files import read_rows
from afclip_runtime.images.find import walk_images
from afclip_runtime.inspection.copies import Labelled

NORMAL_FOLDER = "good"


def read_labelled(source: Path) -> Labelled:
    """Returns images, and whether each is anomalous.

    Args:
        source: A folder in which images below a folder `good` are normal and all others anomalous; or a CSV file with
            the columns `path` (relative to the file's folder) and `label` (0 or 1).

    Raises:
        DatasetError: The source is neither a folder nor a CSV file, or a line of the file is wrong.
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
