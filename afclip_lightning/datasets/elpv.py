"""ELPV: electroluminescence pictures of solar cells, labelled with the probability of a defect."""

from pathlib import Path
from types import MappingProxyType

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.images import file_inside
from afclip_lightning.datasets.listed import read_lines
from afclip_lightning.datasets.tiled_layout import hold_out
from afclip_lightning.types import Sample, Split
from afclip_runtime.errors import DatasetError

CATEGORY = "solar_cell"


class ELPV(AnomalyDataModule):
    """ELPV as DRA and InCTRL use it: 377 normal and 715 anomalous test images, without masks.

    Cells with a probability of 1 are anomalous. A quarter of the 1508 cells with a probability of 0 is held out for
    testing, and the others are the normal training images. The order of the table and the recipe's seed determine the
    choice. Cells in between, 295 at 1/3 and 106 at 2/3, are not used. Monocrystalline and polycrystalline cells are
    one category. Pixel metrics are absent.

    Reference: Deitsch et al., Automatic classification of defective photovoltaic module cells in electroluminescence
    images, 2019.
    """

    title = "ELPV"
    paper = "deitsch2019elpv"
    url = "https://github.com/zae-bayern/elpv-dataset"
    labels = "image"
    name = "elpv"
    published_counts = MappingProxyType({CATEGORY: (1508 - 377, 377, 715)})
    layout = """
labels.csv            one line per cell: path, probability, mono or poly, with spaces between
images/cell0001.png
"""
    source = "github.com/zae-bayern/elpv-dataset; its folder that holds labels.csv and images."
    licence = "CC BY-NC-SA 4.0"

    def find_categories(self) -> list[str]:
        """Returns the only category."""
        return [CATEGORY]

    def missing(self) -> list[Path]:
        """Returns the table and the folder of images, if they are missing."""
        return [path for path in (self.root / "labels.csv", self.root / "images") if not path.exists()]

    def find_samples(self, category: str, split: Split) -> list[Sample]:
        """Returns the samples of one split, sorted by path; all training samples are normal.

        Raises:
            DatasetError: A line of the table is malformed, or names a missing file or a file of another line.
        """
        cells = self._cells()
        train, test = hold_out([image for image, value in cells.items() if value == 0])
        if split == "train":
            return self.make_samples(category, split, train, [], None)
        return self.make_samples(category, split, test, [image for image, value in cells.items() if value == 1], None)

    def folders_of(self, category: str, split: Split) -> list[Path]:
        """Returns the folder of the images of both splits."""
        return [self.root / "images"] if split == "test" else []

    def files_of(self, category: str, split: Split) -> set[Path]:
        """Returns all cells of the table. Cells in between are left out on purpose."""
        return set(self._cells())

    def _cells(self) -> dict[Path, float]:
        cells: dict[Path, float] = {}
        for where, line in read_lines(self.root / "labels.csv"):
            try:
                relative, probability, _ = line.split()
                value = float(probability)
            except ValueError as error:
                raise DatasetError(f"{where}: must be path, probability and type; got {line!r}.") from error
            if not 0 <= value <= 1:
                raise DatasetError(f"{where}: a probability must be from 0 to 1; got {value}.")
            image = file_inside(self.root, relative, where)
            if image in cells:
                raise DatasetError(f"{where}: {image} is already in an earlier line. Remove one.")
            cells[image] = value
        return cells
