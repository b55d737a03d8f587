"""Reading the files that list a dataset's images."""

from pathlib import Path

from afclip_lightning.errors import DatasetError


def read_lines(path: Path) -> list[tuple[str, str]]:
    """Returns the lines of a text file that are not blank, each after `file, line n`, for messages.

    Raises:
        DatasetError: The file cannot be read as text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}). Restore the file.") from error
    return [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
