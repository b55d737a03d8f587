"""The position of voxels in the patient, and slices along an anatomical axis.

World axes run to the right, to the front and to the head of the patient (RAS), in mm. The stored axes of a volume run
along them in any order and direction. Axis codes such as `RAS` and `LPI` name these 48 cases.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from afclip_runtime.errors import DatasetError

Axis = Literal["axial", "coronal", "sagittal"]
AXES: tuple[Axis, ...] = get_args(Axis)
WORLD: dict[Axis, int] = {"sagittal": 0, "coronal": 1, "axial": 2}  # world axis along which slices follow one another
MM = "mm"  # unit of lengths, unless a NIfTI file has metres or micrometres: these are kept
INSTALL = "pip install 'afclip_lightning[medical]'"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's and ITK's world, in which x runs to the left and y to the back
SAME = 0.1  # tolerance between the corners of two grids, as share of a voxel's shortest side, because files are rounded
EVEN = 0.01  # largest relative difference of two sides of a pixel that count as equal


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid of a volume's voxels.

    Attributes:
        shape: Number of voxels along the three stored axes.
        affine: `[4, 4]`, float64, from the indices of a voxel to the position of its centre, in RAS and mm.

    Raises:
        DatasetError: The affine is not finite, or is singular.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        if not np.isfinite(self.affine).all() or not 1e-12 < abs(np.linalg.det(self.affine[:3, :3])) < 1e12:
            raise DatasetError("its geometry (affine) is not finite or has no volume. Write its header again.")

    @cached_property
    def directions(self) -> tuple[tuple[int, int], ...]:
        """Returns the nearest world axis (0, 1, 2) of each stored axis, and 1 along it or -1 against it."""
        try:
            from nibabel.orientations import io_orientation
        except ImportError as error:
            raise DatasetError(f"volumes need nibabel. Install it: {INSTALL}.") from error
        return tuple((int(axis), int(sign)) for axis, sign in io_orientation(self.affine))

    @property
    def codes(self) -> str:
        """Returns the axis codes: a letter per stored axis for the side that it runs to."""
        return "".join(("LR", "PA", "IS")[axis][sign > 0] for axis, sign in self.directions)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Returns the distance of neighbouring voxels along each stored axis, in mm."""
        first, second, third = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return first, second, third

    @property
    def obliquity(self) -> float:
        """Returns the largest angle between a stored axis and the world axis nearest to it, in degrees."""
        cosines = [
            abs(self.affine[axis, stored]) / self.spacing[stored] for stored, (axis, _) in enumerate(self.directions)
        ]
        return float(np.degrees(np.arccos(np.clip(min(cosines), 0, 1))))

    @cached_property
    def turned(self) -> "Grid":
        """Returns the grid of the same voxels, stored along R, A and S."""
        order = np.argsort([axis for axis, _ in self.directions])
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, order]
        for world, stored in enumerate(order):
            if self.directions[stored][1] < 0:
                affine[:3, 3] += affine[:3, world] * (self.shape[stored] - 1)
                affine[:3, world] *= -1
        first, second, third = (self.shape[stored] for stored in order)
        return Grid((first, second, third), affine)

    def difference(self, other: "Grid") -> str:
        """Returns a text on the difference to another grid, apart from the order of axes; empty without difference."""
        mine, its = self.turned, other.turned
        if mine.shape != its.shape:
            return f"{_by(mine.shape)} voxels (R × A × S) and {_by(its.shape)}"
        if not np.allclose(mine.spacing, its.spacing, rtol=0.01, atol=0):
            return f"voxels of {_by(mine.spacing)} mm (R × A × S) and {_by(its.spacing)} mm"
        if (apart := mine.apart(its)) > SAME * min(mine.spacing):
            return f"the same voxels, up to {apart:.3g} mm apart"
        return ""

    def apart(self, other: "Grid") -> float:
        """Returns the largest distance between corresponding voxels of this grid and one of the same shape, in mm."""
        ends = [(0, size - 1) for size in self.shape]
        corners = np.array([[x, y, z, 1] for x in ends[0] for y in ends[1] for z in ends[2]]).T
        return float(np.linalg.norm(((self.affine - other.affine) @ corners)[:3], axis=0).max())


