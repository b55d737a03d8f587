"""The files of a feature store: where they lie, what they say of themselves, and looking after them. Without torch."""

import hashlib
import shutil
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from afclip_lightning.backbones.spec import PosEmbedResize
from afclip_runtime.errors import DatasetError, UserError, shown
from afclip_runtime.files import open_regular, parts_of, read_json
from afclip_runtime.types import ImageSize
from afclip_runtime.views.frame import Interpolation, Resize

StorageType = Literal["float16", "float32"]
SUFFIX = ".safetensors"
SPEC_FILE = "spec.json"
BITS: dict[str, tuple[type, int]] = {"F16": (np.uint16, 0x7C00), "F32": (np.uint32, 0x7F800000)}
"""Types of features, as safetensors names them: unsigned numbers of that size, and the exponent of infinity and NaN."""


@dataclass(frozen=True)
class StoreFacts:
    """What all features of a folder have in common, as `spec.json` says it; see `FeatureSpec` and `FeatureStore`."""

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
        """Returns what stands in a folder of features.

        Raises:
            UserError: Its `spec.json` is damaged.
        """
        remedy = "Remove the folder; its features are then computed again."
        return read_json(folder / SPEC_FILE, cls, remedy=remedy)


class DamagedError(UserError):
    """A file of features is torn, changed or in another's place."""


def image_digest(path: Path, white: int | None = None, roi: str = "") -> str:
    """Returns the name that an image's features go by: from the file's content and from how it is seen.

    Args:
        path: The image.
        white: See `Sample`.
        roi: Fingerprint of the region of interest; empty for the whole image.

    Raises:
        DatasetError: It is no regular file, or cannot be read.
    """
    seen = [f"white {white}" if white is not None else "", f"roi {roi}" if roi else ""]
    digest = hashlib.blake2b(digest_size=20, key=" ".join(filter(None, seen)).encode())
    for part in parts_of(path, remedy="Replace the file.", error=DatasetError):
        digest.update(part)
    return digest.hexdigest()


def _place(path: Path) -> str:
    """Returns what a file's place says of its content: the key of the features, the tap and the image's digest."""
    return f"{path.parts[-4]}/{path.parts[-3]}/{path.stem}"


def checksum(row: Mapping[str, Any]) -> int:
    """Returns the CRC-32 of an image's arrays or tensors, in the order of their names."""
    value = 0
    for name in sorted(row):
        value = zlib.crc32(np.asarray(row[name]).reshape(-1).view(np.uint8), value)  # type: ignore[arg-type]
    return value


def statement(path: Path, row: Mapping[str, Any]) -> dict[str, str]:
    """Returns what a file says of itself, in one entry: several are written in any order, and files would differ."""
    return {"of": f"{_place(path)} {checksum(row)}"}


def read_checked(path: Path, framework: Literal["numpy", "pt"] = "numpy") -> dict[str, Any]:
    """Returns what a file of features holds, by name: arrays of NumPy, or tensors, which are memory-mapped.

    Raises:
        DamagedError: The file is torn, its content has changed, is not finite, or belongs elsewhere.
        UserError: It is no regular file, or may not be read.
    """
    open_regular(path).close()  # opening a named pipe would wait
    try:
        with safe_open(path, framework=framework) as file:
            names = list(file.keys())
            forms = {name: file.get_slice(name).get_dtype() for name in names}
            if others := {name: form for name, form in forms.items() if form not in BITS}:
                raise DamagedError(f"{shown(path)}: the features are of another form ({others}).")
            row = {name: file.get_tensor(name) for name in names}
            facts = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedError(f"{shown(path)}: the features cannot be read ({error}).") from error
    place, _, written = facts.get("of", "").rpartition(" ")
    if written != str(checksum(row)):
        raise DamagedError(f"{shown(path)}: the features have changed since they were written.")
    tap = path.parts[-3]
    if place != _place(path) or set(row) != ({"class_token", "image_embedding"} if tap == "embedding" else {tap}):
        raise DamagedError(f"{shown(path)}: the features are of another image, layer or backbone.")
    if not all(_is_finite(np.asarray(row[name]), *BITS[forms[name]]) for name in names):
        raise DamagedError(f"{shown(path)}: the features hold NaN or infinity.")
    return row


def _is_finite(array: np.ndarray, unsigned: type, exponent: int) -> bool:
    """Returns whether every value is finite: in 16 bits, several times faster than NumPy's own test."""
    bits: np.ndarray = array.reshape(-1).view(unsigned)
    return bool((bits & unsigned(exponent)).max(initial=0) < exponent)


def feature_files(root: Path, key: str = "*", tap: str = "*") -> Iterator[Path]:
    """Yields every file of features under the folder of a store, sorted: of one backbone and tap, or of all."""
    yield from sorted(root.glob(f"{key}/{tap}/*/*{SUFFIX}"))


def info(root: Path) -> list[dict[str, Any]]:
    """Returns what a store holds, one entry per backbone.

    Raises:
        UserError: There is no store.
    """
    folders = sorted(path.parent for path in root.glob(f"*/{SPEC_FILE}"))
    if not folders:
        raise UserError(f"{root} holds no features. Make some with `features build`, or a run with --features.cache.")
    entries = []
    for folder in folders:
        taps = {}
        for tap in sorted(path.name for path in folder.iterdir() if path.is_dir()):
            sizes = [path.stat().st_size for path in feature_files(root, folder.name, tap)]
            taps[tap] = {"images": len(sizes), "bytes": sum(sizes)}
        entries.append({"key": folder.name, "spec": asdict(StoreFacts.read(folder)), "taps": taps})
    return entries


def verify(root: Path) -> list[str]:
    """Returns what is wrong with the files of a store, a sentence each."""
    problems = []
    for path in tqdm(list(feature_files(root)), unit="image", disable=not sys.stderr.isatty()):
        try:
            read_checked(path)
        except UserError as error:  # a file that is damaged, and what is no file
            problems.append(str(error))
    return problems


def prune(root: Path, key: str | None, days: float | None, damaged: bool) -> tuple[int, int]:
    """Removes features and what killed runs left behind; returns how many files and bytes.

    Args:
        root: Folder of the store.
        key: The backbone whose features go, as `info` names it, or `KEY/TAP`.
        days: Files that no run has read for so long go.
        damaged: Whether damaged files go.

    Raises:
        UserError: No such key.
    """
    entries = info(root)
    known = [name for e in entries for name in (e["key"], *(f"{e['key']}/{tap}" for tap in e["taps"]))]
    if key is not None and key not in known:
        raise UserError(f"{root} has no features under the key {key!r}; `features info` lists the keys.")
    oldest = time.time() - days * 86400 if days is not None else None
    doomed = []
    for path in feature_files(root):
        stat = path.stat()
        if key in (path.parts[-4], "/".join(path.parts[-4:-2])) or (
            oldest is not None and max(stat.st_atime, stat.st_mtime) < oldest
        ):
            doomed.append(path)
        elif damaged:
            try:
                read_checked(path)
            except DamagedError:
                doomed.append(path)
            except UserError:  # no file, which `verify` names
                continue
    hour = time.time() - 3600
    # younger ones may be in the making
    doomed += [path for path in root.glob("*/*/*/.*.tmp") if path.stat().st_mtime < hour]
    size = sum(path.stat().st_size for path in doomed)
    for path in doomed:
        path.unlink(missing_ok=True)
    if key is not None:
        shutil.rmtree(root / key)
    return len(doomed), size
