"""Slices of medical volumes, as `datasets import --from volumes` writes them."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from afclip_lightning.data.names import ClassNames, Names
from afclip_lightning.datasets.listed import Entry
from afclip_lightning.datasets.table import Table
from afclip_lightning.types import Split
from afclip_lightning.volumes import SLICES
from afclip_runtime.errors import DatasetError
from afclip_runtime.files import read_json_lines


class SliceLine(msgspec.Struct, frozen=True):
    """The keys of a line of the manifest that `Table` does not read."""

    patient: str
    split: str


class Volumes(Table):
    """Slices of medical volumes, with masks. The slices of a volume are a group, which also gets a verdict.

    All slices of a patient must be in one split.

    Args:
        root: Folder that `datasets import --from volumes` wrote.
        table: The manifest, as a path relative to `root`, or an absolute path.
        name: Name of the dataset in metric keys and tables; the name of `root` by default.
        categories: Categories to use; by default all categories in the manifest.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Number of loader processes; 0 loads in the main process.
        class_names: Names of categories in prompts.

    Raises:
        ValueError: The manifest is not a `.jsonl` file, or an argument is out of its range.
    """

    kinds = (".jsonl", ".jsonl")
    source = "Your own volumes: datasets import --from volumes DIR --out SET (docs/volumes.md)."
    licence = "your own, or that of the volumes"

    def __init__(
        self,
        root: str | Path | None = None,
        table: str | Path = SLICES,
        name: str | None = None,
        categories: Names = None,
        train_split: Split = "test",
        batch_size: int = 8,
        num_workers: int = 2,
        class_names: ClassNames = None,
    ) -> None:
        super().__init__(root, table, name, categories, train_split, batch_size, num_workers, class_names)
        self.layout = f"{self.file.name}, images/<volume>/<axis>-<index>.png, masks/<volume>/<axis>-<index>.png"

    def find_categories(self) -> list[str]:
        """Returns the categories in the order of the manifest; none if it is missing.

        Raises:
            DatasetError: The manifest is malformed.
        """
        return super().find_categories() if self.file.is_file() else []

    def read_entries(self) -> Iterator[Entry]:
        """Yields every slice, checked.

        Raises:
            DatasetError: The manifest cannot be read, or a patient is in both splits.
        """
        splits: dict[str, str] = {}
        for number, line in read_json_lines(self.file, SliceLine, remedy="Import again.", error=DatasetError):
            if splits.setdefault(line.patient, line.split) != line.split:
                raise DatasetError(
                    f"{self.file}, line {number}: {line.patient} is in training and in test, so the test would not be "
                    "on unseen patients. Import again: the split is by patients."
                )
        yield from super().read_entries()
