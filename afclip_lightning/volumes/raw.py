"""Voxels in a file, read plane by plane, so that memory does not grow with the volume."""

import gzip
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from afclip_runtime.errors import DatasetError, UserError
from afclip_runtime.files import open_regular

HELD = 2**22  # voxels in memory at a time
PART = 2**20


@dataclass(frozen=True)
class Raw:
    """Contiguous voxels in a file.

    Attributes:
        path: The file.
        offset: Number of bytes before the first voxel.
        dtype: Type of a voxel.
        shape: `[p, b, a]`: p planes, with the last axis fastest.
    """

    path: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, int, int]

    @property
    def nbytes(self) -> int:
        """Returns the size of the voxels in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def per_block(self) -> int:
        """Returns the number of planes with about `HELD` voxels in all, at least one."""
        return max(1, HELD // max(1, self.shape[1] * self.shape[2]))

    def check(self, name: object) -> "Raw":
        """Returns itself, after a check that all of its voxels are in the file.

        Raises:
            DatasetError: The file is truncated.
        """
        lacking = self.offset + self.nbytes - self.path.stat().st_size
        if lacking > 0:
            raise DatasetError(f"{name}: {lacking:,} bytes of its voxels are missing: it is cut off. Copy it again.")
        return self

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns planes `[stop - start, b, a]`."""
        return self._at(start * self.shape[1], (stop - start) * self.shape[1]).reshape(-1, *self.shape[1:])

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields all planes in blocks, each with the number of its first plane."""
        for start in range(0, self.shape[0], self.per_block):
            yield start, self.read(start, min(start + self.per_block, self.shape[0]))

    def _at(self, row: int, rows: int) -> np.ndarray:
        width = self.shape[2]
        with open_regular(self.path, error=DatasetError) as file:
            file.seek(self.offset + row * width * self.dtype.itemsize)
            return np.fromfile(file, self.dtype, rows * width)

    def brought_first(self, axis: int, place: Path) -> "Raw":
        """Returns the voxels with an axis moved to the front, in a file at `place`, or itself if it is the first axis.

        Raises:
            UserError: The disk is full.
        """
        if axis == 0:
            return self
        shape = (self.shape[axis], *(size for other, size in enumerate(self.shape) if other != axis))
        made = Raw(place, 0, self.dtype, (shape[0], shape[1], shape[2]))
        with written(place) as file:
            for start, block in self.blocks():
                for plane, part in enumerate(np.moveaxis(block, axis, 0)):
                    file.seek((plane * shape[1] + start) * shape[2] * self.dtype.itemsize)
                    file.write(part.tobytes())
        return made

    def brought_back(self, axis: int, place: Path) -> "Raw":
        """Returns the voxels with the first axis moved back, in a file at `place`: the inverse of `brought_first`.

        Raises:
            UserError: The disk is full.
        """
        if axis == 0:
            return self
        planes, first, last = self.shape
        shape = (first, planes, last) if axis == 1 else (first, last, planes)
        made = Raw(place, 0, self.dtype, shape)
        with written(place) as file:
            for start in range(0, first, made.per_block):
                stop = min(start + made.per_block, first)
                parts = [self._at(plane * first + start, stop - start).reshape(-1, last) for plane in range(planes)]
                file.write(np.moveaxis(np.stack(parts), 0, axis).tobytes())
        return made


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """Yields a file to write to, with one error for a full disk.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        with path.open("wb") as file:
            yield file
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot be written ({error.strerror or error}). Volumes are unpacked there: free some "
            "space or choose another --out."
        ) from error


def unpack(file: BinaryIO, kind: str, place: Path, name: object, limit: int) -> None:
    """Decompresses a stream into a file, piece by piece.

    Args:
        file: File at the start of the stream.
        kind: `gzip` or `zlib`.
        place: File to write.
        name: Name of the volume in messages.
        limit: Maximum number of bytes to write: the size stated in the header.

    Raises:
        DatasetError: The stream is truncated or damaged.
        UserError: The disk is full.
    """
    with written(place) as out:
        try:
            if kind == "gzip":
                with gzip.GzipFile(fileobj=file) as stream:
                    left = limit
                    while left > 0 and (part := stream.read(min(PART, left))):
                        out.write(part)
                        left -= len(part)
                    stream.read(1)  # its end, which holds the checksum
                return
            inflate, left = zlib.decompressobj(), limit
            while left > 0 and (part := file.read(PART)):
                found = inflate.decompress(part, left)
                out.write(found)
                left -= len(found)
                while left > 0 and inflate.unconsumed_tail:
                    found = inflate.decompress(inflate.unconsumed_tail, left)
                    out.write(found)
                    left -= len(found)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DatasetError(
                f"{name}: its compressed data is cut off or damaged. Copy it again; gzip -t tests it."
            ) from error


def free_space(folder: Path, needed: int, name: object) -> None:
    """Raises if the disk of a folder has too little space.

    Raises:
        UserError: There is too little space. The message states the need.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{name}: needs {needed / 2**30:.1f} GiB in {folder} while it is cut, and {free / 2**30:.1f} GiB are free. "
            "Free some space, or choose another --out."
        )
