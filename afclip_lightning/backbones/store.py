"""Features of a frozen backbone on disk. The backbone runs once per image."""

import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from afclip_lightning.backbones.archives import is_finite
from afclip_lightning.backbones.spec import FeatureSpec
from afclip_lightning.backbones.store_files import (
    SPEC_FILE,
    DamagedError,
    StorageType,
    StoreFacts,
    read_checked,
    statement,
    stored_bytes,
)
from afclip_lightning.backbones.store_layout import feature_files, feature_path, find_features
from afclip_lightning.types import ClipFeatures
from afclip_runtime.errors import UserError, shown
from afclip_runtime.files import atomic_path, to_type, write_json


@dataclass(frozen=True)
class FeatureCache:
    """Whether and how features are kept on disk.

    Attributes:
        cache: Folder of the store. `None`: features are kept only if `temporary` is set, and only during `fit`.
        temporary: Whether `fit` without a `cache` keeps features in the run's folder. Its epochs and tests share them.
            They are removed when it ends.
        dtype: Data type of the stored features. `float32` gives the same numbers as without a store. `float16` takes
            half the space and changes scores slightly.
        limit_gb: Maximum size of the store in GB. Default: the free space of the disk.

    Raises:
        ValueError: The limit is not positive.
    """

    cache: Path | None = None
    temporary: bool = False
    dtype: StorageType = "float16"
    limit_gb: float | None = None

    def __post_init__(self) -> None:
        if self.limit_gb is not None and self.limit_gb <= 0:
            raise ValueError(f"limit_gb must be positive, got {self.limit_gb}")


