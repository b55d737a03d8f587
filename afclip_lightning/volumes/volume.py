"""An opened volume: its voxels, their grid and their unit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from afclip_lightning.volumes.grid import MM, Axis, Cut, Grid, named_grid
from afclip_lightning.volumes.raw import Raw
from afclip_runtime.errors import DatasetError

CODES = "RL", "AP", "SI"


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume whose header was read.

    Attributes:
        raw: Voxels, `[k, j, i]` of the stored axes i, j, k.
        grid: Grid of the voxels.
        slope: Slope of the rescaling: value = stored value * slope + intercept.
        intercept: Intercept of the rescaling.
        modality: `CT`, `MR` … if the file states it; otherwise empty.
        code: NIfTI's code of its space: 1 for the scanner.
        unit: Unit of the lengths of the grid: `mm`, and in NIfTI files also `meter` or `micron`.
    """

    raw: Raw
    grid: Grid
    slope: float = 1.0
    intercept: float = 0.0
    modality: str = ""
    code: int = 1
    unit: str = MM

    def values(self, stored: np.ndarray) -> np.ndarray:
        """Returns the values of stored values, float32."""
        if (self.slope, self.intercept) == (1, 0):
            return stored.astype(np.float32)
        return (stored.astype(np.float64) * self.slope + self.intercept).astype(np.float32)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields all values in blocks."""
        for _, block in self.raw.blocks():
            yield self.values(block)


class Slices(Sequence[np.ndarray]):
    """The slices of a volume along an anatomical axis, upright, `[H, W]`, float32, read on access.

    Args:
        volume: The volume.
        axis: The axis.
        place: File for the voxels in another order, if necessary.

    Attributes:
        cut: Cut of the slices.

    Raises:
        UserError: The disk is full.
    """

    def __init__(self, volume: Volume, axis: Axis, place: Path) -> None:
        self.volume, self.cut = volume, Cut(volume.grid, axis)
        self.planes = volume.raw.brought_first(2 - self.cut.stored, place)

    def __len__(self) -> int:
        return self.cut.count

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]  # one at a time
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = self.cut.voxel(index)
        plane = self.planes.read(number, number + 1)[0]
        return np.ascontiguousarray(self.cut.upright(self.volume.values(plane)))


@dataclass(frozen=True)
class Reading:
    """How ambiguous files are read.

    Attributes:
        channel: Index of the volume to read in a file with four axes, from 0; `None` if there must be only one.
        form: Geometry to use if the two of a NIfTI file disagree: `sform` or `qform`.
        codes: Axis codes of files that do not state the orientation of their axes.
    """

    channel: int | None = None
    form: str = ""
    codes: str = ""


def grid_from_codes(path: Path, codes: str, shape: tuple[int, int, int], spacing: tuple[float, ...]) -> Grid:
    """Returns a grid with stored axes given by codes, centred at the origin.

    Raises:
        DatasetError: The axis codes or a spacing are invalid.
    """
    axes = [next((axis for axis, letters in enumerate(CODES) if letter in letters), -1) for letter in codes.upper()]
    if sorted(axes) != [0, 1, 2]:
        raise DatasetError(f"--codes {codes}: three letters are needed, one each of R or L, A or P, S or I.")
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for stored, (axis, letter) in enumerate(zip(axes, codes.upper(), strict=True)):
        affine[axis, stored] = spacing[stored] * (1 if letter == CODES[axis][0] else -1)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return named_grid(path, shape, affine)


NO_CODES = (
    "its header does not state the orientation of its axes in the patient. State it: --codes RAS (the side to which "
    "each stored axis points), or write the header again."
)