def named_grid(path: object, shape: tuple[int, int, int], affine: np.ndarray) -> Grid:
    """Returns the grid of a file.

    Raises:
        DatasetError: The grid is invalid. The message names the file.
    """
    try:
        return Grid(shape, affine)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error


def _by(values: tuple[float, ...]) -> str:
    return " × ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)


@dataclass(frozen=True)
class Cut:
    """Slices along an anatomical axis of a grid, for any order of its stored axes.

    Slice 0 is the lowest (axial), the hindmost (coronal) or the leftmost (sagittal) one. A slice is shown in the
    radiological view: front or head at the top; the patient's right, or the front, at the left.

    Attributes:
        grid: The grid.
        axis: The anatomical axis. In an oblique grid the nearest stored axis is used.
    """

    grid: Grid
    axis: Axis

    @property
    def stored(self) -> int:
        """Returns the stored axis along which slices follow one another."""
        return next(s for s, (axis, _) in enumerate(self.grid.directions) if axis == WORLD[self.axis])

    @property
    def count(self) -> int:
        """Returns the number of slices."""
        return self.grid.shape[self.stored]

    def voxel(self, index: int) -> int:
        """Returns the index of a slice along the stored axis. It also maps such an index back to the slice."""
        return index if self.grid.directions[self.stored][1] > 0 else self.count - 1 - index

    def upright(self, plane: np.ndarray) -> np.ndarray:
        """Returns a plane of the stored voxels in upright view, `[H, W]`.

        Args:
            plane: `[b, a]`, along the other two stored axes, where b is the later one.
        """
        turned, rows, columns = self._turns
        return (plane.T if turned else plane)[:: -1 if rows else 1, :: -1 if columns else 1]

    def lying(self, picture: np.ndarray) -> np.ndarray:
        """Returns a slice `[H, W]` in stored order, `[b, a]`: the inverse of `upright`."""
        turned, rows, columns = self._turns
        plane = picture[:: -1 if rows else 1, :: -1 if columns else 1]
        return plane.T if turned else plane

    @property
    def spacing(self) -> tuple[float, float]:
        """Returns the distance of neighbouring rows and of neighbouring columns, in mm."""
        late, early = self._others
        rows, columns = (early, late) if self._turns[0] else (late, early)
        return self.grid.spacing[rows], self.grid.spacing[columns]

    @property
    def shape(self) -> tuple[int, int]:
        """Returns height and width of a slice, in voxels."""
        late, early = self._others
        rows, columns = (early, late) if self._turns[0] else (late, early)
        return self.grid.shape[rows], self.grid.shape[columns]

    @property
    def square(self) -> tuple[int, int]:
        """Returns height and width of a slice with square pixels, at the finer of the two spacings."""
        (height, width), (rows, columns) = self.shape, self.spacing
        if abs(rows - columns) <= EVEN * min(rows, columns):
            return height, width
        fine = min(rows, columns)
        return max(1, round(height * rows / fine)), max(1, round(width * columns / fine))

    @property
    def _others(self) -> tuple[int, int]:
        early, late = (stored for stored in range(3) if stored != self.stored)
        return late, early

    @property
    def _turns(self) -> tuple[bool, bool, bool]:
        """Returns whether a plane is transposed, and whether its rows and columns are then reversed."""
        (late, late_sign), (early, early_sign) = (self.grid.directions[stored] for stored in self._others)
        turned = late < early  # rows run along the later world axis, to the back or the feet
        rows, columns = (early_sign, late_sign) if turned else (late_sign, early_sign)
        return turned, rows > 0, columns > 0
