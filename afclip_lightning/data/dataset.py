"""Reads samples for a batch: decodes, resizes, and caches them on request."""

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.backbones.store import FeatureStore
from afclip_lightning.backbones.store_files import image_digest
from afclip_lightning.data.defects import as_defects, cropped, read_defects, resized
from afclip_lightning.data.images import read_image, read_mask, read_mask_of, upright_shape
from afclip_lightning.data.loading_options import Loading
from afclip_lightning.data.sample_array import SampleArray
from afclip_lightning.metrics import count_regions, region_areas
from afclip_lightning.types import Batch, Defect, MaskFacts, Sample
from afclip_runtime.errors import DatasetError
from afclip_runtime.images.picture import Picture, upright
from afclip_runtime.images.reader import read, read_shape
from afclip_runtime.types import Tiling
from afclip_runtime.views.tiles import Layout

MaskDetail = Literal["none", "counts", "regions"]
Pixels = tuple[np.ndarray, np.ndarray | None]  # resized image [H, W, 3] and mask [H, W], uint8; None = no mask


class Item(NamedTuple):
    """The data of a sample.

    Attributes:
        position: Position of the sample in the dataset.
        image: `[H, W, 3]`, uint8, at the backbone's size; `None` if its features were read instead.
        mask: `[H, W]`, uint8, if there is one.
        sample: The sample.
        references: Positions of its references.
        digest: Key of its features in the store; empty without a store.
        features: Features of the sample, by name.
        reference_only: Whether it is only a reference of other samples.
        facts: Facts of its mask at the image's own size; `None` in training.
        views: `[V, H, W, 3]`, uint8: tiles of the image, if images are tiled.
        defects: Defects at the evaluated size, if the dataset defines saturations.
    """

    position: int
    image: np.ndarray | None
    mask: np.ndarray | None
    sample: Sample
    references: Sequence[int]
    digest: str = ""
    features: dict[str, Tensor] | None = None
    reference_only: bool = False
    facts: MaskFacts | None = None
    views: Tensor | None = None
    defects: tuple[Defect, ...] = ()


@dataclass(frozen=True)
class Unread:
    """An image that was left out.

    Attributes:
        position: Position of its sample in the dataset.
        path: Path of the image.
        reason: Reason, which names the faulty file.
    """

    position: int
    path: Path
    reason: str


