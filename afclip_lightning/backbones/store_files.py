"""The files of a feature store: their metadata, verification and removal. Without torch."""

import hashlib
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from afclip_lightning.backbones.spec import PosEmbedResize
from afclip_lightning.backbones.store_layout import SUFFIX, Folder, keys, over_folders, place_of, taps
from afclip_runtime.errors import DatasetError, UserError, shown
from afclip_runtime.files import open_regular, parts_of, read_json, refresh
from afclip_runtime.types import ImageSize
from afclip_runtime.views.frame import Interpolation, Resize

StorageType = Literal["float16", "float32"]
SPEC_FILE = "spec.json"
BITS: dict[str, tuple[type, int]] = {"F16": (np.uint16, 0x7C00), "F32": (np.uint32, 0x7F800000)}
"""By the safetensors name of a data type: the unsigned type of its size, and the exponent bits of infinity and NaN."""


@dataclass(frozen=True)
class StoreFacts:
    """Content of `spec.json`: what all features of a folder have in common. See `FeatureSpec` and `FeatureStore`."""

    model: str
    weights_hash: str
    activation: str
    image_size: ImageSize
    pos_embed: PosEmbedResize
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    compute: str
    dtype: StorageType
    resize: Resize = "squash"
    interpolation: Interpolation = "bicubic"

    @classmethod
    def read(cls, folder: Path) -> "StoreFacts":
        """Reads the `spec.json` of a folder of features.

        Raises:
            UserError: The file is missing or damaged.
        """
        remedy = "Remove the folder; its features are then computed again."
        return read_json(folder / SPEC_FILE, cls, remedy=remedy)


class DamagedError(UserError):
    """A file of features is truncated, changed or misplaced."""


def image_digest(image: Path | bytes, white: int | None = None, roi: str = "") -> str:
    """Returns the digest that names an image's features. It depends on the file's content, `white` and `roi`.

    Args:
        image: Path of the image file, or its content.
        white: See `Sample`.
        roi: Fingerprint of the region of interest; empty for the whole image.

    Raises:
        DatasetError: The path is not a regular file, or cannot be read.
    """
    seen = [f"white {white}" if white is not None else "", f"roi {roi}" if roi else ""]
    digest = hashlib.blake2b(digest_size=20, key=" ".join(filter(None, seen)).encode())
    parts = [image] if isinstance(image, bytes) else parts_of(image, remedy="Replace the file.", error=DatasetError)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def checksum(row: Mapping[str, Any]) -> int:
    """Returns the CRC-32 of an image's arrays or tensors, in the order of their names."""
    value = 0
    for name in sorted(row):
        value = zlib.crc32(np.asarray(row[name]).reshape(-1).view(np.uint8), value)  # type: ignore[arg-type]
    return value


def statement(path: Path, row: Mapping[str, Any]) -> dict[str, str]:
    """Returns the metadata of a file, as one entry. With several, their order and thus the file's bytes would vary."""
    return {"of": f"{'/'.join(place_of(path) or ())} {checksum(row)}"}


def read_checked(path: Path, framework: Literal["numpy", "pt"] = "numpy") -> dict[str, Any]:
    """Returns the NumPy arrays or the memory-mapped tensors of a file of features, by name.

    Raises:
        DamagedError: The file is truncated, changed or misplaced, or a value is not finite.
        UserError: The path is not a regular file, or may not be read.
    """
    open_regular(path).close()  # opening a named pipe would wait
    try:
        with safe_open(path, framework=framework) as file:
            names = list(file.keys())
            forms = {name: file.get_slice(name).get_dtype() for name in names}
            if others := {name: form for name, form in forms.items() if form not in BITS}:
                raise DamagedError(f"{shown(path)}: the features have another type or shape ({others}).")
            row = {name: file.get_tensor(name) for name in names}
            facts = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedError(f"{shown(path)}: the features cannot be read ({error}).") from error
    place, _, written = facts.get("of", "").rpartition(" ")
    if written != str(checksum(row)):
        raise DamagedError(f"{shown(path)}: the features have changed since they were written.")
    own = place_of(path)
    tap = own[1] if own else ""
    if (
        not own
        or place != "/".join(own)
        or set(row) != ({"class_token", "image_embedding"} if tap == "embedding" else {tap})
    ):
        raise DamagedError(f"{shown(path)}: the features belong to another image, layer or backbone.")
    if not all(_is_finite(np.asarray(row[name]), *BITS[forms[name]]) for name in names):
        raise DamagedError(f"{shown(path)}: the features hold NaN or infinity.")
    return row


