"""Where the voxels of a volume lie in the patient, and how slices along an anatomical axis are taken from them.

World axes run to the right, to the front and to the head of the patient (RAS), in mm. The stored axes of a volume run
along any of them, either way: 48 orders, which axis codes such as `RAS` and `LPI` name.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from afclip_runtime.errors import DatasetError

Axis = Literal["axial", "coronal", "sagittal"]
AXES: tuple[Axis, ...] = get_args(Axis)
WORLD: dict[Axis, int] = {"sagittal": 0, "coronal": 1, "axial": 2}  # the world axis that slices follow one another on
INSTALL = "pip install 'afclip_lightning[medical]'"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's and ITK's world, in which x runs to the left and y to the back
SAME = 0.1  # of a voxel's shortest side: corners of two grids may lie that far apart, as rounded files do
EVEN = 0.01  # share by which two sides of a pixel may differ and count as equal


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid of a volume's voxels.

    Attributes:
        shape: Voxels along the three stored axes.
        affine: `[4, 4]`, float64, from the indices of a voxel to the place of its centre, in RAS and mm.

    Raises:
        DatasetError: The affine is not finite, or has no volume.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        if not np.isfinite(self.affine).all() or not 1e-12 < abs(np.linalg.det(self.affine[:3, :3])) < 1e12:
            raise DatasetError("its geometry (affine) is not finite or has no volume. Write its header anew.")

    @cached_property
    def directions(self) -> tuple[tuple[int, int], ...]:
        """Returns for each stored axis the nearest world axis (0, 1, 2), and 1 or -1: with it, or against it."""
        try:
            from nibabel.orientations import io_orientation
        except ImportError as error:
            raise DatasetError(f"volumes need nibabel. Install it: {INSTALL}.") from error
        return tuple((int(axis), int(sign)) for axis, sign in io_orientation(self.affine))

    @property
    def codes(self) -> str:
        """Returns the axis codes: the letter of the side that each stored axis runs to."""
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
        """Returns in words how another grid differs from this, but for the order of its axes; empty if it does not."""
        mine, its = self.turned, other.turned
        if mine.shape != its.shape:
            return f"{_by(mine.shape)} voxels (R × A × S) and {_by(its.shape)}"
        if not np.allclose(mine.spacing, its.spacing, rtol=0.01, atol=0):
            return f"voxels of {_by(mine.spacing)} mm (R × A × S) and {_by(its.spacing)} mm"
        if (apart := mine.apart(its)) > SAME * min(mine.spacing):
            return f"the same voxels, up to {apart:.3g} mm apart"
        return ""

    def apart(self, other: "Grid") -> float:
        """Returns the largest distance of equal voxels of this grid and one of the same shape, in mm."""
        ends = [(0, size - 1) for size in self.shape]
        corners = np.array([[x, y, z, 1] for x in ends[0] for y in ends[1] for z in ends[2]]).T
        return float(np.linalg.norm(((self.affine - other.affine) @ corners)[:3], axis=0).max())


def named_grid(path: object, shape: tuple[int, int, int], affine: np.ndarray) -> Grid:
    """Returns the grid of a file.

    Raises:
        DatasetError: It is none; names the file.
    """
    try:
        return Grid(shape, affine)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error


def _by(values: tuple[float, ...]) -> str:
    return " × ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)


@dataclass(frozen=True)
class Cut:
    """How slices along an anatomical axis are taken from a grid, whatever the order of its stored axes.

    Slice 0 is the lowest (axial), the hindmost (coronal) or the leftmost (sagittal) one. A slice is seen as
    radiologists see it: front or head at the top, the patient's right, or the front, at the left.

    Attributes:
        grid: The grid.
        axis: The anatomical axis; of an oblique grid the stored axis that is nearest to it.
    """

    grid: Grid
    axis: Axis

    @property
    def stored(self) -> int:
        """Returns the stored axis that slices follow one another on."""
        return next(s for s, (axis, _) in enumerate(self.grid.directions) if axis == WORLD[self.axis])

    @property
    def count(self) -> int:
        """Returns the number of slices."""
        return self.grid.shape[self.stored]

    def voxel(self, index: int) -> int:
        """Returns the index along the stored axis of a slice; and of such an index the slice."""
        return index if self.grid.directions[self.stored][1] > 0 else self.count - 1 - index

    def upright(self, plane: np.ndarray) -> np.ndarray:
        """Returns a plane of the stored voxels as it is seen, `[H, W]`.

        Args:
            plane: `[b, a]`, along the other two stored axes: of the two, b is the later one.
        """
        turned, rows, columns = self._turns
        return (plane.T if turned else plane)[:: -1 if rows else 1, :: -1 if columns else 1]

    def lying(self, picture: np.ndarray) -> np.ndarray:
        """Returns a slice `[H, W]` as it is stored, `[b, a]`: what `upright` undoes."""
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
        """Returns height and width of a slice with square pixels: the coarser side is cut as fine as the other."""
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
        """Returns whether a plane is transposed, and then its rows and its columns are turned round."""
        (late, late_sign), (early, early_sign) = (self.grid.directions[stored] for stored in self._others)
        turned = late < early  # rows run along the later world axis, to the back or the feet
        rows, columns = (early_sign, late_sign) if turned else (late_sign, early_sign)
        return turned, rows > 0, columns > 0
