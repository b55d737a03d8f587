"""Counts of images in a temporary file, so that memory does not grow with the number of images."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from afclip_lightning.metrics.image_counts import ImageCounts, ImageRecord
from afclip_runtime.errors import WriteError, shown

IN_MEMORY = 2**26
"""Number of bytes that are kept in memory. Further bytes are written to the file."""

_TYPES: dict[str, type[np.generic]] = {  # in the order of the file, so that each array is aligned
    "region_weight": np.int64,
    "saturated_weight": np.int64,
    "pixels": np.uint32,
    "anomalous": np.uint32,
    "bins": np.uint16,
    "marked": np.uint16,
}


class CountsFile:
    """Storage of image counts: memory as long as they are few, then a file without a name.

    The system removes the file when nothing refers to it any more, and when the process is killed.

    Args:
        folder: Folder of the file; by default the system's folder for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        place = None if folder is None else str(folder)
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY, dir=place)  # noqa: SIM115  (open as long as records use it)
        self._end = 0

    def keep(self, record: ImageRecord) -> ImageRecord:
        """Stores the counts of a record and returns the record that refers to them.

        Raises:
            WriteError: The disk is full or not writable.
        """
        counts = record.pixels()
        if counts is None:
            return record
        parts = [getattr(counts, name) for name in _TYPES]
        kinds = zip(parts, _TYPES.values(), strict=True)
        data = b"".join(b"" if part is None else part.astype(kind).tobytes() for part, kind in kinds)
        head, lengths = (counts.lowest, counts.highest, counts.wide), tuple(0 if p is None else len(p) for p in parts)
        place = KeptCounts(self, self._end, head, lengths, counts.is_saturated)
        try:
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)  # a trainer creates its folder at its first write
            self._file.seek(self._end)
            self._file.write(data)
        except OSError as error:
            place_of = self.folder or tempfile.gettempdir()
            raise WriteError(
                f"{shown(place_of)}: the counts of images cannot be written there ({error.strerror or error}). Free "
                "some space, or test without intervals, aupimo and defect_types."
            ) from error
        self._end += len(data)
        return replace(record, counts=place)

    def read(self, at: int, size: int) -> bytes:
        """Returns `size` bytes from position `at` on."""
        self._file.seek(at)
        return self._file.read(size)


class KeptCounts(NamedTuple):
    """Stored counts of one image.

    Attributes:
        file: The file that holds them.
        at: Position of their first byte.
        head: Lowest and highest key, and whether keys are those of float64 scores; see `ImageCounts`.
        lengths: Number of elements of each array, in the order of the file; 0 for an absent array.
        is_saturated: Whether there are weights of sPRO.
        is_swapped: Whether the weights of sPRO replace the region weights.
    """

    file: CountsFile
    at: int
    head: tuple[int, int, bool]
    lengths: tuple[int, ...]
    is_saturated: bool
    is_swapped: bool = False

    def swapped(self) -> "KeptCounts":
        """See `Counts`."""
        return self._replace(is_swapped=self.is_saturated)

    def load(self) -> ImageCounts:
        """Returns the counts."""
        ends = np.cumsum(
            [0, *(n * np.dtype(kind).itemsize for n, kind in zip(self.lengths, _TYPES.values(), strict=True))]
        )
        data = self.file.read(self.at, int(ends[-1]))
        parts: dict[str, np.ndarray | None] = {
            name: np.frombuffer(data, kind, count, start)
            for (name, kind), count, start in zip(_TYPES.items(), self.lengths, ends.tolist(), strict=False)
        }
        if not self.is_saturated:
            parts["saturated_weight"] = None
        counts = ImageCounts(*self.head, **parts)  # type: ignore[arg-type]
        return counts.swapped() if self.is_swapped else counts

    def __reduce__(self) -> tuple[object, ...]:
        # another process has no access to the file, so the counts themselves are sent
        return ImageCounts, tuple(self.load())
