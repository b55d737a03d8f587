"""Files that list a dataset's images."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.errors import DatasetError
from afclip_lightning.types import Split


class ListedData(AnomalyDataModule):
    """A dataset of one's own whose images a file lists.

    Args:
        root: Folder that the paths in the file start at.
        file: The file, as a path from `root`, or an absolute one.
        name: Name of the dataset in metric keys and tables; the name of `root` by default.
        categories: Categories to use; all that the file names by default.
        train_split: Split that training reads.
        batch_size: Images a batch, in training and in testing.
        num_workers: Loader processes; 0 loads in the main process.
        words: Words for prompts, by category.

    Attributes:
        kinds: The two suffixes that the file may have.

    Raises:
        ValueError: The file has another suffix, or an argument is out of its range.
    """

    kinds: ClassVar[tuple[str, str]]

    def __init__(
        self,
        root: str | Path,
        file: str | Path,
        name: str | None,
        categories: Sequence[str] | None,
        train_split: Split,
        batch_size: int,
        num_workers: int,
        words: dict[str, str] | None,
    ) -> None:
        super().__init__(root, categories, train_split, batch_size, num_workers, words)
        self.file = self.root / Path(file).expanduser()
        if self.file.suffix not in self.kinds:
            raise ValueError(f"{type(self).__name__} reads a {' or a '.join(self.kinds)}, got {file}")
        self.name = name or self.root.resolve().name

    def missing(self) -> list[Path]:
        """Returns the file if it is not there; what it names is looked for when samples are asked for."""
        return [] if self.file.is_file() else [self.file]


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
