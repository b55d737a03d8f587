"""From samples to batches: decoding, an optional cache, and what happens to files that cannot be read."""

import mmap
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.backbones.store import FeatureStore, from_rows, image_digest
from afclip_lightning.data.images import read_image, read_mask, read_mask_of, upright_shape
from afclip_lightning.data.masks import mask_facts
from afclip_lightning.data.picture import Picture, upright
from afclip_lightning.data.reader import read
from afclip_lightning.data.tiles import Layout, Tiling
from afclip_lightning.data.white import White, check_white
from afclip_lightning.errors import DatasetError
from afclip_lightning.metrics import count_regions, region_areas
from afclip_lightning.types import Batch, ClipFeatures, MaskFacts, Sample, Views

MaskDetail = Literal["none", "counts", "regions"]
Pixels = tuple[np.ndarray, np.ndarray | None]  # resized image [S, S, 3] and mask [S, S], uint8; None = no mask


class Item(NamedTuple):
    """What is read of a sample.

    Attributes:
        position: Of the sample in the dataset.
        image: `[S, S, 3]`, uint8; `None` where its features were read instead.
        mask: `[S, S]`, uint8, where there is one.
        sample: The sample.
        references: Positions of its references.
        digest: What its features are kept under; empty without a store.
        features: Its features by name.
        beside: Whether it is there as a reference of others only.
        facts: What is known of its mask at the image's own size; `None` in training.
        views: `[V, S, S, 3]`, uint8: the image in tiles, where it is to be seen so.
    """

    position: int
    image: np.ndarray | None
    mask: np.ndarray | None
    sample: Sample
    references: Sequence[int]
    digest: str = ""
    features: dict[str, Tensor] | None = None
    beside: bool = False
    facts: MaskFacts | None = None
    views: Tensor | None = None


@dataclass(frozen=True)
class Loading:
    """How images are read, the same for every dataset of a run.

    Attributes:
        on_error: `raise` stops at a file that cannot be read; `skip` leaves its image out, and those that it is a
            reference of, and lists them in the run folder. Training on several processes needs `raise`.
        draft: Decode JPEG files at 1/2, 1/4 or 1/8 of their size where that is still no smaller than the backbone's
            input. Faster, and the pixels differ a little: leave it off to compare with published numbers.
        cache_mb: Memory for resized images and masks, uint8, a loader; 0 keeps none. What does not fit is decoded
            again each epoch, so it helps from the second epoch on.
        persistent_workers: Keep the processes of the training loader from one epoch to the next.
        pin_memory: Load into page-locked memory where there is a GPU.
        white: What is white in images of more than 8 bits a channel: `bits`, the largest value that the file's depth
            holds; `auto`, the largest that the bits hold which the images of a dataset use, looked up in up to 64 of
            them; or a number: up to 16 of bits (12 for a 12-bit camera), above of the value itself. One for all
            datasets, or one for each by its name (`{mvtec: bits, mine: 12}`), where `bits` holds for those not named.

    Raises:
        ValueError: `cache_mb` is negative, or `white` is none of these.
    """

    on_error: Literal["raise", "skip"] = "raise"
    draft: bool = False
    cache_mb: int = 0
    persistent_workers: bool = False
    pin_memory: bool = True
    white: Literal["auto", "bits"] | int | dict[str, Literal["auto", "bits"] | int] = "bits"

    def __post_init__(self) -> None:
        if self.cache_mb < 0:
            raise ValueError(f"cache_mb must not be negative, got {self.cache_mb}")
        for white in self.white.values() if isinstance(self.white, dict) else [self.white]:
            check_white(white)

    def white_of(self, dataset: str) -> White:
        """Returns the white level of a dataset, by its name."""
        return self.white.get(dataset, "bits") if isinstance(self.white, dict) else self.white


