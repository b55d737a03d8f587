"""Reads NIfTI-1 and NIfTI-2 files, compressed or not, and writes maps as NIfTI."""

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from afclip_lightning.volumes.grid import INSTALL, MM, Grid, named_grid
from afclip_lightning.volumes.raw import Raw, free_space, unpack
from afclip_lightning.volumes.silence import silenced
from afclip_lightning.volumes.volume import NO_CODES, Reading, Volume, grid_from_codes
from afclip_runtime.errors import DatasetError
from afclip_runtime.files import atomic_path, open_regular

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

GZIP_MARK = b"\x1f\x8b"
APART = 0.5  # largest distance of two agreeing geometries of a file, as share of a voxel's shortest side


def open_nifti(path: Path, scratch: Path, reading: Reading) -> Volume:
    """Returns the volume of a NIfTI file.

    A scale of 0 or NaN means no scaling, as in the standard. Lengths keep the unit of the file. If the file has two
    geometries (sform and qform) less than half a voxel apart, the sform is used.

    Args:
        path: The file.
        scratch: Folder for the contents of a compressed file.
        reading: How an ambiguous file is read.

    Raises:
        UserError: The file cannot be read or is truncated, it has several volumes, colours or complex numbers, or the
            orientation of its axes is unknown.
    """
    with open_regular(path, error=DatasetError) as file:
        packed = file.read(2) == GZIP_MARK
        file.seek(0)
        header = _header(path, gzip.GzipFile(fileobj=file) if packed else file)
        dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
        if header["magic"].item()[:2] not in (b"n+",):
            raise DatasetError(f"{path}: its voxels lie in a second file (.img). Save both as one .nii file.")
        if offset < header.single_vox_offset:
            raise DatasetError(f"{path}: its voxels begin inside of its header (vox_offset {offset}). Export it again.")
        if dtype.kind not in "iuf" or dtype.itemsize > 8:
            raise DatasetError(
                f"{path}: holds colours or complex numbers ({dtype}), and no grey values. Save it as grey."
            )
        shape, skipped = _one_of(path, header, reading)
        grid, code = _grid(path, header, shape, reading)
        raw = Raw(path, offset, dtype, (shape[2], shape[1], shape[0]))
        if packed:
            free_space(scratch, offset + (1 + skipped) * raw.nbytes, path)
            raw = Raw(scratch / "unpacked", offset, dtype, raw.shape)
            file.seek(0)
            unpack(file, "gzip", raw.path, path, offset + (1 + skipped) * raw.nbytes)
    slope, intercept = header.get_slope_inter()
    raw = Raw(raw.path, offset + skipped * raw.nbytes, dtype, raw.shape).check(path)
    slope, intercept = (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))
    unit = header.get_xyzt_units()[0]
    return Volume(raw, grid, slope, intercept, code=code, unit=MM if unit == "unknown" else unit)


def _header(path: Path, file: Any) -> "Nifti1Header":
    try:
        from nibabel.nifti1 import Nifti1Header
        from nibabel.nifti2 import Nifti2Header
    except ImportError as error:
        raise DatasetError(f"{path}: NIfTI files need nibabel. Install it: {INSTALL}.") from error
    with silenced(path, "NIfTI"):
        size = file.read(4)
        file.seek(0)
        kinds = {348: Nifti1Header, 540: Nifti2Header}
        kind = kinds.get(int.from_bytes(size, "little")) or kinds.get(int.from_bytes(size, "big"))
        if kind is None:
            raise DatasetError(f"{path}: is not a NIfTI file: it does not begin with a NIfTI header. Export it again.")
        header: Nifti1Header = kind.from_fileobj(file, check=False)
        header.get_data_dtype(), header.get_data_shape(), header.get_slope_inter()
        return header


def _one_of(path: Path, header: "Nifti1Header", reading: Reading) -> tuple[tuple[int, int, int], int]:
    """Returns the shape of the volume to read, and the number of volumes before it."""
    whole = [int(size) for size in header.get_data_shape()]
    while len(whole) > 3 and whole[-1] == 1:
        whole.pop()
    if len(whole) < 3 or min(whole) < 1:
        raise DatasetError(
            f"{path}: has {len(whole)} axes of {whole} voxels, and a volume has 3. Inspect it as an image."
        )
    if len(whole) > 4:
        raise DatasetError(f"{path}: has {len(whole)} axes ({whole}). Save the volumes as files of 3 or 4 axes.")
    shape, several = (whole[0], whole[1], whole[2]), whole[3] if len(whole) == 4 else 1
    if several == 1 and not reading.channel:
        return shape, 0
    if reading.channel is None or not 0 <= reading.channel < several:
        raise DatasetError(
            f"{path}: holds {several} volumes along its fourth axis (times, or kinds of images). Say which is read: "
            f"--channel 0 … {several - 1}."
        )
    return shape, reading.channel


def _grid(path: Path, header: "Nifti1Header", shape: tuple[int, int, int], reading: Reading) -> tuple[Grid, int]:
    """Returns the geometry to use, and NIfTI's code of its space."""
    with silenced(path, "NIfTI"):
        sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
        found = {"sform": sform, "qform": qform}
        known = {name: np.asarray(affine, float) for name, affine in found.items() if affine is not None}
    grids = {name: named_grid(path, shape, affine) for name, affine in known.items()}
    spacing = tuple(float(size) for size in header.get_zooms()[:3])
    if not grids:
        if not reading.codes:
            raise DatasetError(f"{path}: sform and qform are both 0: {NO_CODES}")
        return grid_from_codes(path, reading.codes, shape, spacing), 1
    if len(grids) == 2 and not reading.form:
        apart = grids["sform"].apart(grids["qform"])
        if apart > APART * min(grids["sform"].spacing):
            raise DatasetError(
                f"{path}: its two geometries disagree: sform ({grids['sform'].codes}) and qform "
                f"({grids['qform'].codes}) lie up to {apart:.3g} mm apart. Say which is right: --form sform, or qform."
            )
    name = reading.form if reading.form in grids else next(iter(grids))
    return grids[name], int(header[f"{name}_code"])


def write_nifti(path: Path, raw: Raw, grid: Grid, code: int = 1, unit: str = MM) -> None:
    """Writes voxels as a compressed NIfTI file, atomically and plane by plane. Its header holds only the geometry.

    Args:
        path: File to write, `.nii.gz`.
        raw: Voxels `[k, j, i]` of the stored axes i, j, k, float32 or uint8.
        grid: Grid of the voxels.
        code: NIfTI's code of the space: 1 the scanner, 2 another file, 4 an atlas.
        unit: Unit of the grid's lengths: `mm`, `meter` or `micron`.

    Raises:
        UserError: The file cannot be written.
    """
    from nibabel.nifti1 import Nifti1Header

    header = Nifti1Header()
    header.set_data_dtype(raw.dtype)
    header.set_data_shape(grid.shape)
    header.set_xyzt_units(unit)
    header.set_qform(grid.affine, code, strip_shears=True)
    header.set_sform(grid.affine, code)
    header["vox_offset"] = header.single_vox_offset
    header.set_slope_inter(1, 0)
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as stream,  # without a file name
    ):
        stream.write(header.binaryblock + b"\0" * (header.single_vox_offset - len(header.binaryblock)))
        for _, block in raw.blocks():
            stream.write(np.ascontiguousarray(block).tobytes())
