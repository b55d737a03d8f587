"""Collation of read samples into a batch, and the transfer of a batch between processes."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate, get_worker_info

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.backbones.store import FeatureStore, from_rows
from afclip_lightning.data.dataset import Item, Unread
from afclip_lightning.metrics import count_regions, region_areas
from afclip_lightning.types import Batch, ClipFeatures, Defect, MaskFacts, Sample, Views
from afclip_runtime.types import Tiling

PIXELS = ("images", "masks", "areas", "references")  # fields of a packed batch that are sent in shared memory


@dataclass(frozen=True)
class PackedBatch:
    """A batch in compact form, for the transfer from a loader process. Unpickling it gives a `Batch`.

    It holds uint8 pixels, which take four times as much memory when they are normalised, and only the masks and regions
    of images that have any. Pages of shared memory cost more time than normalisation. So the receiving process
    normalises; with `pin_memory` a thread of the loader does.

    Attributes:
        preprocess: Preprocessing that normalises the images.
        samples: The B samples.
        images: `[B, H, W, 3]`, uint8.
        masks: `[M, H, W]`, uint8, masks of the samples that have one, in their order.
        areas: `[M, H, W]`, int32, region areas of these masks; `None` in training.
        references: `[M, H, W, 3]`, uint8, references that are not among the samples.
        reference_rows: R numbers per sample: rows in the samples followed by `references`; `None` without references.
        digests: Keys of the images in the feature store; `None` without a store.
        features: Features from the store, instead of `images`.
        facts: Facts of each sample's mask at its own size; `None` in training.
        views: Tiles of the samples, if images are tiled.
        defects: Defects of each sample, if the datasets define saturations; otherwise `None`.
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
    defects: list[tuple[Defect, ...]] | None = None

    def unpack(self) -> Batch:
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
            defects=self.defects,
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
        """Returns the function and the arguments that give a `Batch` when unpickled."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in PIXELS:
            if values[name]:  # torch's function stacks directly into shared memory
                values[name] = default_collate(list(values[name]))
        return _unpack, (values,)


def _unpack(values: dict[str, Any]) -> Batch:
    for name in PIXELS:
        if isinstance(values[name], Tensor):
            values[name] = list(values[name].numpy())
    return PackedBatch(**values).unpack()


@dataclass(frozen=True)
class Collate:
    """Collates the items of a dataset into one `Batch`, and lists the images that are left out.

    Attributes:
        preprocess: Preprocessing that normalises the images.
        regions: Whether to label the regions of the masks in the loader process, for evaluation.
        store: Feature store, if there is one.
        tiling: Tiling of the images, if they are tiled.
        at_once: Largest number of views that the backbone encodes together.
    """

    preprocess: Preprocess
    regions: bool = False
    store: FeatureStore | None = None
    tiling: Tiling | None = None
    at_once: int = 1

    def __call__(self, items: Sequence[Item | Unread]) -> tuple[Batch | PackedBatch | None, list[Unread]]:
        """Returns the batch of the usable images, if any, and the images that are left out.

        An image is left out if it, or one of its references, could not be read. In a loader process the result is a
        `PackedBatch`, which the main process receives as a `Batch`.
        """
        unread = {item.position: item for item in items if isinstance(item, Unread)}
        left_out, usable = list(unread.values()), []
        for item in items:
            if isinstance(item, Item):
                cause = next(
                    (unread[other] for other in item.references if other in unread and not item.reference_only), None
                )
                if cause:
                    left_out.append(Unread(item.position, item.sample.image_path, cause.reason))
                # an image that is left out may still be the reference of another
                usable.append(item._replace(reference_only=item.reference_only or cause is not None))
        if all(item.reference_only for item in usable):
            return None, left_out
        packed = self._pack(usable)
        return packed if get_worker_info() else packed.unpack(), left_out

    def _pack(self, items: Sequence[Item]) -> PackedBatch:
        extra = {item.position: item.image for item in items if item.reference_only and item.image is not None}
        items = [item for item in items if not item.reference_only]
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
        return PackedBatch(
            self.preprocess,
            [item.sample for item in items],
            [item.image for item in items if item.image is not None],
            masks,
            [region_areas(mask) for mask in masks] if self.regions else None,
            [extra[other] for other in outside],
            [[places[other] for other in item.references] for item in items] if items[0].references else None,
            [item.digest for item in items] if items[0].digest else None,
            from_rows(rows, self.store.spec, self.store.grid) if rows and self.store else None,
            facts if len(facts) == len(items) else None,
            Views(views, self.tiling, self.at_once) if self.tiling else None,
            [item.defects for item in items] if any(item.sample.saturations for item in items) else None,
        )
