"""Volumes that tests write: an asymmetric phantom, stored in any order of axes."""

from collections.abc import Iterator
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

SHAPE = (9, 11, 13)  # along R, A, S
SPACING = (1.0, 1.0, 1.0)
ORIGIN = (-20.5, 7.25, 31.0)


def all_codes() -> list[str]:
    """Returns the 48 axis codes."""
    return ["".join(codes) for order in permutations(("RL", "AP", "IS")) for codes in product(*order)]


def phantom(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Returns a volume `[R, A, S]`, int16, in which no two voxels are equal, so that nothing is symmetric."""
    return np.arange(int(np.prod(shape)), dtype=np.int16).reshape(shape)


def lesion(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Returns its mask `[R, A, S]`, uint8: an L in the right, front, upper part; 2 in one corner of it, else 1."""
    mask = np.zeros(shape, np.uint8)
    mask[-4:-1, -3, -5:-3] = 1
    mask[-4, -5:-2, -5:-3] = 1
    mask[-4, -5, -5] = 2
    return mask


def affine(spacing: tuple[float, ...] = SPACING, origin: tuple[float, ...] = ORIGIN) -> np.ndarray:
    """Returns the affine of a volume that is stored along R, A and S."""
    found = np.diag([*spacing, 1.0])
    found[:3, 3] = origin
    return found


def stored(values: np.ndarray, codes: str, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns values `[R, A, S]` in another order of axes, and the affine that they have there."""
    own = affine() if own is None else own
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    return nibabel.apply_orientation(values, turn), own @ inv_ornt_aff(turn, values.shape)


def write_nifti(
    path: Path, values: np.ndarray, codes: str = "RAS", own: np.ndarray | None = None, **fields: object
) -> Path:
    """Writes values `[R, A, S]` as NIfTI, stored along the codes; `fields` are set in the header."""
    data, place = stored(values, codes, own)
    image = nibabel.Nifti1Image(data, place)
    image.set_qform(place, 1)
    image.set_sform(place, 1)
    for name, value in fields.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def seen(values: np.ndarray, axis: str) -> Iterator[np.ndarray]:
    """Yields the slices of values `[R, A, S]` in upright view, by plain loops over voxels."""
    right, front, up = values.shape
    if axis == "axial":
        for z in range(up):
            yield np.array([[values[right - 1 - x, front - 1 - y, z] for x in range(right)] for y in range(front)])
    elif axis == "coronal":
        for y in range(front):
            yield np.array([[values[right - 1 - x, y, up - 1 - z] for x in range(right)] for z in range(up)])
    else:
        for x in range(right):
            yield np.array([[values[x, front - 1 - y, up - 1 - z] for y in range(front)] for z in range(up)])
