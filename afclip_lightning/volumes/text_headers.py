"""Reads NRRD and MetaImage files (.nrrd, .nhdr, .mha, .mhd), which have text headers."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from afclip_lightning.data.images import file_inside
from afclip_lightning.volumes.grid import INSTALL, LPS, Grid, named_grid
from afclip_lightning.volumes.raw import Raw, free_space, unpack
from afclip_lightning.volumes.silence import silenced
from afclip_lightning.volumes.volume import NO_CODES, Reading, Volume, grid_from_codes
from afclip_runtime.errors import DatasetError
from afclip_runtime.files import open_regular

HEADER_LIMIT = 2**20  # bytes
SPACES = {"right": 1, "left": -1, "anterior": 1, "posterior": -1, "superior": 1, "inferior": -1}
SHORT = {"R": "right", "L": "left", "A": "anterior", "P": "posterior", "S": "superior", "I": "inferior"}
META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
NRRD_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}


def open_nrrd(path: Path, scratch: Path, reading: Reading) -> Volume:
    """Returns the volume of an NRRD file, with its voxels in it or in one file beside it, raw or with gzip.

    Raises:
        UserError: The file cannot be read, is truncated, is not a volume of grey values, or states no geometry.
    """
    try:
        import nrrd
    except ImportError as error:
        raise DatasetError(f"{path}: NRRD files need pynrrd. Install it: {INSTALL}.") from error
    with open_regular(path, error=DatasetError) as file:
        with silenced(path, "NRRD"):
            header: Mapping[str, Any] = nrrd.read_header(file)
            kind = next(kind for kind, names in NRRD_TYPES.items() if str(header["type"]).lower() in names)
            dtype = np.dtype((">" if header.get("endian") == "big" else "<") + kind)
            sizes = [int(size) for size in header["sizes"]]
        offset = file.tell()
    shape = _three(path, sizes)
    grid = _nrrd_grid(path, header, shape, reading)
    packing = {"raw": "", "gzip": "gzip", "gz": "gzip"}.get(str(header.get("encoding")).lower())
    if packing is None or header.get("line skip") or header.get("lineskip"):
        raise DatasetError(f"{path}: its encoding is not supported. Save it with the encoding raw or gzip.")
    skip = int(header.get("byte skip", header.get("byteskip", 0)))
    beside = header.get("data file", header.get("datafile"))
    raw = Raw(path, offset, dtype, (shape[2], shape[1], shape[0]))
    return Volume(_placed(raw, beside, packing, skip, scratch), grid)


def _nrrd_grid(path: Path, header: Mapping[str, Any], shape: tuple[int, int, int], reading: Reading) -> Grid:
    """Returns the grid that an NRRD header describes.

    Raises:
        DatasetError: The header does not state the orientation of the axes, or is damaged.
    """
    space = str(header.get("space", "")).lower()
    sides = space.split("-") if "-" in space else [SHORT.get(letter.upper(), "") for letter in space]
    with silenced(path, "NRRD"):
        if len(sides) == 3 and all(side in SPACES for side in sides) and "space directions" in header:
            affine = np.eye(4)
            affine[:3, :3] = np.asarray(header["space directions"], float).T  # a row per stored axis
            affine[:3, 3] = np.asarray(header.get("space origin", np.zeros(3)), float)
            return named_grid(path, shape, np.diag([*(SPACES[side] for side in sides), 1]) @ affine)
        spacing = tuple(float(size) for size in header.get("spacings", ()))
    if not reading.codes:
        raise DatasetError(f"{path}: {NO_CODES}")
    return grid_from_codes(path, reading.codes, shape, spacing if len(spacing) == 3 else (1.0, 1.0, 1.0))


def open_metaimage(path: Path, scratch: Path, reading: Reading) -> Volume:
    """Returns the volume of a MetaImage file, with its voxels in it or in one file beside it, raw or with zlib.

    Its world is DICOM's (LPS), as in ITK.

    Raises:
        UserError: The file cannot be read, is truncated, or is not a volume of grey values.
    """
    with open_regular(path, error=DatasetError) as file:
        header = _meta_header(path, file)
        offset = file.tell()
    with silenced(path, "MetaImage"):
        shape = _three(path, [int(size) for size in header["DimSize"].split()])
        swapped = any(
            header.get(key, "").lower() == "true" for key in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
        )
        dtype = np.dtype((">" if swapped else "<") + META_TYPES[header["ElementType"]])
        numbers = {
            name: np.array([*map(float, next((header[key] for key in keys if key in header), default).split())])
            for name, keys, default in (
                ("spacing", ("ElementSpacing", "ElementSize"), "1 1 1"),
                ("origin", ("Offset", "Position", "Origin"), "0 0 0"),
                ("turn", ("TransformMatrix", "Rotation", "Orientation"), "1 0 0 0 1 0 0 0 1"),
            )
        }
        affine = np.eye(4)
        affine[:3, :3] = numbers["turn"].reshape(3, 3).T * numbers["spacing"]  # a row per stored axis
        affine[:3, 3] = numbers["origin"]
        grid = named_grid(path, shape, LPS @ affine)
        skip = int(header.get("HeaderSize", "0"))
        slope = float(header.get("ElementToIntensityFunctionSlope", "1"))
        intercept = float(header.get("ElementToIntensityFunctionOffset", "0"))
    if header.get("ElementNumberOfChannels", "1") != "1" or header.get("BinaryData", "True").lower() != "true":
        raise DatasetError(f"{path}: holds colours, vectors or texts, and no grey values. Save it as grey, binary.")
    raw = Raw(path, offset, dtype, (shape[2], shape[1], shape[0]))
    kind = "zlib" if header.get("CompressedData", "").lower() == "true" else ""
    beside = None if header["ElementDataFile"].upper() == "LOCAL" else header["ElementDataFile"]
    return Volume(_placed(raw, beside, kind, skip, scratch), grid, slope, intercept)


def _meta_header(path: Path, file: BinaryIO) -> dict[str, str]:
    header: dict[str, str] = {}
    while file.tell() < HEADER_LIMIT and (line := file.readline(HEADER_LIMIT)):
        name, equals, value = line.decode("utf-8", "replace").partition("=")
        if not equals:
            break
        header[name.strip()] = value.strip()
        if name.strip() == "ElementDataFile":
            return header
    raise DatasetError(f"{path}: is not a MetaImage file: no line names its data (ElementDataFile). Export it again.")


def _three(path: Path, sizes: list[int]) -> tuple[int, int, int]:
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes = sizes[:-1]
    if len(sizes) != 3 or min(sizes) < 1 or math.prod(sizes) > 2**40:
        raise DatasetError(
            f"{path}: has {len(sizes)} axes of {sizes} voxels, and a volume has 3. Save each volume alone."
        )
    return sizes[0], sizes[1], sizes[2]


def _placed(raw: Raw, beside: str | None, kind: str, skip: int, scratch: Path) -> Raw:
    """Returns the voxels of a file, from behind its header or from a file beside it, unpacked if necessary."""
    path, place, offset = raw.path, raw.path, raw.offset
    if beside is not None:
        if re.search(r"[\\/%\s]|^LIST", str(beside)):
            raise DatasetError(f"{path}: its voxels lie in several files or another folder. Save it as one file.")
        place, offset = file_inside(path.parent, str(beside), str(path)), 0
    if not kind:
        offset = place.stat().st_size - raw.nbytes if skip == -1 else offset + skip
        return Raw(place, max(offset, 0), raw.dtype, raw.shape).check(path)
    free_space(scratch, raw.nbytes, path)
    with open_regular(place, error=DatasetError) as file:
        file.seek(offset)
        unpack(file, kind, scratch / "unpacked", path, raw.nbytes)
    return Raw(scratch / "unpacked", 0, raw.dtype, raw.shape).check(path)
