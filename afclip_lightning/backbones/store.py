"""Features of a frozen backbone on disk, so that the pass over an image is paid once."""

import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from afclip_lightning.backbones.spec import FeatureSpec
from afclip_lightning.errors import UserError
from afclip_lightning.files import atomic_path, write_json
from afclip_lightning.types import ClipFeatures

StorageType = Literal["float16", "float32"]
SUFFIX = ".safetensors"
SPEC_FILE = "spec.json"


@dataclass(frozen=True)
class FeatureCache:
    """Whether and how features are kept on disk.

    Attributes:
        cache: Folder of the store; `None` keeps nothing.
        dtype: Type that features are kept in. `float32` gives the same numbers as without a store; `float16` takes half
            the space and moves scores a little.
        limit_gb: Most space that the store may take, in GB; what the disk has left by default.

    Raises:
        ValueError: The limit is not positive.
    """

    cache: Path | None = None
    dtype: StorageType = "float16"
    limit_gb: float | None = None

    def __post_init__(self) -> None:
        if self.limit_gb is not None and self.limit_gb <= 0:
            raise ValueError(f"limit_gb must be positive, got {self.limit_gb}")


class FeatureStore:
    """The features of one spec, one file an image, named by the image file's content.

    A file is written beside its place and moved there, so that a kill leaves no half of one, and several processes may
    read and write at once: they write the same. Files are safetensors with a checksum; one that is torn or changed is
    removed, said, and computed again.

    Args:
        root: Folder of the store; features of other specs lie beside.
        spec: What the features depend on.
        grid: Patch grid of an image.
        compute: Type that the backbone's matrix products run in: `float32`, `bfloat16` or `float16`.
        dtype: Type that features are kept in.
    """

    def __init__(
        self,
        root: Path,
        spec: FeatureSpec,
        grid: tuple[int, int],
        compute: str = "float32",
        dtype: StorageType = "float16",
    ) -> None:
        facts = {**spec.to_dict(), "compute": compute, "dtype": dtype}
        del facts["weights"]  # where they lie; the hash says what they are
        self.facts = facts
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.key = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()
        self.folder = root / self.key
        self.spec = spec
        self.grid = grid

    def path(self, digest: str) -> Path:
        """Returns where the features of the image with this digest lie."""
        return self.folder / digest[:2] / f"{digest}{SUFFIX}"

    def load(self, digest: str) -> dict[str, Tensor] | None:
        """Returns the tensors of an image by name, memory-mapped; `None` if they are not there or were damaged."""
        path = self.path(digest)
        if not path.exists():
            return None
        try:
            return read_checked(path)
        except DamagedError as error:
            rank_zero_warn(f"{error} It is removed and computed again.")
            path.unlink(missing_ok=True)
            return None

    def save(self, digests: list[str], features: ClipFeatures) -> None:
        """Writes the features of a batch, an image with a file already left alone.

        Raises:
            UserError: The disk is full or not writable; what was there before is unchanged.
        """
        spec_file = self.folder / SPEC_FILE
        if not spec_file.exists():
            write_json(spec_file, self.facts)
        rows = to_rows(features, self.dtype)
        for digest, row in zip(digests, rows, strict=True):
            path = self.path(digest)
            if not path.exists():
                with atomic_path(path) as temporary:
                    save_file(row, temporary, metadata={"checksum": str(checksum(row))})

    def check_space(self, count: int, bytes_an_image: int, limit_gb: float | None) -> None:
        """Checks that the features of so many more images fit.

        Args:
            count: Images whose features are not there yet.
            bytes_an_image: Size of a file.
            limit_gb: See `FeatureCache`.

        Raises:
            UserError: Says how much is needed and how much there is.
        """
        needed = count * bytes_an_image
        root = self.folder.parent
        root.mkdir(parents=True, exist_ok=True)
        room, what = shutil.disk_usage(root).free, "the disk has"
        if limit_gb is not None:
            used = sum(path.stat().st_size for path in feature_files(root))
            left = int(limit_gb * 1e9) - used
            if left < room:
                room, what = left, f"limit_gb {limit_gb:g} leaves"
        if needed > room:
            raise UserError(
                f"Features of {count} images need {needed / 1e9:.3g} GB in {root}; {what} {max(room, 0) / 1e9:.3g}. "
                "Free some space (python -m afclip_lightning features prune), keep them elsewhere (--features.cache), "
                "as float16 (--features.dtype), or run without."
            )


class DamagedError(UserError):
    """A file of features is torn or changed."""


def image_digest(path: Path) -> str:
    """Returns the name that an image's features go by, from the file's content."""
    return hashlib.blake2b(path.read_bytes(), digest_size=20).hexdigest()


def checksum(row: dict[str, Tensor]) -> int:
    """Returns the CRC-32 of an image's tensors, in the order of their names."""
    value = 0
    for name in sorted(row):
        value = zlib.crc32(row[name].contiguous().view(torch.uint8).numpy(), value)  # type: ignore[arg-type]
    return value


def read_checked(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file, memory-mapped.

    Raises:
        DamagedError: The file is torn or its content has changed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            row = {name: file.get_tensor(name) for name in names}
            stored = (file.metadata() or {}).get("checksum")
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedError(f"{path}: the features cannot be read ({error}).") from error
    if stored != str(checksum(row)):
        raise DamagedError(f"{path}: the features have changed since they were written.")
    return row


def to_rows(features: ClipFeatures, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Returns the features of each image of a batch as tensors by name, on the CPU."""
    named = {f"tokens.{i}": tokens for i, tokens in enumerate(features.tokens)}
    named |= {f"vv_tokens.{i}": tokens for i, tokens in enumerate(features.vv_tokens)}
    if features.class_token is not None and features.image_embedding is not None:
        named |= {"class_token": features.class_token, "image_embedding": features.image_embedding}
    kept = {name: tensor.to("cpu", dtype) for name, tensor in named.items()}
    count = len(next(iter(kept.values())))
    return [{name: tensor[i].clone() for name, tensor in kept.items()} for i in range(count)]


def from_rows(rows: list[dict[str, Tensor]], grid: tuple[int, int]) -> ClipFeatures:
    """Returns the features of a batch, in the type that they were kept in, of the tensors of each image."""

    def stack(kind: str) -> tuple[Tensor, ...]:
        count = sum(name.startswith(f"{kind}.") for name in rows[0])
        return tuple(torch.stack([row[f"{kind}.{i}"] for row in rows]) for i in range(count))

    single = {
        name: torch.stack([row[name] for row in rows]) if name in rows[0] else None
        for name in ("class_token", "image_embedding")
    }
    return ClipFeatures(stack("tokens"), grid, stack("vv_tokens"), single["class_token"], single["image_embedding"])


def feature_files(root: Path, key: str = "*") -> Iterator[Path]:
    """Yields every file of features under the folder of a store, sorted: of one spec, or of all."""
    yield from sorted(root.glob(f"{key}/*/*{SUFFIX}"))
