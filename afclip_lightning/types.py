"""The containers that modules exchange.

Axis letters are fixed throughout the project: B batch, L tapped layers, N patches, C vision width, D joint embedding,
K prompts, S shots, H W pixels, h w patch grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from afclip_runtime.types import Tiling

if TYPE_CHECKING:  # looking at a dataset's files needs no torch
    import torch
    from torch import Tensor

    from afclip_runtime.views.roi import Roi

GroupScore = Literal["highest", "mean"]  # from the images of one object; see `Sample.group`
Split = Literal["train", "test"]
TrainSampling = Literal["by_size", "evenly"]  # of several training sets; see `data.sampling`
ProDefinition = Literal["exact", "mvtec", "legacy_cflow", "legacy_afclip"]  # see `metrics.pro`
IntervalKind = Literal["bca", "percentile"]  # see `metrics.intervals`
UNKNOWN = -1  # label of an image for prediction only; no training loss uses it
MOSTLY_MARKED = 0.5  # share of a picture above which a note says that a mask may be inverted
MAIN_HEAD = "main"  # name of the run's own method if others are tested in the same pass


@dataclass(frozen=True)
class Saturation:
    """The area of a defect that must be found for it to count as found completely, for sPRO.

    Attributes:
        value: Value of the defect's pixels in its mask file.
        threshold: Number of pixels at the set's own image size, or share of the defect's area.
        relative: Whether the threshold is a share.
    """

    value: int
    threshold: float
    relative: bool


@dataclass(frozen=True)
class Saturations:
    """The saturation of each kind of defect of a category.

    Attributes:
        file: Source file, for messages.
        kinds: Saturations by kind of defect, each with its own value.
    """

    file: Path
    kinds: tuple[Saturation, ...]


@dataclass(frozen=True)
class Sample:
    """One image on disk and what is known about it.

    Attributes:
        dataset: Name of the dataset, as in metric keys (`mvtec`).
        category: Name of the category inside the dataset (`bottle`).
        split: Split of the dataset that the image belongs to.
        image_path: Path of the image.
        label: 1 = anomalous, 0 = normal; `UNKNOWN` in prediction only.
        mask_path: Mask of the anomalous region (any value above `mask_threshold` is anomalous), or `None`. If it is a
            folder, each image in it marks one defect, and the mask is their union.
        mask_known: Whether the pixel labels are known. A normal image needs no mask file: its mask is empty. `False`
            only for anomalous images of sets without masks, and for unknown labels.
        mask_threshold: Highest value of the mask file that is still normal; by default 0, and half of the range in
            files of lossy formats. 127 for sets whose masks were smoothed.
        class_name: Name of the category in prompts (`metal nut`). Loaders fill it in.
        white: Value that becomes 255 in images of more than 8 bits; `None` for the largest value of the image's bits.
            Loaders fill it in.
        defect_type: Defect type of an anomalous image (`scratch`) in the set; empty if the set states none.
        group: Name of the group of the image, unique inside the category. Images of a group are also judged together
            (the views of one object, the slices of one volume). Empty: the image is judged alone.
        saturations: Saturations of the defects, if the set states them. The mask is then a folder.
        roi: Part of the image that is inspected; `None` for the whole image. Loaders fill it in.
    """

    dataset: str
    category: str
    split: Split
    image_path: Path
    label: int
    mask_path: Path | None = None
    mask_known: bool = True
    mask_threshold: int | None = None
    class_name: str = ""
    white: int | None = None
    defect_type: str = ""
    group: str = ""
    saturations: Saturations | None = None
    roi: Roi | None = None


@dataclass
class ClipFeatures:
    """The features that the frozen backbone passes to a method's head.

    Attributes:
        tokens: One `[B, 1 + N, C]` per tapped layer: class token, then the patches in row-major order.
        grid: Patch grid `(h, w)`, `h * w = N`.
        vv_tokens: One `[B, 1 + N, C]` per tapped layer of the V-V path: class token of the original path, patches of
            the V-V path.
        class_token: `[B, C]`, after the last block of the original path, before the final normalisation; `None` if the
            spec does not ask for the image embedding.
        image_embedding: `[B, D]`, projected and not normalised; `None` if the spec does not ask for it.
    """

    tokens: tuple[Tensor, ...]
    grid: tuple[int, int]
    vv_tokens: tuple[Tensor, ...] = ()
    class_token: Tensor | None = None
    image_embedding: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> ClipFeatures:
        """Returns the features with `change` applied to every tensor."""
        return ClipFeatures(
            tuple(map(change, self.tokens)),
            self.grid,
            tuple(map(change, self.vv_tokens)),
            None if self.class_token is None else change(self.class_token),
            None if self.image_embedding is None else change(self.image_embedding),
        )


@dataclass(frozen=True)
class MaskFacts:
    """Facts on an image's mask at the image's own size.

    Attributes:
        shape: Height and width of the image, in pixels.
        marked: Number of anomalous pixels.
        regions: Number of anomalous regions, 8-connected.
        areas: `[h, w]`, int32: area of the region of each pixel, 0 = normal, for the part of the image from `corner` on
            that holds all regions. `None` if it was not requested or there are no regions.
        corner: First row and column of that part.
        seen: Number of anomalous regions at the backbone's size; 0 if resizing lost all of them.
    """

    shape: tuple[int, int]
    marked: int = 0
    regions: int = 0
    areas: Tensor | None = None
    corner: tuple[int, int] = (0, 0)
    seen: int = 0

    @property
    def marks_most(self) -> bool:
        """Returns whether more than half of the picture is anomalous."""
        return self.marked > MOSTLY_MARKED * self.shape[0] * self.shape[1]

    def region_area(self, device: torch.device | None = None) -> Tensor:
        """Returns the area of the region of each pixel of the image, `[H, W]`, int32, 0 = normal."""
        import torch

        areas = torch.zeros(self.shape, dtype=torch.int32, device=device)
        if self.areas is not None:
            (top, left), (height, width) = self.corner, self.areas.shape
            areas[top : top + height, left : left + width] = self.areas.to(areas.device)
        return areas


@dataclass(frozen=True)
class Defect:
    """One defect of an image, with any number of parts.

    Attributes:
        region: `[h, w]`, uint8 in {0, 1}, for the part of the image from `corner` on that holds the defect.
        corner: First row and column of that part.
        saturation: Share of the defect's area that must be found for it to count as found completely, in (0, 1].
    """

    region: Tensor
    corner: tuple[int, int]
    saturation: float


@dataclass(frozen=True)
class Views:
    """The images of a batch, cut into tiles.

    Attributes:
        pixels: V views per image, `[V, H, W, 3]`, uint8.
        tiling: How the views were cut.
        at_once: Maximum number of views per backbone pass.
    """

    pixels: list[Tensor]
    tiling: Tiling
    at_once: int


@dataclass
class Batch:
    """A batch of preprocessed samples.

    Attributes:
        image: `[B, 3, H, W]`, float32, CLIP-normalised; without rows if the `features` were read instead.
        mask: `[B, H, W]`, uint8, 1 = anomalous; all zero if the mask is unknown.
        label: `[B]`, int64, 1 = anomalous.
        mask_known: `[B]`, bool.
        samples: B samples, one per row.
        region_area: `[B, H, W]`, int32, area in pixels of the anomalous region of each pixel, 0 = normal; `None` in
            training, which does not use it.
        reference: `[M, 3, H, W]`, like `image`: further unlabelled images for comparison, in evaluation; `None` unless
            the method needs references.
        reference_rows: `[B, R]`, int64: numbers of the R images of the same category with which each row is compared.
            They count the rows first, and then `reference`.
        digests: Key of each image's features in the store; `None` without a store.
        features: Stored features of the images; `None` if they must be computed.
        masks: Facts on each image's mask at the image's own size; `None` in training.
        views: The images in tiles, for an evaluation in tiles; `None` otherwise.
        defects: Defects of each image at the evaluated size, for sets with saturations; `None` in training and for
            other sets.
    """

    image: Tensor
    mask: Tensor
    label: Tensor
    mask_known: Tensor
    samples: list[Sample]
    region_area: Tensor | None = None
    reference: Tensor | None = None
    reference_rows: Tensor | None = None
    digests: list[str] | None = None
    features: ClipFeatures | None = None
    masks: list[MaskFacts] | None = None
    views: Views | None = None
    defects: list[tuple[Defect, ...]] | None = None

    @property
    def keys(self) -> list[tuple[str, str]]:
        """Returns the dataset and the category of each sample."""
        return [(sample.dataset, sample.category) for sample in self.samples]

    @property
    def known(self) -> Tensor | slice:
        """Returns the index of the rows whose mask is known. A slice of all rows avoids work on the device."""
        return slice(None) if all(sample.mask_known for sample in self.samples) else self.mask_known

    @property
    def labelled(self) -> Tensor | slice:
        """Returns the index of the rows whose label is known. A slice of all rows avoids work on the device."""
        return slice(None) if all(sample.label != UNKNOWN for sample in self.samples) else self.label != UNKNOWN

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on another device. Lightning calls this."""
        non_blocking = device.type == "cuda"  # safe from pinned memory to CUDA only
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Returns the batch in page-locked memory. The data loader calls this."""
        return self._with(lambda tensor: tensor.pin_memory())

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        image, mask, label, known = map(change, (self.image, self.mask, self.label, self.mask_known))
        others = (self.region_area, self.reference, self.reference_rows)
        area, reference, rows = (None if tensor is None else change(tensor) for tensor in others)
        features = None if self.features is None else self.features.map(change)
        kept = self.digests, features, self.masks, self.views, self.defects
        return Batch(image, mask, label, known, self.samples, area, reference, rows, *kept)


@dataclass
class AnomalyPrediction:
    """The scores of a method for a batch. Higher is more anomalous. They are float32 at any precision of the run.

    Attributes:
        pred_score: `[B]`, image-level anomaly score.
        anomaly_map: `[B, H, W]`, pixel-level anomaly score at the size of the input image.
        own_maps: Map per image at its own size, `[H, W]`, float32, on the CPU, for images in tiles; `None` otherwise.
    """

    pred_score: Tensor
    anomaly_map: Tensor
    own_maps: list[Tensor] | None = None


Outputs = (
    AnomalyPrediction | Mapping[str, AnomalyPrediction]
)  # of a step: from the method, or from several heads by name


def prediction_of(outputs: Outputs, head: str) -> AnomalyPrediction:
    """Returns the prediction of one head. A single method has no name."""
    return outputs[head] if isinstance(outputs, Mapping) else outputs
