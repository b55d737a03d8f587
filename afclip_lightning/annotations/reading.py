"""Functions shared by readers of exports."""

from pathlib import Path

from afclip_lightning.annotations.writing import sets_below
from afclip_runtime.errors import DatasetError, UserError
from afclip_runtime.images.find import walk_folders

EXPORT_LIMIT = 2**30  # size limit of an export, in bytes: it may hold masks of thousands of images as text


def export_file(path: Path, suffix: str) -> Path:
    """Returns the file of an export.

    Raises:
        UserError: The path is a folder or a packed file.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name the export's {suffix} file.")
    if path.suffix.lower() in (".zip", ".tar", ".gz"):
        raise UserError(f"{path} is packed. Unpack it, and name the {suffix} file in it.")
    return path


def json_files(folder: Path) -> list[Path]:
    """Returns the JSON files below a folder, sorted by path, without hidden ones and those of sets written there.

    Raises:
        UserError: There is no such file, a folder cannot be listed, or a link is broken or circular.
    """
    folders = walk_folders(folder, sets_below(folder))
    found = sorted(path for inner in folders for path in inner.glob("*.json") if not path.name.startswith("."))
    if not found:
        raise UserError(f"{folder}: holds no .json file. Name the export.")
    return found


def refusing(what: str, remedy: str) -> DatasetError:
    """Returns the error for an invalid export."""
    return DatasetError(f"{what}. {remedy}")