class PixelCache:
    """Cache of resized images and masks of the first samples, as many as fit, in memory that forked processes share.

    Args:
        count: Number of samples of the dataset.
        shape: Height and width of an image, in pixels.
        limit_mb: Memory limit in MB. Memory is used only as images are added.
    """

    def __init__(self, count: int, shape: tuple[int, int], limit_mb: int) -> None:
        self.arguments = (count, shape, limit_mb)
        area = math.prod(shape)
        self.capacity = min(count, limit_mb * 2**20 // (4 * area + 1))
        # anonymous pages instead of /dev/shm, which is small in containers
        pages = np.frombuffer(mmap.mmap(-1, max(1, self.capacity * (4 * area + 1))), np.uint8)
        self.filled, images, masks = np.split(pages, [self.capacity, self.capacity * (3 * area + 1)])
        self.images = images.reshape(self.capacity, *shape, 3)
        self.masks = masks[: self.capacity * area].reshape(self.capacity, *shape)

    def __reduce__(self) -> tuple[Any, ...]:
        # A process that is not forked starts with its own empty cache.
        return PixelCache, self.arguments

    def get(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns the image `[H, W, 3]` and the mask `[H, W]`, both read-only; `None` if they are not cached."""
        if index >= self.capacity or not self.filled[index]:
            return None
        return self.images[index], self.masks[index]

    def turn(self, index: int) -> int:
        """Returns the orientation of the mask of a cached image, 1 to 8."""
        return int(self.filled[index])

    def put(self, index: int, image: np.ndarray, mask: np.ndarray | None, turn: int = 1) -> None:
        """Keeps an image, its mask and how that was turned (1 to 8), if there is a place for this index."""
        if index < self.capacity:
            self.images[index] = image
            if mask is not None:  # it is all zero until then
                self.masks[index] = mask
            self.filled[index] = turn  # last: another process may be reading


class AnomalyDataset(Dataset[Any]):
    """Decodes and preprocesses samples, in the order given.

    Args:
        samples: The samples.
        preprocess: Turns a decoded image and mask into tensors.
        loading: Options of drafts, of the cache and of files that cannot be read.
        references: Positions in `samples` of each sample's reference images, equally many per sample; `None` for none.
        store: Feature store, if there is one.
        facts: Facts of masks at their own size: none, the marked area, or the marked area and the regions.
        tiling: Tiling of the images; `None` for no tiles. With tiles, neither cache nor drafts are used.
        skipped: Filled by the loader with the images that were left out, and the reasons, with `on_error: skip`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        preprocess: Preprocess,
        loading: Loading | None = None,
        references: Sequence[Sequence[int]] | None = None,
        store: FeatureStore | None = None,
        facts: MaskDetail = "none",
        tiling: Tiling | None = None,
        skipped: dict[Path, str] | None = None,
    ) -> None:
        loading = loading or Loading()
        self.samples = SampleArray(samples)
        self.loading = loading
        self.skipped = {} if skipped is None else skipped
        self.references = references
        self.store = store
        self.facts = facts
        self.tiling = tiling
        self.preprocess = preprocess
        self.draft = max(preprocess.shape) if loading.draft and not tiling else None
        self.cache = None
        if loading.cache_mb and not tiling:
            self.cache = PixelCache(len(self.samples), preprocess.shape, loading.cache_mb)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, Sample]:
        """Returns the normalised image `[3, H, W]`, the mask `[H, W]` and the sample.

        Raises:
            DatasetError: See `read`.
        """
        item = self.read(index, pixels=True)
        assert item.image is not None
        return self.preprocess.to_tensors([item.image])[0], self.preprocess.to_masks([item.mask])[0], item.sample

    def __getitems__(self, indices: Sequence[int]) -> list[Item | Unread]:
        """Returns the items that a loader collates: each sample, then each reference that is not among the samples.

        Samples are read either all as images or all as features. Each reference is read once, as an image.

        Raises:
            DatasetError: See `read`. With `on_error: skip`, the list has an `Unread` instead.
        """
        wanted = dict.fromkeys(other for index in indices for other in self._references_of(index))
        extra = [self._try(other, pixels=True) for other in wanted if other not in indices]
        items = [self._try(index) for index in indices]
        # an image that is left out may be the reference of another, and then it is needed
        kept = {isinstance(item, Item) and item.features is not None for item in items}
        if len(kept) == 2 or (True in kept and not all(isinstance(item, Item) for item in extra)):
            items = [self._try(index, pixels=True) for index in indices]
        return items + [item._replace(reference_only=True) if isinstance(item, Item) else item for item in extra]

    def _try(self, index: int, pixels: bool = False) -> Item | Unread:
        try:
            return self.read(index, pixels)
        except DatasetError as error:
            if self.loading.on_error == "raise":
                raise
            return Unread(index, self.samples[index].image_path, str(error))

    def _references_of(self, index: int) -> Sequence[int]:
        return self.references[index] if self.references else ()

    def read(self, index: int, pixels: bool = False) -> Item:
        """Returns the data of a sample: resized pixels, not yet normalised, or its stored features.

        Args:
            index: Position of the sample.
            pixels: Read the image even if its features are stored.

        Raises:
            DatasetError: The image or its mask cannot be read, their sizes differ, or the mask marks nothing.
        """
        sample, references = self.samples[index], self._references_of(index)
        digest = self._digest(sample) if self.store else ""
        features = self.store.load(digest) if self.store and not pixels else None
        if features is not None:
            own = self._mask(sample, sample.image_path)[0] if sample.mask_path else None
            sample = _judged(sample, own)
            mask = None if own is None or not sample.mask_path else self.preprocess.resize_mask(own, sample.roi)
            facts, defects = self._facts(sample, own), self._defects(sample, mask)
            return Item(index, None, mask, sample, references, digest, features, facts=facts, defects=defects)
        sample, image, mask, facts, views = self._resized(index)
        mask = mask if sample.mask_path else None
        defects = self._defects(sample, mask)
        return Item(index, image, mask, sample, references, digest, facts=facts, views=views, defects=defects)

    def _digest(self, sample: Sample) -> str:
        return image_digest(sample.image_path, sample.white, sample.roi.fingerprint if sample.roi else "")

    def _resized(self, index: int) -> tuple[Sample, np.ndarray, np.ndarray | None, MaskFacts | None, Tensor | None]:
        sample = self.samples[index]
        resized: Pixels | None = self.cache.get(index) if self.cache else None
        if self.cache and resized is not None:
            mask = None
            if (self.facts != "none" or sample.roi) and sample.mask_path:  # facts are not in the cache
                region = read_mask(sample.mask_path, sample.mask_threshold)
                mask = _inspected(sample, upright(region, self.cache.turn(index)))
            return _judged(sample, mask), *resized, self._facts(sample, mask), None
        picture, mask, turn = self._decode(sample)
        facts, image = self._facts(sample, mask, picture.shape), picture.rgb(sample.white)
        if sample.roi is not None:
            sample.roi.inside(image.shape[0], image.shape[1], sample.image_path)  # checks the shape
        resized = self.preprocess.resize(image, mask, sample.roi)
        if self.cache:
            self.cache.put(index, *resized, turn)
        return _judged(sample, mask), *resized, facts, self._views(image, sample) if self.tiling else None

    def _views(self, image: np.ndarray, sample: Sample) -> Tensor:
        """Returns the tiles of an image, `[V, H, W, 3]`, uint8.

        Raises:
            UserError: There are too many tiles.
        """
        assert self.tiling is not None
        height, width = image.shape[:2]
        layout = Layout(height, width, self.tiling, self.preprocess.frame, sample.roi, sample.image_path)
        return torch.from_numpy(np.stack([layout.cut(image, view) for view in layout.views]))

    def _facts(self, sample: Sample, mask: np.ndarray | None, shape: tuple[int, ...] | None = None) -> MaskFacts | None:
        """Returns the requested facts of a mask; without a mask, that nothing is marked.

        Args:
            sample: Sample of the mask.
            mask: `[H, W]`, or `None`.
            shape: Height and width of the image, if they are known.
        """
        if self.facts == "none":
            return None
        if mask is not None:
            return mask_facts(mask, areas=self.facts == "regions")
        if shape is None and self.facts == "regions":
            shape = upright_shape(sample.image_path)
        return MaskFacts((shape[0], shape[1]) if shape else (0, 0))

    def _defects(self, sample: Sample, mask: np.ndarray | None) -> tuple[Defect, ...]:
        """Returns the defects of a sample at the evaluated size; none in training.

        Args:
            sample: The sample.
            mask: `[H, W]`, at the backbone's size.
        """
        if self.facts == "none" or sample.saturations is None or mask is None:
            return ()
        assert sample.mask_path is not None
        found = read_defects(sample.mask_path, sample.saturations, *read_shape(sample.image_path))
        if self.facts == "counts":
            found = resized(found, self.preprocess.resize_mask, mask)
        return as_defects(found)

    def _decode(self, sample: Sample) -> tuple[Picture, np.ndarray | None, int]:
        """Returns the image, its mask `[H, W]`, uint8, inside the region of interest, and the mask's orientation."""
        picture = read(sample.image_path, draft=self.draft)
        return (picture, *(self._mask(sample, picture) if sample.mask_path else (None, 1)))

    @staticmethod
    def _mask(sample: Sample, image: Picture | Path) -> tuple[np.ndarray, int]:
        """Returns the mask of a sample, `[H, W]`, and its orientation; see `read_mask_of`."""
        assert sample.mask_path is not None
        mask, turn = read_mask_of(image, sample.mask_path, sample.mask_threshold)
        if not mask.any():
            raise DatasetError(
                f"{sample.mask_path}: the mask marks nothing, but its image {sample.image_path} is anomalous. "
                "Replace the mask, or move the image to the normal ones."
            )
        return _inspected(sample, mask), turn


