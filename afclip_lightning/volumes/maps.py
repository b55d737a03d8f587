"""Stacks the maps of slices into a map with the geometry of their volume."""

import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np

from afclip_lightning.volumes.cutting import SCRATCH, VolumeRecord, resized
from afclip_lightning.volumes.nifti import write_nifti
from afclip_lightning.volumes.raw import Raw, free_space, written
from afclip_runtime.errors import UserError
from afclip_runtime.images.maps import read_map

DTYPE = np.dtype("<f4")
NIFTI = "nifti"  # folder of the maps
HELD_MAPS = ".slices"  # subfolder for the maps of slices, until their volume is complete


def map_path(folder: Path, index: int) -> Path:
    """Returns the path of the map of a slice, which exists until its volume is complete."""
    return folder / f"{index:04d}.npy"


def put_back(record: VolumeRecord, folder: Path, path: Path, work: Path) -> None:
    """Writes the maps of a volume's slices as one NIfTI file, float32, with its shape, affine and unit.

    If pixels were made square, the value of a voxel is the mean of its pixels. Otherwise each pixel is a voxel. The
    maps of the slices are then removed. If they are gone already and the file exists, nothing is done.

    Args:
        record: Record of how the volume was cut.
        folder: Folder of the maps of its slices; see `map_path`.
        path: File to write, `.nii.gz`.
        work: Folder for temporary files.

    Raises:
        UserError: A map is missing, or the disk is full.
    """
    if path.exists() and not folder.exists():
        return
    cut = record.cut
    shape = [cut.grid.shape[stored] for stored in (2, 1, 0) if stored != cut.stored]
    raw = Raw(work / SCRATCH / "map", 0, DTYPE, (cut.count, shape[0], shape[1]))
    try:
        free_space(raw.path.parent, 2 * raw.nbytes, path)
        with written(raw.path) as file:
            for number in range(cut.count):
                place = map_path(folder, cut.voxel(number))
                if not place.exists():
                    raise UserError(f"{path}: the map of slice {cut.voxel(number)} is missing. Choose another --out.")
                values = resized(np.asarray(read_map(place), DTYPE), cut.shape)
                file.write(np.ascontiguousarray(cut.lying(values)).tobytes())
        back = raw.brought_back(2 - cut.stored, work / SCRATCH / "back")
        write_nifti(path, back, cut.grid, record.space_code, record.unit)
    finally:
        shutil.rmtree(raw.path.parent, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # it holds maps of other volumes
        folder.parent.rmdir()
