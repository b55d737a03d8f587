"""NumPy archives (`.npz`) of plain arrays, without pickled objects."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from afclip_runtime.files.reading import TABLE_LIMIT, open_regular

PACKING = 50
"""Maximum ratio of unpacked to packed size of a file above `TABLE_LIMIT`; counts of images have a ratio of about 5."""


def read_arrays(path: Path, types: Mapping[str, type[np.generic]]) -> dict[str, np.ndarray]:
    """Returns the arrays `[n]` of an archive by name.

    Args:
        path: The archive.
        types: Types of the arrays to read, by name. Other arrays of the archive are not read.

    Raises:
        UserError: The file cannot be opened.
        ValueError: The file is not an archive, is damaged or too large, or one of the arrays is missing or of another
            type or shape.
    """
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                size = sum(part.file_size for part in archive.infolist())
                limit = max(TABLE_LIMIT, PACKING * sum(part.compress_size for part in archive.infolist()))
                if size > limit:
                    raise ValueError(f"{size:,} bytes unpacked; at most {limit:,} are read")
            file.seek(0)
            with np.load(file, allow_pickle=False) as loaded:
                arrays = {name: loaded[name] for name in types}
        except (KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise ValueError(str(error)) from error
    for name, number in types.items():
        if arrays[name].dtype != number or arrays[name].ndim != 1:
            raise ValueError(f"{name} is {arrays[name].dtype} {[*arrays[name].shape]}")
    return arrays
