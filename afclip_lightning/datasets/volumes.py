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
    """What a line of the manifest says of a slice beside what `Table` reads of it."""

    patient: str
    split: str


class Volumes(Table):
    """Slices of medical volumes, with masks; the slices of a volume are one group, which has a verdict of its own.

    All slices of a patient are in one split: a manifest that says otherwise is refused.

    Args:
        root: Folder that `datasets import --from volumes` wrote.
        table: The manifest, as a path from `root`, or an absolute one.
        name: Name of the dataset in metric keys and tables; the name of `root` by default.
        categories: Categories to use; all that the manifest names by default.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Loader processes; 0 loads in the main process.
        class_names: What prompts call each category.

    Raises:
        ValueError: The manifest is no `.jsonl`, or an argument is out of its range.
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
        """Returns the categories in the order of the manifest; none where it is not there.

        Raises:
            DatasetError: The manifest is not as it must be.
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
                    f"{self.file}, line {number}: {line.patient} is in training and in test: what is tested would be "
                    "known already. Import again: the split is by patients."
                )
        yield from super().read_entries()