def _is_finite(array: np.ndarray, unsigned: type, exponent: int) -> bool:
    """Returns whether every value is finite. For 16-bit values this is several times faster than NumPy's test."""
    bits: np.ndarray = array.reshape(-1).view(unsigned)
    return bool((bits & unsigned(exponent)).max(initial=0) < exponent)


def info(root: Path) -> list[dict[str, Any]]:
    """Returns key, spec, images and bytes per tap of each backbone in a store.

    Raises:
        UserError: See `check_store`.
    """
    specs = check_store(root)
    found = {key: {tap: {"images": 0, "bytes": 0} for tap in taps(root, key)} for key in keys(root)}
    for folder, images, size in over_folders(root, _measured, "Counting"):
        found[folder.key][folder.tap]["images"] += images
        found[folder.key][folder.tap]["bytes"] += size
    return [{"key": key, "spec": asdict(spec), "taps": found[key]} for key, spec in specs.items()]


def check_store(root: Path) -> dict[str, StoreFacts]:
    """Returns the facts of each backbone of a store, by key.

    Raises:
        UserError: The folder holds no store, or one of its `spec.json` files is damaged.
    """
    specs = {key: StoreFacts.read(root / key) for key in keys(root) if (root / key / SPEC_FILE).exists()}
    if not specs:
        raise UserError(f"{root} holds no features. Make some with `features build`, or a run with --features.cache.")
    return specs


def stored_bytes(root: Path) -> int:
    """Returns the size of a store's features in bytes."""
    return sum(size for _, _, size in over_folders(root, _measured, "Counting"))


def _measured(folder: Folder) -> tuple[Folder, int, int]:
    """Returns the folder, the number of its files and their bytes."""
    images = size = 0
    for entry in folder.entries():
        with suppress(FileNotFoundError):
            size += entry.stat().st_size
            images += 1
    return folder, images, size


def check_files(root: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of files in each folder of a store, and its problems, one sentence per damaged file."""
    yield from over_folders(root, _checked, "Verifying")


def verify(root: Path) -> list[str]:
    """Returns the problems of a store's files, one sentence per damaged file."""
    return [problem for _, problems in check_files(root) for problem in problems]


def _checked(folder: Folder) -> tuple[int, list[str]]:
    count, problems = 0, []
    for entry in folder.entries():
        try:
            count += 1
            read_checked(Path(entry.path))
        except UserError as error:  # a damaged file, or a path that is not a regular file
            problems.append(str(error))
    return count, problems


def prune(root: Path, key: str | None, days: float | None, damaged: bool) -> tuple[int, int]:
    """Removes features, and temporary files of killed runs. Returns the number of removed files and of their bytes.

    Args:
        root: Folder of the store.
        key: Backbone whose features are removed, as `info` names it, or `KEY/TAP`.
        days: Files that no run has read for this many days are removed.
        damaged: Whether damaged files are removed.

    Raises:
        UserError: The store has no such key, or see `check_store`.
    """
    known = [name for of in check_store(root) for name in (of, *(f"{of}/{tap}" for tap in taps(root, of)))]
    if key is not None and key not in known:
        raise UserError(f"{root} has no features under the key {key!r}; `features info` lists the keys.")
    now = refresh(root)  # the clock of another machine may be hours off
    oldest = now - days * 86400 if days is not None else -math.inf
    count = size = 0
    for removed, freed in over_folders(
        root, partial(_pruned, key=key, now=now, oldest=oldest, damaged=damaged), "Pruning"
    ):
        count, size = count + removed, size + freed
    if key is not None:
        shutil.rmtree(root / key)
    return count, size


def _pruned(folder: Folder, key: str | None, now: float, oldest: float, damaged: bool) -> tuple[int, int]:
    """Does the work of `prune` in one folder. Returns the number of removed files and of their bytes."""
    count = size = 0
    whole = key in (folder.key, f"{folder.key}/{folder.tap}")
    hour = now - 3600
    for suffix in (SUFFIX, ".tmp"):
        for entry in folder.entries(suffix):
            with suppress(FileNotFoundError):
                stat = entry.stat()
                if suffix == ".tmp":
                    doomed = stat.st_mtime < hour  # another process may still be writing a younger one
                else:
                    doomed = whole or max(stat.st_atime, stat.st_mtime) < oldest or (damaged and _damaged(entry.path))
                if doomed:
                    os.unlink(entry.path)
                    count, size = count + 1, size + stat.st_size
    return count, size


def _damaged(path: str) -> bool:
    try:
        read_checked(Path(path))
    except DamagedError:
        return True
    except UserError:  # not a regular file; `verify` reports it
        return False
    return False
