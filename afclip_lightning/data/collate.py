"""From what was read of samples to a batch, and how a batch leaves a loader's process."""

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

PIXELS = ("images", "masks", "areas", "references")  # of a parcel: what is sent in shared memory


@dataclass(frozen=True)
class Parcel:
    """A batch on its way out of a loader's process. It is pickled as a parcel. Unpickling it yields a `Batch`.

    It holds what was read: bytes, which become four times as many when they are normalised, and the masks and regions
    of the images that have any. Pages of shared memory cost more than the work that they save, so the work is left to
    where it arrives: with `pin_memory` that is the loader's own thread.

    Attributes:
        preprocess: What normalises the images.
        samples: The B samples.
        images: `[B, H, W, 3]`, uint8.
        masks: `[M, H, W]`, uint8, of the samples that have a mask, in their order.
        areas: `[M, H, W]`, int32, their regions; `None` in training.
        references: `[M, H, W, 3]`, uint8, the references that are none of the samples.
        reference_rows: R of each sample, counted through the samples and on through `references`; `None` without.
        digests: What the images' features are kept under; `None` without a store.
        features: Those that were kept, in place of `images`.
        facts: What is known of each sample's mask at its own size; `None` in training.
        views: The samples in tiles, where they are to be seen so.
        defects: Of each sample, where their sets say when a defect is found whole; `None` elsewhere.
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
        """Returns how the parcel is opened where it arrives."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in PIXELS:
            if values[name]:  # the library's own function stacks straight into shared memory
                values[name] = default_collate(list(values[name]))
        return _open_parcel, (values,)


def _open_parcel(values: dict[str, Any]) -> Batch:
    for name in PIXELS:
        if isinstance(values[name], Tensor):
            values[name] = list(values[name].numpy())
    return Parcel(**values).open()


@dataclass(frozen=True)
class Collate:
    """Puts what a dataset read into one `Batch`, and says which of its images are left out.

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

    def __call__(self, items: Sequence[Item | Unread]) -> tuple[Batch | Parcel | None, list[Unread]]:
        """Returns the batch of what can be used, if any, and what is left out: unread, or with a reference that is.

        In a loader's process the batch is a parcel, which arrives as a batch.
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
                # one that is left out may be another's reference
                usable.append(item._replace(reference_only=item.reference_only or cause is not None))
        if all(item.reference_only for item in usable):
            return None, left_out
        parcel = self._parcel(usable)
        return parcel if get_worker_info() else parcel.open(), left_out

    def _parcel(self, items: Sequence[Item]) -> Parcel:
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
        return Parcel(
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
