"""The file of image records. Comparisons of runs, and intervals that are computed later, read it.

It is a NumPy archive (`.npz`) of plain arrays; nothing is pickled. The arrays of the images are concatenated.
`bins_of` and `marked_of` say how many elements belong to each image.
"""

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from afclip_lightning.metrics.histogram import MANTISSA, WIDE_MANTISSA
from afclip_lightning.metrics.image_counts import ImageCounts, ImageRecord
from afclip_lightning.results import Key
from afclip_runtime.errors import UserError, shown
from afclip_runtime.files import atomic_path, parse_json
from afclip_runtime.files.arrays import read_arrays

FORMAT = 1

_WHOLE = ("lowest", "highest", "bins_of", "marked_of")  # one number per image
_Types = dict[str, type[np.generic]]
_OF_IMAGES: _Types = {"label": np.int8, "score": np.float64, "masked": np.bool_, "wide": np.bool_}
_OF_IMAGES |= dict.fromkeys(_WHOLE, np.int64)
_OF_BINS: _Types = {"bins": np.uint16, "pixels": np.uint32}
_OF_MARKED: _Types = {"marked": np.uint16, "anomalous": np.uint32, "region_weight": np.int64}
_TYPES: _Types = {**_OF_IMAGES, **_OF_BINS, **_OF_MARKED}


@dataclass(frozen=True)
class _Head:
    """The part of the file that is not numeric.

    Attributes:
        format: Version of the file.
        images: Dataset, category and image names of each category, in the order of the arrays.
    """

    format: int
    images: list[tuple[str, str, list[str]]]


def records_file(suffix: str = "") -> str:
    """Returns the name of the file in the folder of a run.

    Args:
        suffix: Suffix of the run's tables, after `results`; see `find_table`.
    """
    return f"image_counts{suffix}.npz"


RECORDS_FILE = records_file()


def write_records(path: Path, records: Mapping[Key, Sequence[ImageRecord]]) -> None:
    """Writes the records of all categories in one step. Equal records give equal bytes: images are sorted by name.

    Args:
        path: Path of the file.
        records: Records by dataset and category.

    Raises:
        UserError: The disk is full or not writable.
    """
    ordered = {key: sorted(part, key=lambda record: record.name) for key, part in records.items()}
    images = [record for part in ordered.values() for record in part]
    head = _Head(FORMAT, [(*key, [record.name for record in part]) for key, part in ordered.items()])
    sizes = [(0, 0, False, 0, 0) if (part := record.pixels()) is None else _size(part) for record in images]
    lowest, highest, wide, bins_of, marked_of = zip(*sizes, strict=True) if sizes else ((),) * 5
    values: dict[str, Sequence[Any]] = {
        "label": [record.label for record in images],
        "score": [np.nan if record.score is None else record.score for record in images],
        "masked": [record.counts is not None for record in images],
        "wide": wide,
        "lowest": lowest,
        "highest": highest,
        "bins_of": bins_of,
        "marked_of": marked_of,
    }
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        text = np.frombuffer(json.dumps(asdict(head)).encode(), np.uint8)
        _write_array(archive, "head", np.uint8, len(text), [text])
        for name, kind in _OF_IMAGES.items():
            _write_array(archive, name, kind, len(images), [np.array(values[name], kind)])
        for number, names in (("bins_of", _OF_BINS), ("marked_of", _OF_MARKED)):
            for name, kind in names.items():
                parts = (getattr(part, name) for record in images if (part := record.pixels()) is not None)
                _write_array(archive, name, kind, sum(values[number]), parts)


def _size(counts: ImageCounts) -> tuple[int, int, bool, int, int]:
    return counts.lowest, counts.highest, counts.wide, len(counts.bins), len(counts.marked)


def _write_array(
    archive: zipfile.ZipFile, name: str, kind: type[np.generic], size: int, parts: Iterable[np.ndarray]
) -> None:
    """Writes an array `[size]` from its parts, one at a time in memory, as NumPy's `savez_compressed` does."""
    header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": (size,)}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.astype(kind).tobytes())


def read_records(path: Path) -> dict[Key, list[ImageRecord]]:
    """Returns the records that `write_records` wrote.

    Raises:
        UserError: The file is absent, damaged, or of another kind. The message names it.
    """
    try:
        arrays = read_arrays(path, {"head": np.uint8, **_TYPES})
        head = parse_json(arrays["head"].tobytes(), _Head, shown(path))
        _check(head, arrays)
        ends = {name: arrays[name].cumsum() for name in ("bins_of", "marked_of")}
        at = count()
        return {
            (dataset, category): [_record(name, next(at), arrays, ends) for name in names]
            for dataset, category, names in head.images
        }
    except ValueError as error:
        raise UserError(
            f"{shown(path)} holds no counts of images, or is damaged ({error}). Test again to write it again."
        ) from error


def _check(head: _Head, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises a `ValueError` unless the names and the arrays fit each other."""
    if head.format != FORMAT:
        raise ValueError(f"its format is {head.format}, this version reads {FORMAT}")
    if len({(dataset, category) for dataset, category, _ in head.images}) < len(head.images):
        raise ValueError("it holds a category twice")
    images = sum(len(names) for *_, names in head.images)
    fits = all(len(arrays[name]) == images for name in _OF_IMAGES)
    for number, parts in (("bins_of", _OF_BINS), ("marked_of", _OF_MARKED)):
        lengths = arrays[number]
        fits = fits and bool((lengths >= 0).all()) and all(len(arrays[name]) == lengths.sum() for name in parts)
    if not fits or not np.isin(arrays["label"], (0, 1)).all() or np.isinf(arrays["score"]).any():
        raise ValueError("its parts do not fit each other")


def _record(name: str, i: int, arrays: Mapping[str, np.ndarray], ends: Mapping[str, np.ndarray]) -> ImageRecord:
    """Returns the record of image `i`.

    Raises:
        ValueError: The bins of the image are not those of its range.
    """

    def part(of: str, number: str) -> np.ndarray:
        end = int(ends[number][i])
        return arrays[of][end - int(arrays[number][i]) : end]

    score, counts = float(arrays["score"][i]), None
    if arrays["masked"][i]:
        counts = ImageCounts(
            int(arrays["lowest"][i]),
            int(arrays["highest"][i]),
            bool(arrays["wide"][i]),
            *(part(of, "bins_of") for of in _OF_BINS),
            *(part(of, "marked_of") for of in _OF_MARKED),
        )
        infinite = 0x7FF << WIDE_MANTISSA if counts.wide else 0xFF << MANTISSA  # its key
        if not -infinite < counts.lowest <= counts.highest < infinite or not _holds(counts):
            raise ValueError(f"{name}: its bins are not those of its scores")
    return ImageRecord(name, int(arrays["label"][i]), None if np.isnan(score) else score, counts)


def _holds(counts: ImageCounts) -> bool:
    """Returns whether the bins ascend within the partition and no bin has more anomalous pixels than pixels."""
    at = np.searchsorted(counts.bins, counts.marked).clip(max=len(counts.bins) - 1)
    return (
        0 < len(counts.bins) <= int(counts.bins[-1]) + 1 <= counts.partition.size
        and bool((np.diff(counts.bins.astype(int)) > 0).all() and (np.diff(counts.marked.astype(int)) > 0).all())
        and bool((counts.bins[at] == counts.marked).all() and (counts.anomalous <= counts.pixels[at]).all())
        and bool((counts.region_weight > 0).all())
    )