def _inspected(sample: Sample, mask: np.ndarray) -> np.ndarray:
    """Returns a mask `[H, W]` that is cleared outside the region of interest."""
    if sample.roi is None:
        return mask
    height, width = mask.shape
    return mask * sample.roi.inside(height, width, sample.mask_path)


def _judged(sample: Sample, mask: np.ndarray | None) -> Sample:
    """Returns a sample with the label of its inspected part: normal if the mask marks nothing there."""
    if sample.roi is None or mask is None or mask.any():
        return sample
    return replace(sample, label=0, mask_path=None, defect_type="")


def mask_facts(mask: np.ndarray, areas: bool = False) -> MaskFacts:
    """Returns the facts of a mask.

    Args:
        mask: `[H, W]`, uint8 in {0, 1}.
        areas: Whether to keep its regions.
    """
    height, width = mask.shape
    if not areas:
        return MaskFacts((height, width), int(np.count_nonzero(mask)), count_regions(mask))
    found = region_areas(mask)
    if not found.any():
        return MaskFacts((height, width))
    part, corner = cropped(found)
    return MaskFacts((height, width), int(np.count_nonzero(part)), count_regions(mask), torch.from_numpy(part), corner)


def pixels_of(batch: Batch, row: int, preprocess: Preprocess) -> np.ndarray:
    """Returns an image of a batch at the backbone's size, `[H, W, 3]`, uint8. Reads the file if the batch has features.

    Raises:
        DatasetError: The file cannot be read.
    """
    if len(batch.image):
        return preprocess.to_pixels(batch.image[row])
    sample = batch.samples[row]
    return preprocess.resize(read_image(sample.image_path, white=sample.white), None, sample.roi)[0]
