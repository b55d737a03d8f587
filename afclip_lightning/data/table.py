"""One's own images, listed in a table."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.images import file_inside
from afclip_lightning.data.lines import ListedData, read_lines
from afclip_lightning.errors import DatasetError
from afclip_lightning.types import Sample, Split

REQUIRED = ("image", "label")
LABELS = {"0": 0, "normal": 0, "good": 0, "1": 1, "anomalous": 1, "anomaly": 1}
SPLITS: tuple[Split, ...] = ("train", "test")


class Table(ListedData):
    """One's own images, listed in a CSV file with a header, or in a JSONL file with one object a line.

    The columns, or keys, are:

    - `image`: path of the image from `root`, which it must not leave.
    - `label`: `0`, `normal` or `good`; `1`, `anomalous` or `anomaly`.
    - `mask`: path of the mask of an anomalous image. A category without any has no pixel metrics; one with some must
      have all.
    - `category`: the category; all images are of one, named as the dataset, if there is no such column.
    - `split`: `test` or `train`; all are `test` if there is no such column.

    `image` and `label` must be there. Other columns are not used.

    Args:
        root: Folder that the paths start at.
        table: The table, `.csv` or `.jsonl`, as a path from `root`, or an absolute one.
        name: Name of the dataset in metric keys and tables; the name of `root` by default.
        categories: Categories to use; all that the table names by default.
        train_split: Split that training reads.
        batch_size: Images a batch, in training and in testing.
        num_workers: Loader processes; 0 loads in the main process.
        words: Words for prompts, by category.

    Raises:
        ValueError: The table is neither `.csv` nor `.jsonl`, or an argument is out of its range.
    """

    kinds = (".csv", ".jsonl")
    source = "Your own data, listed in a table."
    licence = "your own"

    def __init__(
        self,
        root: str | Path,
        table: str | Path = "images.csv",
        name: str | None = None,
        categories: Sequence[str] | None = None,
        train_split: Split = "test",
        batch_size: int = 8,
        num_workers: int = 2,
        words: dict[str, str] | None = None,
    ) -> None:
        super().__init__(root, table, name, categories, train_split, batch_size, num_workers, words)
        self.layout = f"{self.file.name}   columns image, label; mask, category, split where there are any"

    @classmethod
    def variants(cls, root: Path) -> list[AnomalyDataModule]:
        """Returns nothing: the table's name is the user's own."""
        return []

    def find_categories(self) -> list[str]:
        """Returns the categories in the order of the table.

        Raises:
            DatasetError: The table is not there or not as it must be.
        """
        return list(dict.fromkeys(row["category"] for _, row in self._rows()))

    def find_samples(self, category: str, split: Split) -> list[Sample]:
        """Returns the samples of one category and split, sorted by path.

        Raises:
            DatasetError: The table is not as it must be, or a line names no file, one outside `root` or one that an
                earlier line names, or an anomalous image has no mask where others of its category have one.
        """
        labels: dict[Path, int] = {}
        masks: dict[Path, Path] = {}
        for where, row in self._rows():
            if (row["category"], row["split"]) != (category, split):
                continue
            image = file_inside(self.root, row["image"], where)
            if image in labels:
                raise DatasetError(f"{where}: {image} is already in an earlier line. Remove one.")
            labels[image] = LABELS[row["label"]]
            if row["mask"] and labels[image]:
                masks[image] = file_inside(self.root, row["mask"], where)
        normal, anomalous = ([image for image in labels if labels[image] == label] for label in (0, 1))
        bare = [image for image in anomalous if image not in masks]
        if masks and bare:
            raise DatasetError(
                f"{self.file}: {bare[0]} has no mask, but other images of {category!r} have one. Name all masks of a "
                "category, or none."
            )
        return self.make_samples(category, split, normal, anomalous, masks if masks or not anomalous else None)

    def _rows(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Yields every row, checked and with its defaults, after `file, line n`."""
        lines = read_lines(self.file)
        for where, fields in self._csv(lines) if self.file.suffix == ".csv" else self._jsonl(lines):
            if absent := [column for column in REQUIRED if fields.get(column) in (None, "")]:
                raise DatasetError(f"{where}: there is no {' and no '.join(absent)}. Each image needs both.")
            row = {"mask": "", "category": self.name, "split": "test"}
            row |= {key: str(value).strip() for key, value in fields.items() if value not in (None, "")}
            row["label"] = row["label"].lower()
            for column, allowed in (("label", LABELS), ("split", SPLITS)):
                if row[column] not in allowed:
                    raise DatasetError(f"{where}: {column} must be one of {', '.join(allowed)}; got {row[column]!r}.")
            yield where, row

    def _csv(self, lines: list[tuple[str, str]]) -> Iterator[tuple[str, dict[str, str | None]]]:
        reader = csv.DictReader(line for _, line in lines)
        if absent := [column for column in REQUIRED if column not in (reader.fieldnames or ())]:
            raise DatasetError(
                f"{self.file}: has no column {', '.join(absent)}. Its first line must name the columns: image and "
                "label, and mask, category and split where there are any."
            )
        yield from zip((where for where, _ in lines[1:]), reader, strict=False)

    def _jsonl(self, lines: list[tuple[str, str]]) -> Iterator[tuple[str, dict[str, object]]]:
        for where, line in lines:
            try:
                fields = json.loads(line)
            except ValueError as error:
                raise DatasetError(f"{where}: is not JSON ({error}). Mend the line.") from error
            if not isinstance(fields, dict):
                raise DatasetError(f"{where}: must be an object with image and label. Mend the line.")
            yield where, fields