class FeatureStore:
    """The features of one spec, one file per tap and image, named by the image file's content.

    Methods that tap the same block of the same backbone share its files, whatever else they tap. (Between a pass with
    the V-V path and one without, a shared tap differs by the rounding of its sums.) Files are written atomically: a
    kill leaves no partial file. Several processes may read and write at once, because they write the same content.
    Files are safetensors with a checksum. Each states which features of which image it holds. A file that is
    truncated, changed or misplaced is removed with a warning, and its features are computed again.

    Args:
        root: Folder of the store. Each backbone has its own folder in it.
        spec: Settings that the features depend on.
        grid: Patch grid of an image.
        compute: Data type of the backbone's matrix products: `float32`, `bfloat16` or `float16`.
        dtype: Data type of the stored features.
        channels: C of a token and D of an image embedding, if known. Files with other values count as damaged.
    """

    def __init__(
        self,
        root: Path,
        spec: FeatureSpec,
        grid: tuple[int, int],
        compute: str = "float32",
        dtype: StorageType = "float16",
        channels: tuple[int, int] | None = None,
    ) -> None:
        facts = {**spec.untapped.to_dict(), "compute": compute, "dtype": dtype}
        for name in ("weights", "layers", "vv_layers", "vv_from", "image_embedding"):
            del facts[name]  # the location of the weights (the hash identifies them), and the taps (each has a folder)
        self.facts = facts
        self.channels = channels
        self.compute = compute
        self.storage: StorageType = dtype
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.key = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()
        self.folder = root / self.key
        self.spec = spec
        self.grid = grid

    def of(self, spec: FeatureSpec) -> "FeatureStore":
        """Returns the same store with another spec."""
        return FeatureStore(self.folder.parent, spec, self.grid, self.compute, self.storage, self.channels)

    def rounded(self, features: ClipFeatures) -> ClipFeatures:
        """Returns features rounded as the store rounds them, float32: new and stored features give the same result."""
        return features.map(lambda tensor: tensor.to(self.dtype).float())

    def path(self, digest: str, tap: str) -> Path:
        """Returns the path of a tap's file for the image with this digest."""
        return feature_path(self.folder, tap, digest)

    def load(self, digest: str) -> dict[str, Tensor] | None:
        """Returns the tensors of an image by name, memory-mapped, or `None` if one is missing or damaged."""
        row: dict[str, Tensor] = {}
        for tap in self.spec.taps:
            path = find_features(self.folder, tap, digest)
            if path is None:
                return None
            try:
                row |= self._fitting(read_checked(path, "pt"), path)
            except DamagedError as error:
                rank_zero_warn(f"{error} It is removed and computed again.")
                with suppress(OSError):
                    path.unlink()
                return None
        return row

    def _fitting(self, row: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
        """Returns the tensors of a file. Checks that their type and shape are those of this store.

        Raises:
            DamagedError: A tensor has another type or shape.
        """
        tokens = 1 + self.grid[0] * self.grid[1]
        for name, tensor in row.items():
            *rest, width = tensor.shape or (0,)
            wanted = self.channels and self.channels[name == "image_embedding"]
            single = name in ("class_token", "image_embedding")
            if tensor.dtype != self.dtype or rest != ([] if single else [tokens]) or width != (wanted or width):
                form = f"{tuple(tensor.shape)} of {tensor.dtype}"
                raise DamagedError(f"{shown(path)}: the features have another type or shape ({name}: {form}).")
        return row

    def save(self, digests: list[str], features: ClipFeatures) -> None:
        """Writes the features of a batch. Files that exist are kept.

        Raises:
            UserError: The disk is full or not writable, or a feature is not finite. Existing files are unchanged.
        """
        spec_file = self.folder / SPEC_FILE
        if not spec_file.exists():
            write_json(spec_file, self.facts)
        for tap, tensors in named(features, self.spec).items():
            kept = {name: tensor.to("cpu", self.dtype) for name, tensor in tensors.items()}
            if not all(map(is_finite, kept.values())):
                raise UserError(
                    f"The features of {tap} hold NaN or infinity, computed in {self.compute} and kept in "
                    f"{self.storage}. Use --features.dtype float32 and --trainer.precision 32-true, or other weights."
                )
            for i, digest in enumerate(digests):
                if find_features(self.folder, tap, digest) is None:
                    path = self.path(digest, tap)
                    row = {name: tensor[i].clone() for name, tensor in kept.items()}
                    with atomic_path(path, durable=False) as temporary:  # its checksum reveals an incomplete file
                        try:
                            save_file(row, temporary, metadata=statement(path, row))
                        except SafetensorError as error:
                            raise _system_error(error) from error

    def check_spec(self) -> None:
        """Checks that the features in the folder are those of this store.

        Raises:
            UserError: The folder's `spec.json` is damaged or describes other features.
        """
        if not (self.folder / SPEC_FILE).exists():
            return
        there, asked = asdict(StoreFacts.read(self.folder)), asdict(to_type(self.facts, StoreFacts, SPEC_FILE))
        if problems := [
            f"{name}: {value!r} there, {asked[name]!r} here" for name, value in there.items() if value != asked[name]
        ]:
            raise UserError(
                f"{self.folder / SPEC_FILE} belongs to other features ({'; '.join(problems)}). Remove the folder; its "
                "features are then computed again."
            )

    def check_space(self, images: int, width: int, limit_gb: float | None) -> None:
        """Checks that there is space for the features of all images.

        Args:
            images: Number of different images.
            width: C, channels of a token.
            limit_gb: See `FeatureCache`.

        Raises:
            UserError: There is not enough space. The message states the needed and the free space.
        """
        root, tokens = self.folder.parent, 1 + self.grid[0] * self.grid[1]
        per_image = {tap: (2 if tap == "embedding" else tokens) * width * self.dtype.itemsize for tap in self.spec.taps}
        root.mkdir(parents=True, exist_ok=True)
        room, what = shutil.disk_usage(root).free, "the disk has"
        if limit_gb is not None:
            left = int(limit_gb * 1e9) - stored_bytes(root)
            if left < room:
                room, what = left, f"limit_gb {limit_gb:g} leaves"
        if images * sum(per_image.values()) <= room:
            return  # also if there are none: counting the files of a large store takes minutes
        needed = 0
        for tap, size in per_image.items():
            there = sum(1 for _ in feature_files(root, self.key, tap))
            needed += max(0, images - there) * size
        if needed > room:
            raise UserError(
                f"Features of {images} images need {needed / 1e9:.3g} GB in {root}; {what} {max(room, 0) / 1e9:.3g}. "
                "Free some space (python -m afclip_lightning features prune), keep them elsewhere (--features.cache), "
                "as float16 (--features.dtype), or run without (--features.temporary false)."
            )


def _system_error(error: SafetensorError) -> OSError:
    """Returns the system's error of a file that safetensors could not write, for example because the disk is full."""
    found = re.search(r"os error (\d+)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else OSError(str(error))


def named(features: ClipFeatures, spec: FeatureSpec) -> dict[str, dict[str, Tensor]]:
    """Returns the tensors of a batch as a dictionary: tap to name to tensor."""
    taps = {tap: {tap: tokens} for tap, tokens in zip(spec.taps, (*features.tokens, *features.vv_tokens), strict=False)}
    if features.class_token is not None and features.image_embedding is not None:
        taps["embedding"] = {"class_token": features.class_token, "image_embedding": features.image_embedding}
    return taps


def from_rows(rows: list[dict[str, Tensor]], spec: FeatureSpec, grid: tuple[int, int]) -> ClipFeatures:
    """Returns the features of a batch, made from the tensors of each image, in their stored data type."""
    stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    tokens = tuple(stacked[tap] for tap in spec.taps if tap in stacked)
    count = len(spec.layers)
    return ClipFeatures(
        tokens[:count], grid, tokens[count:], stacked.get("class_token"), stacked.get("image_embedding")
    )