class PixelCache:
    """Resized images and masks of the first samples, as many as fit, in memory that forked processes share.

    Args:
        count: Samples of the dataset.
        side: Side of an image, in pixels.
        limit_mb: Most memory to take; it is taken when images come in.
    """

    def __init__(self, count: int, side: int, limit_mb: int) -> None:
        self.arguments = (count, side, limit_mb)
        self.capacity = min(count, limit_mb * 2**20 // (4 * side * side + 1))
        # anonymous pages and not /dev/shm, which containers keep small
        pages = np.frombuffer(mmap.mmap(-1, max(1, self.capacity * (4 * side * side + 1))), np.uint8)
        self.filled, images, masks = np.split(pages, [self.capacity, self.capacity * (3 * side * side + 1)])
        self.images = images.reshape(self.capacity, side, side, 3)
        self.masks = masks[: self.capacity * side * side].reshape(self.capacity, side, side)

    def __reduce__(self) -> tuple[Any, ...]:
        # A process that is not forked begins with an empty one of its own.
        return PixelCache, self.arguments

    def get(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns the image `[S, S, 3]` and the mask `[S, S]`, not to be written to; `None` if they are not there."""
        if index >= self.capacity or not self.filled[index]:
            return None
        return self.images[index], self.masks[index]

    def turn(self, index: int) -> int:
        """Returns how the mask of an image that is there was turned, 1 to 8."""
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
        loading: Whether to decode drafts and to cache; `on_error` is for the loader.
        references: Positions in `samples` of each sample's reference images, equally many; `None` for none.
        store: Where the features of images may lie.
        facts: What to find out of masks at their own size: nothing, how much they mark, or that and their regions.
        tiling: How images are seen beside the whole; `None` where they are not. Nothing is cached or drafted then.
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
    ) -> None:
        self.samples = list(samples)
        self.references = references
        self.store = store
        self.facts = facts
        self.tiling = tiling
        self.preprocess = preprocess
        self.draft = preprocess.image_size if loading and loading.draft and not tiling else None
        self.cache = None
        if loading and loading.cache_mb and not tiling:
            self.cache = PixelCache(len(self.samples), preprocess.image_size, loading.cache_mb)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, Sample]:
        """Returns the normalised image `[3, S, S]`, the mask `[S, S]` and the sample.

        Raises:
            DatasetError: See `read`.
        """
        item = self.read(index, pixels=True)
        assert item.image is not None
        return self.preprocess.to_tensors([item.image])[0], self.preprocess.to_masks([item.mask])[0], item.sample

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Returns what a loader collates: see `read_all`."""
        return self.read_all(indices, self.read)

    def read_all(self, indices: Sequence[int], read: Callable[[int, bool], Any]) -> list[Any]:
        """Returns what was read of each sample, then of each reference that is none of them, once.

        Args:
            indices: The samples.
            read: `read`, or one that gives an `Unread` where that cannot. Samples are read all as images or all as
                features, references as images.
        """
        wanted = dict.fromkeys(other for index in indices for other in self._references_of(index))
        beside = [read(other, True) for other in wanted if other not in indices]
        items = [read(index, False) for index in indices]
        # one that is left out may be the reference of another, and then its image is needed
        kept = {isinstance(item, Item) and item.features is not None for item in items}
        if len(kept) == 2 or (True in kept and not all(isinstance(item, Item) for item in beside)):
            items = [read(index, True) for index in indices]
        return items + [item._replace(beside=True) if isinstance(item, Item) else item for item in beside]

    def _references_of(self, index: int) -> Sequence[int]:
        return self.references[index] if self.references else ()

    def read(self, index: int, pixels: bool = False) -> Item:
        """Returns what a batch needs of a sample: pixels resized and not yet normalised, or its features if kept.

        Args:
            index: Which sample.
            pixels: Read the image even where its features are kept.

        Raises:
            DatasetError: The image or its mask cannot be read, their sizes differ, or the mask marks nothing.
        """
        sample, references = self.samples[index], self._references_of(index)
        digest = self._digest(sample) if self.store else ""
        features = self.store.load(digest) if self.store and not pixels else None
        if features is not None:
            own = self._mask(sample, sample.image_path)[0] if sample.mask_path else None
            mask = None if own is None else self.preprocess.resize_mask(own)
            return Item(index, None, mask, sample, references, digest, features, facts=self._facts(sample, own))
        image, mask, facts, views = self._resized(index)
        mask = mask if sample.mask_path else None
        return Item(index, image, mask, sample, references, digest, facts=facts, views=views)

    def _digest(self, sample: Sample) -> str:
        return image_digest(sample.image_path, sample.white)

    def _resized(self, index: int) -> tuple[np.ndarray, np.ndarray | None, MaskFacts | None, Tensor | None]:
        sample = self.samples[index]
        resized: Pixels | None = self.cache.get(index) if self.cache else None
        if self.cache and resized is not None:
            mask = None
            if self.facts != "none" and sample.mask_path:  # it is read again for what the cache does not hold
                region = read_mask(sample.mask_path, sample.mask_threshold)
                mask = upright(region, self.cache.turn(index))
            return *resized, self._facts(sample, mask), None
        picture, mask, turn = self._decode(sample)
        facts, image = self._facts(sample, mask, picture.shape), picture.rgb(sample.white)
        resized = self.preprocess.resize(image, mask)
        if self.cache:
            self.cache.put(index, *resized, turn)
        return *resized, facts, self._views(image) if self.tiling else None

    def _views(self, image: np.ndarray) -> Tensor:
        """Returns an image in tiles, `[V, S, S, 3]`, uint8.

        Raises:
            UserError: There are too many of them.
        """
        assert self.tiling is not None
        height, width = image.shape[:2]
        layout = Layout(height, width, self.tiling, self.preprocess.image_size)
        return torch.from_numpy(np.stack([layout.cut(image, view) for view in range(len(layout))]))

    def _facts(self, sample: Sample, mask: np.ndarray | None, shape: tuple[int, ...] | None = None) -> MaskFacts | None:
        """Returns what is wanted of a mask; without one, that nothing is marked.

        Args:
            sample: Whose mask it is.
            mask: `[H, W]`, or `None`.
            shape: Height and width of the image, where they are known.
        """
        if self.facts == "none":
            return None
        if mask is not None:
            return mask_facts(mask, areas=self.facts == "regions")
        if shape is None and self.facts == "regions":
            shape = upright_shape(sample.image_path)
        return MaskFacts((shape[0], shape[1]) if shape else (0, 0))

    def _decode(self, sample: Sample) -> tuple[Picture, np.ndarray | None, int]:
        """Returns the image, its mask `[H, W]`, uint8, and how that was turned; see `read`."""
        picture = read(sample.image_path, draft=self.draft)
        return (picture, *(self._mask(sample, picture) if sample.mask_path else (None, 1)))

    @staticmethod
    def _mask(sample: Sample, image: Picture | Path) -> tuple[np.ndarray, int]:
        """Returns the mask of a sample, `[H, W]`, and how it was turned: see `read_mask_of`."""
        assert sample.mask_path is not None
        mask, turn = read_mask_of(image, sample.mask_path, sample.mask_threshold)
        if not mask.any():
            raise DatasetError(
                f"{sample.mask_path}: the mask marks nothing, but its image {sample.image_path} is anomalous. "
                "Replace the mask, or move the image to the normal ones."
            )
        return mask, turn


@dataclass(frozen=True)
class Parcel:
    """A batch that leaves a loader's process as a parcel, and arrives in the main process as a `Batch`.

    Pages of shared memory cost more than the work that they save, so only what was read is sent: bytes, that
    become four times as many when they are normalised, and the masks and regions of the images that have any. With
    `pin_memory` it is opened in the loader's own thread.

    Attributes:
        preprocess: What normalises the images.
        samples: The B samples.
        images: `[B, S, S, 3]`, uint8.
        masks: `[M, S, S]`, uint8, of the samples that have a mask, in their order.
        areas: `[M, S, S]`, int32, their regions; `None` in training.
        references: `[M, S, S, 3]`, uint8, the references that are none of the samples.
        reference_rows: R of each sample, counted through the samples and on through `references`; `None` without.
        digests: What the images' features are kept under; `None` without a store.
        features: Those that were kept, in place of `images`.
        facts: What is known of each sample's mask at its own size; `None` in training.
        views: The samples in tiles, where they are to be seen so.
    """

    preprocess: Preprocess
    samples: list[Sample]
    images: Sequence[np.ndarray]
    masks: Sequence[np.ndarray]
    areas: Sequence[np.ndarray] | None
    references: Sequence[np.ndarray]
    reference_rows: list[list[int]] | None = None
    digests: list[str] | None = None
    features: ClipFeatures | None = None
    facts: list[MaskFacts] | None = None
    views: Views | None = None

    def open(self) -> Batch:
        """Returns the batch."""
        marked = [row for row, sample in enumerate(self.samples) if sample.mask_path]
        masks = dict(zip(marked, self.masks, strict=True))
        batch = Batch(
            image=self.preprocess.to_tensors(self.images),
            mask=self.preprocess.to_masks([masks.get(row) for row in range(len(self.samples))]),
            label=torch.tensor([sample.label for sample in self.samples]),
            mask_known=torch.tensor([sample.mask_known for sample in self.samples]),
            samples=self.samples,
            digests=self.digests,
            features=self.features,
            masks=self.facts,
            views=self.views,
        )
        if self.areas is not None:
            batch.region_area = torch.zeros(batch.mask.shape, dtype=torch.int32)
            for row, area in zip(marked, self.areas, strict=True):
                batch.region_area[row] = torch.from_numpy(area)
        if self.reference_rows is not None:
            batch.reference = self.preprocess.to_tensors(self.references)
            batch.reference_rows = torch.tensor(self.reference_rows)
        return batch

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns how the parcel is opened where it arrives."""
        pixels = (self.images, self.masks, self.areas, self.references)
        # the library's own function, which stacks straight into shared memory
        stacked = (default_collate(list(arrays)) if arrays else None for arrays in pixels)
        facts = (
            self.preprocess,
            self.samples,
            self.areas is not None,
            self.reference_rows,
            self.digests,
            self.features,
            self.facts,
            self.views,
        )
        return _open_parcel, (*facts, *stacked)


def _open_parcel(
    preprocess: Preprocess,
    samples: list[Sample],
    regions: bool,
    reference_rows: list[list[int]] | None,
    digests: list[str] | None,
    features: ClipFeatures | None,
    facts: list[MaskFacts] | None,
    views: Views | None,
    *stacked: Tensor | None,
) -> Batch:
    images, masks, areas, references = ([] if tensor is None else list(tensor.numpy()) for tensor in stacked)
    known = (reference_rows, digests, features, facts, views)
    return Parcel(preprocess, samples, images, masks, areas if regions else None, references, *known).open()


@dataclass(frozen=True)
class Collate:
    """Puts what a dataset read into one `Batch`.

    Attributes:
        preprocess: What normalises the images.
        regions: Whether to label the regions of the masks, for evaluation: here, in the loader's process, once a mask.
        store: Where features lie that were kept.
        tiling: How images are seen in tiles, where they are.
        at_once: Most views that a backbone is given together.
    """

    preprocess: Preprocess
    regions: bool = False
    store: FeatureStore | None = None
    tiling: Tiling | None = None
    at_once: int = 1

    def __call__(self, items: Sequence[Item]) -> Batch | Parcel:
        """Returns the batch; in a loader's process as a parcel, which arrives as a batch."""
        beside = {item.position: item.image for item in items if item.beside and item.image is not None}
        items = [item for item in items if not item.beside]
        masks = [item.mask for item in items if item.mask is not None]
        rows = [item.features for item in items if item.features is not None]
        facts = [
            replace(item.facts, seen=0 if item.mask is None else count_regions(item.mask))
            for item in items
            if item.facts is not None
        ]
        views = [item.views for item in items if item.views is not None]
        places = {item.position: row for row, item in enumerate(items)}
        outside = dict.fromkeys(other for item in items for other in item.references if other not in places)
        places |= {other: len(items) + row for row, other in enumerate(outside)}
        parcel = Parcel(
            self.preprocess,
            [item.sample for item in items],
            [item.image for item in items if item.image is not None],
            masks,
            [region_areas(mask) for mask in masks] if self.regions else None,
            [beside[other] for other in outside],
            [[places[other] for other in item.references] for item in items] if items[0].references else None,
            [item.digest for item in items] if items[0].digest else None,
            from_rows(rows, self.store.spec, self.store.grid) if rows and self.store else None,
            facts if len(facts) == len(items) else None,
            Views(views, self.tiling, self.at_once) if self.tiling else None,
        )
        return parcel if get_worker_info() else parcel.open()


def pixels_of(batch: Batch, row: int, preprocess: Preprocess) -> np.ndarray:
    """Returns an image of a batch as the backbone sees it, `[S, S, 3]`, uint8: from its file if its features were read.

    Raises:
        DatasetError: The file cannot be read.
    """
    if len(batch.image):
        return preprocess.to_pixels(batch.image[row])
    sample = batch.samples[row]
    return preprocess.resize(read_image(sample.image_path, white=sample.white), None)[0]


@dataclass(frozen=True)
class Unread:
    """An image that was left out.

    Attributes:
        position: Of its sample in the dataset.
        path: The image.
        reason: Why, naming the file that is at fault.
    """

    position: int
    path: Path
    reason: str


class TolerantDataset(Dataset[Any]):
    """A dataset that gives an `Unread` where a sample cannot be read.

    Args:
        dataset: The dataset.
        skipped: Where the loader's process notes what was left out, image to reason.
    """

    def __init__(self, dataset: AnomalyDataset, skipped: dict[Path, str]) -> None:
        self.dataset = dataset
        self.skipped = skipped

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> list[Item | Unread]:
        """Returns what was read, or which images could not be and why."""
        return self.dataset.read_all(indices, self._try)

    def _try(self, index: int, pixels: bool) -> Item | Unread:
        try:
            return self.dataset.read(index, pixels)
        except DatasetError as error:
            return Unread(index, self.dataset.samples[index].image_path, str(error))


class ResumableLoader(DataLoader[Any]):
    """Batches for training that go on in the middle of an epoch, in its order; a checkpoint keeps where.

    What the run had had of the epoch is read again and dropped: reading costs little beside the backbone's pass.
    """

    _order: Tensor | None = None  # torch's random state when the epoch began, which its order follows from
    _given = 0
    _resume: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Returns how the epoch began and how many of its batches were given."""
        return {"order": self._order, "given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Lets the next epoch be the rest of that one, if it had begun; the order of a new one is drawn."""
        self._resume = state if state["given"] else None

    def end_epoch(self) -> None:
        """Says that an epoch is over, though there may be batches that a limit left."""
        self._given = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yields the batches; draws nothing before the first is asked for."""
        resume, self._resume = self._resume, None
        skipped, now = resume["given"] if resume else 0, torch.get_rng_state()
        if resume:
            torch.set_rng_state(resume["order"])
        self._order, self._given = torch.get_rng_state(), 0
        for batch in super().__iter__():
            self._given += 1
            if self._given > skipped:
                yield batch
            elif self._given == skipped:
                torch.set_rng_state(now)


class TolerantLoader(ResumableLoader):
    """Batches of what can be read of a `TolerantDataset`; a batch of which nothing can be read is left out."""

    dataset: TolerantDataset

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yields the batches and notes what was left out.

        Raises:
            DatasetError: Not one image could be read.
        """
        any_read = False
        for batch, unread in super().__iter__():
            self.dataset.skipped.update({item.path: item.reason for item in unread})
            if batch is not None:
                any_read = True
                yield batch
        if self.dataset.skipped and not any_read:
            raise DatasetError(
                f"None of the images can be read. The first: {next(iter(self.dataset.skipped.values()))}"
            )


def _collate_read(items: Sequence[Item | Unread], collate: Collate) -> tuple[Batch | Parcel | None, list[Unread]]:
    """Returns the batch of what can be used, if any, and what was left out: unread itself, or one of its references."""
    unread = {item.position: item for item in items if isinstance(item, Unread)}
    left_out, usable = list(unread.values()), []
    for item in items:
        if isinstance(item, Item):
            cause = next((unread[other] for other in item.references if other in unread and not item.beside), None)
            if cause:
                left_out.append(Unread(item.position, item.sample.image_path, cause.reason))
            usable.append(item._replace(beside=item.beside or cause is not None))  # it may be another's reference
    return None if all(item.beside for item in usable) else collate(usable), left_out


def killed_loader(error: BaseException) -> str:
    """Returns what a user can do where a loader's process was killed; an empty text for any other error."""
    if not isinstance(error, RuntimeError) or not re.search(
        r"DataLoader worker.*(exited unexpect|killed by)", str(error)
    ):
        return ""
    return (
        f"a loader process was killed ({' '.join(str(error).split())}) Most often the memory was used up: use fewer "
        "num_workers, or a smaller batch_size and --loading.cache_mb."
    )


def keep_memory(worker: int) -> None:
    """Makes the C library keep the memory of an image for the next one.

    glibc gives large blocks back to the system, and each new one costs a fault a page, a quarter of the time of
    decoding; it keeps what is no larger than the largest block that was freed. No page of this one is touched.
    """
    np.empty(2**25 - 2**16, np.uint8)  # just below the largest that counts


def make_loader(
    dataset: AnomalyDataset,
    batch_size: int,
    num_workers: int,
    loading: Loading,
    sampler: Sampler[int],
    skipped: dict[Path, str],
    training: bool = False,
) -> DataLoader[Batch]:
    """Returns a loader of batches.

    Args:
        dataset: What is loaded.
        batch_size: Images a batch; where they are seen in tiles, views that a backbone is given together.
        num_workers: Loader processes; 0 loads in the main process.
        loading: How it is loaded.
        sampler: Order of a pass.
        skipped: Where images that are left out are noted, with `on_error: skip`.
        training: Whether the batches are for training, which has no use for the regions of masks.
    """
    collate = Collate(dataset.preprocess, not training, dataset.store, dataset.tiling, batch_size)
    tolerant = loading.on_error == "skip"
    return (TolerantLoader if tolerant else ResumableLoader if training else DataLoader)(
        TolerantDataset(dataset, skipped) if tolerant else dataset,
        batch_size=1 if dataset.tiling else batch_size,  # an image may have many views
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=partial(_collate_read, collate=collate) if tolerant else collate,
        worker_init_fn=keep_memory,
        persistent_workers=loading.persistent_workers and training and num_workers > 0,
        pin_memory=loading.pin_memory and torch.cuda.is_available(),
    )
