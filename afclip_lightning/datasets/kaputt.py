"""Kaputt: retail items in the trays of a warehouse, with and without damage. Tables list the images."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.defect_types import with_defect_types
from afclip_lightning.data.images import file_inside
from afclip_lightning.data.names import ClassNames, Names, normal_form
from afclip_lightning.types import Sample, Split
from afclip_runtime.errors import DatasetError
from afclip_runtime.files import read_parquet

Severity = Literal["any", "major"]
View = Literal["crop", "image"]
CATEGORY = "retail_item"
SPLITS: tuple[Split, ...] = ("train", "test")
RESTORE = "Unpack datasets.tar.gz again."


@dataclass(frozen=True)
class _Row:
    """The columns of a table that are read; there are more."""

    capture_id: str
    defect: bool
    major_defect: bool
    defect_types: str | None  # with commas between


class Kaputt(AnomalyDataModule):
    """Kaputt: one category of 48,376 retail items, minor and major damage of seven types, without masks.

    The table `query-<split>.parquet` says for each image whether the item is damaged, how severely, and in which ways:
    actuation (opened), deconstruction, deformation, missing_unit, penetration, spillage, superficial. Several types of
    an image are sorted and joined with `+` (`deformation+penetration`). The masks of the dataset show the item and not
    its damage, so they are not read, and pixel metrics are absent. The training split has normal and anomalous images.
    The splits have different items. The validation split is not read, and neither are the one to three reference images
    per item, because few-shot images belong to a category here, not to an item.

    Layout, columns and rules follow the dataset's README, the totals follow its paper (100,267 images in these tables,
    29,316 of them damaged). They were not compared with the dataset itself, to which access is restricted. Unknown are
    the number of images per split, whether the paper's results are on crops, and how its AP_major treats minor damage.
    The tables are read with pyarrow (extra `parquet`).

    Args:
        root: Folder of the dataset.
        severity: Damage that is anomalous: `any` damage (as in the paper's AP_any), or only `major` damage. With
            `major`, images with minor damage are left out.
        view: Images to read: the `crop` of the item, or the whole `image` with a side of 2048 pixels.
        categories: Categories to use; all by default.
        train_split: Split that training reads.
        batch_size: Images per batch, in training and in testing.
        num_workers: Number of loader processes; 0 loads in the main process.
        class_names: Names of categories in prompts. They replace or extend the dataset's own class names.

    Raises:
        ValueError: An argument is out of its range.

    Reference: Höfer et al., Kaputt: A Large-Scale Dataset for Visual Defect Detection, ICCV 2025, arXiv 2510.05903.
    """

    title = "Kaputt"
    paper = "hofer2025kaputt"
    url = "https://huggingface.co/datasets/amazon/kaputt"
    labels = "image"
    name = "kaputt"
    published = (CATEGORY,)
    class_names: Mapping[str, str] = {CATEGORY: "retail item"}
    layout = """
datasets/query-{train,test}.parquet                    which image is what; or directly in the root
query-crop/data/{train,test}/query-data/crop/*.jpg     images; those of `view: image` alike
  or data/…, or kaputt-release/{train,test}/query-data/crop/*.jpg
"""
    source = (
        "huggingface.co/datasets/amazon/kaputt, gated; datasets.tar.gz and query-crop.tar.gz, each into its folder."
    )
    licence = "CC BY-NC-ND 4.0, research only, see its source"

    def __init__(
        self,
        root: str | Path | None = None,
        severity: Severity = "any",
        view: View = "crop",
        categories: Names = None,
        train_split: Split = "test",
        batch_size: int = 8,
        num_workers: int = 2,
        class_names: ClassNames = None,
    ) -> None:
        super().__init__(root, categories, train_split, batch_size, num_workers, class_names)
        for name, value, choices in (("severity", severity, Severity), ("view", view, View)):
            if value not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}; got {value!r}")
        self.severity: Severity = severity
        self.view: View = view
        self._read: dict[Path, dict[Path, _Row]] = {}

    def find_categories(self) -> list[str]:
        """Returns the only category."""
        return [CATEGORY]

    def table_of(self, split: Split) -> Path:
        """Returns the path of a split's table, whether or not it exists."""
        beside = self.root / f"query-{split}.parquet"
        return beside if beside.is_file() else self.root / "datasets" / beside.name

    def images_of(self, split: Split) -> Path:
        """Returns the folder of a split's images, whether or not it exists."""
        inner = Path(split, "query-data", self.view)
        folders = [self.root / above / inner for above in (f"query-{self.view}/data", "data", "kaputt-release")]
        return next((folder for folder in folders if folder.is_dir()), folders[0])

    def missing(self) -> list[Path]:
        """Returns the tables and folders of images that are missing."""
        tables, folders = map(self.table_of, SPLITS), map(self.images_of, SPLITS)
        return [*(path for path in tables if not path.is_file()), *(path for path in folders if not path.is_dir())]

    def find_samples(self, category: str, split: Split) -> list[Sample]:
        """Returns the samples of one split, sorted by path.

        Raises:
            DatasetError: The table is absent or malformed, pyarrow is not installed, or a row names a missing file or a
                file outside the folder of images.
        """
        rows = self._rows(split)
        normal = [image for image, row in rows.items() if not row.defect]
        damaged = [i for i, row in rows.items() if row.defect and (row.major_defect or self.severity == "any")]
        types = {image: _joined(rows[image].defect_types or "") for image in damaged}
        return with_defect_types(self.make_samples(category, split, normal, damaged, None), types)

    def folders_of(self, category: str, split: Split) -> list[Path]:
        """Returns the folder of the split's images."""
        return [self.images_of(split)]

    def files_of(self, category: str, split: Split) -> set[Path]:
        """Returns all images of the table. Images with minor damage may be left out on purpose."""
        return set(self._rows(split))

    def _rows(self, split: Split) -> dict[Path, _Row]:
        path = self.table_of(split)
        if path not in self._read:
            rows = read_parquet(path, _Row, remedy=RESTORE, error=DatasetError)
            named = Counter(row.capture_id for row in rows)
            if twice := [name for name, count in named.items() if count > 1]:
                raise DatasetError(f"{path}: lists the capture {twice[0]!r} twice. {RESTORE}")
            folder = self.images_of(split)
            self._read[path] = {
                file_inside(folder, f"{row.capture_id}.jpg", f"{path}, row {number}"): row
                for number, row in enumerate(rows)
            }
        return self._read[path]


def _joined(types: str) -> str:
    """Returns the defect types of an image as one type: sorted and joined with `+`."""
    return "+".join(sorted({normal_form(name.strip()) for name in types.split(",") if name.strip()}))
