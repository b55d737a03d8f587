"""The user's own images, listed in a table."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.images import file_inside
from afclip_lightning.data.names import ClassNames, Names, normal_form
from afclip_lightning.datasets.listed import LISTED_SPLITS, Entry, ListedData
from afclip_lightning.types import Sample, Split
from afclip_runtime.errors import DatasetError
from afclip_runtime.files import read_json_lines, read_rows

REQUIRED = ("image", "label")
OPTIONAL = ("category", "split")  # in every row, or in none
COLUMNS = (*REQUIRED, "mask", "defect_type", "group", *OPTIONAL)
LABELS = {"0": 0, "normal": 0, "good": 0, "1": 1, "anomalous": 1, "anomaly": 1}
REMEDY = "Correct the file."


class Table(ListedData):
    """Your own images, listed in a CSV file with a header, or in a JSONL file with one object per line.

    The columns, or keys, are:

    - `image`: path of the image relative to `root`, inside of it.
    - `label`: `0`, `normal` or `good`; `1`, `anomalous` or `anomaly`.
    - `mask`: path of the mask of an anomalous image; empty for a normal image. In a category, either all anomalous
      images have a mask, or none has. Without masks there are no pixel metrics.
    - `category`: the category. Without this column, there is one category with the name of the dataset.
    - `defect_type`: defect type of an anomalous image, if it is known; empty for a normal image.
    - `group`: name of an object that several images show, unique in its category. Images without a group are judged
      alone.
    - `split`: `test` or `train`. Without this column, all images are `test`.

    `image` and `label` are required. Other columns are ignored. The table is read strictly: each row has one cell per
    column, and an image is listed once, with one label.

    Args:
        root: Folder to which the paths are relative.
        table: The table, `.csv` or `.jsonl`, as a path relative to `root`, or an absolute path.
        name: Name of the dataset in metric keys and tables; the name of `root` by default.
        categories: Categories to use; by default all categories in the table.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Number of loader processes; 0 loads in the main process.
        class_names: Names of categories in prompts.

    Raises:
        ValueError: The table is neither `.csv` nor `.jsonl`, or an argument is out of its range.
    """

    kinds = (".csv", ".jsonl")
    source = "Your own data, listed in a table."
    licence = "your own"

    def __init__(
        self,
        root: str | Path | None = None,
        table: str | Path = "images.csv",
        name: str | None = None,
        categories: Names = None,
        train_split: Split = "test",
        batch_size: int = 8,
        num_workers: int = 2,
        class_names: ClassNames = None,
    ) -> None:
        super().__init__(root, table, name, categories, train_split, batch_size, num_workers, class_names)
        self.layout = (
            f"{self.file.name}   columns image, label; mask, category, split, defect_type, group where there are any"
        )

    @classmethod
    def variants(cls, root: Path) -> list[AnomalyDataModule]:
        """Returns nothing: the table's name is the user's own."""
        return []

    def find_categories(self) -> list[str]:
        """Returns the categories in the order of the table.

        Raises:
            DatasetError: The table is missing or malformed.
        """
        return list(dict.fromkeys(entry.category for entry in self.entries()))

    def find_samples(self, category: str, split: Split) -> list[Sample]:
        """Returns the samples of one category and split, sorted by path.

        Raises:
            DatasetError: The table is malformed, a line names a missing file or a file outside `root`, or an anomalous
                image has no mask while others of its category have one.
        """
        images = self.images(category, split)
        masks = {image: file_inside(self.root, e.mask, e.where) for image, e in images.items() if e.mask}
        normal, anomalous = ([image for image, e in images.items() if e.label == label] for label in (0, 1))
        bare = [image for image in anomalous if image not in masks]
        if masks and bare:
            raise DatasetError(
                f"{self.file}: {bare[0]} has no mask, but other images of {category!r} have one. Name all masks of a "
                "category, or none."
            )
        samples = self.make_samples(category, split, normal, anomalous, masks if masks or not anomalous else None)
        return self.with_types(samples, images)

    def read_entries(self) -> Iterator[Entry]:
        """Yields every row, checked and with its defaults.

        Raises:
            DatasetError: The table cannot be read, or a row is malformed.
        """
        rows = list(self._csv() if self.file.suffix == ".csv" else self._jsonl())
        if not rows:
            raise DatasetError(f"{self.file}: lists no image. It must name one in each line, with its label.")
        given = {column for _, row in rows for column in OPTIONAL if row.get(column)}
        for where, row in rows:
            if absent := [column for column in REQUIRED if not row.get(column)]:
                raise DatasetError(f"{where}: there is no {' and no '.join(absent)}. Each image needs both.")
            if absent := [column for column in sorted(given) if not row.get(column)]:
                raise DatasetError(f"{where}: there is no {absent[0]}, which other lines have. Fill it in.")
            row = {"mask": "", "defect_type": "", "group": "", "category": self.name, "split": "test", **row}
            row |= {column: row[column].lower() for column in ("label", "split")}
            for column, allowed in (("label", LABELS), ("split", LISTED_SPLITS)):
                if row[column] not in allowed:
                    raise DatasetError(f"{where}: {column} must be one of {', '.join(allowed)}; got {row[column]!r}.")
            category = normal_form(row["category"])
            label, facts = LABELS[row["label"]], (row["mask"], row["defect_type"], row["group"])
            yield Entry(where, category, row["split"], row["image"], label, *facts)

    def _csv(self) -> Iterator[tuple[str, dict[str, str]]]:
        for number, cells in read_rows(self.file, remedy=REMEDY, error=DatasetError):
            if absent := [column for column in REQUIRED if column not in cells]:
                raise DatasetError(
                    f"{self.file}: has no column {', '.join(absent)}. Its first line must name the columns: image and "
                    "label, and mask, category, split, defect_type and group where there are any."
                )
            yield f"{self.file}, line {number}", {c: v.strip() for c, v in cells.items() if c in COLUMNS and v.strip()}

    def _jsonl(self) -> Iterator[tuple[str, dict[str, str]]]:
        for number, fields in read_json_lines(self.file, Any, remedy=REMEDY, error=DatasetError):  # type: ignore[arg-type]
            where = f"{self.file}, line {number}"
            if not isinstance(fields, dict):
                raise DatasetError(f"{where}: must be an object with image and label. Correct the line.")
            row = {column: fields[column] for column in COLUMNS if fields.get(column) not in (None, "")}
            for column, value in row.items():
                if not isinstance(value, str) and not (
                    column in ("label", "category", "defect_type", "group") and type(value) is int
                ):
                    raise DatasetError(f"{where}: {column} must be text, got {str(value)[:60]!r}. Correct the line.")
            yield where, {column: str(value).strip() for column, value in row.items()}
