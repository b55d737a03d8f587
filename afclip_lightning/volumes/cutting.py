"""Cuts one volume into PNG files."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from afclip_lightning.volumes.find import Source
from afclip_lightning.volumes.grid import MM, Axis, Cut, Grid
from afclip_lightning.volumes.opening import open_masks, open_volume
from afclip_lightning.volumes.volume import Reading, Slices, Volume
from afclip_lightning.volumes.windows import LIKE_CT, Facts, facts_of, window_of
from afclip_runtime.errors import DatasetError, UserError
from afclip_runtime.files.png import write_png
from afclip_runtime.images.limits import check_size

SCRATCH = ".scratch"
AS_IT_IS = Reading()
MOST_VALUES = 64  # maximum number of listed mask values


@dataclass(frozen=True)
class Cutting:
    """How volumes are cut.

    Attributes:
        axis: Axis along which slices follow one another.
        window: See `windows.window_of`.
        bits: Bits per pixel of the slices: 8 or 16.
        square: Whether pixels are made square. Otherwise they have the shape of the voxels.
        anomalous: Values of masks that mean anomalous; `None` for all but 0.
        min_content: Normal slices are left out if their share of pixels that are not black is not above this value;
            `None` keeps all.
        reading: How ambiguous files are read.
    """

    axis: Axis = "axial"
    window: str = "auto"
    bits: int = 8
    square: bool = True
    anomalous: tuple[int, ...] | None = None
    min_content: float | None = None
    reading: Reading = AS_IT_IS


class VolumeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The entry of a volume in the manifest, `volumes.jsonl`.

    Attributes:
        volume: Pseudonym of the volume.
        patient: Pseudonym of its patient.
        state: Digest of the sizes and times of its files, to detect changes.
        axis: Axis along which slices follow one another.
        shape: Number of voxels along the stored axes.
        codes: Axis codes of the stored axes.
        unit: Unit of its lengths: `mm`, or `meter` or `micron` if a NIfTI file has it.
        spacing: Voxel distances along the stored axes, in this unit.
        affine: Map from voxel indices to RAS, in this unit, `[4, 4]`.
        space_code: NIfTI's code of the space of the geometry.
        obliquity: Largest angle of a stored axis to an anatomical one, in degrees.
        modality: `CT`, `MR` …; empty if unknown.
        low: Value that is black.
        high: Value that is white.
        rule: Source of these values.
        slice_size: Height and width of the slices, in pixels.
        pixel_spacing: Distance of neighbouring rows and columns, in this unit.
        not_finite: Number of voxels without a finite value, which are black.
        mask_values: Values of its masks, up to a limit; empty without masks.
        has_mask: Whether there are masks.
        indices: Indices of the written slices.
        labels: Labels of these slices: 1 anomalous, 0 normal.
    """

    volume: str
    patient: str
    state: str
    axis: Axis
    shape: tuple[int, int, int]
    codes: str
    spacing: tuple[float, float, float]
    affine: list[list[float]]
    space_code: int
    obliquity: float
    modality: str
    low: float
    high: float
    rule: str
    slice_size: tuple[int, int]
    pixel_spacing: tuple[float, float]
    not_finite: int
    mask_values: list[int]
    has_mask: bool
    indices: list[int]
    labels: list[int]
    unit: str = MM

    @property
    def cut(self) -> Cut:
        """Returns the cut of its slices from its voxels."""
        return Cut(Grid(self.shape, np.array(self.affine)), self.axis)

    def image(self, index: int) -> str:
        """Returns the path of a slice, relative to the folder of the set."""
        return f"images/{self.volume}/{self.axis}-{index:04d}.png"

    def mask(self, index: int) -> str:
        """Returns the path of a slice's mask."""
        return f"masks/{self.volume}/{self.axis}-{index:04d}.png"

    def notes(self) -> list[str]:
        """Returns the notes on the volume."""
        found = []
        if self.not_finite:
            found.append(f"{self.not_finite} voxels are NaN, infinite or padding: they are black")
        if self.has_mask and not any(self.labels):
            found.append("its mask marks nothing: all slices count as normal")
        if self.obliquity > 1:
            found.append(f"its axes are {self.obliquity:.1f}° off the patient's: slices follow its own axes")
        if not self.modality and self.rule.startswith("percentiles") and self.low < LIKE_CT:
            found.append("its values look like CT: a window such as --window soft_tissue may be meant")
        return [f"{self.volume}: {note}" for note in found]


def cut_volume(source: Source, names: tuple[str, str], state: str, out: Path, cutting: Cutting) -> VolumeRecord:
    """Cuts a volume into slices and returns its record.

    Args:
        source: The volume.
        names: Pseudonyms of the volume and of its patient.
        state: See `VolumeRecord`.
        out: Folder of the set.
        cutting: How the volume is cut.

    Raises:
        UserError: The volume or a mask cannot be read, their geometries differ, or the disk is full.
    """
    scratch = out / SCRATCH
    for place in (scratch, out / "images" / names[0], out / "masks" / names[0]):
        shutil.rmtree(place, ignore_errors=True)  # left by a killed run
    try:
        volume = open_volume(source, scratch / "volume", cutting.reading)
        masks = open_masks(source, volume.grid, cutting.anomalous, scratch, cutting.reading)
        try:
            facts = facts_of(volume.blocks())
        except UserError as error:
            raise DatasetError(f"{source.name}: {error}") from error
        slices = Slices(volume, cutting.axis, scratch / "planes")
        marks = [
            (Slices(mask, cutting.axis, scratch / f"marks-{number}"), known)
            for number, (mask, known) in enumerate(masks)
        ]
        return _write(source, volume, facts, slices, marks, names, state, out, cutting)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(
    source: Source,
    volume: Volume,
    facts: Facts,
    slices: Slices,
    marks: Sequence[tuple[Slices, bool]],
    names: tuple[str, str],
    state: str,
    out: Path,
    cutting: Cutting,
) -> VolumeRecord:
    cut, grid = slices.cut, volume.grid
    modality = volume.modality or source.modality
    window = window_of(cutting.window, modality, facts, volume.blocks)
    size = cut.square if cutting.square else cut.shape
    check_size(source.name, size[1], size[0])
    values: set[int] = set()
    record = VolumeRecord(
        volume=names[0],
        patient=names[1],
        state=state,
        axis=cutting.axis,
        shape=grid.shape,
        codes=grid.codes,
        spacing=grid.spacing,
        affine=grid.affine.tolist(),
        space_code=volume.code,
        unit=volume.unit,
        obliquity=round(grid.obliquity, 3),
        modality=modality,
        low=window.low,
        high=window.high,
        rule=window.rule,
        slice_size=size,
        pixel_spacing=(cut.spacing[0] * cut.shape[0] / size[0], cut.spacing[1] * cut.shape[1] / size[1]),
        not_finite=facts.not_finite,
        mask_values=[],
        has_mask=bool(marks),
        indices=[],
        labels=[],
    )
    for index, picture in enumerate(slices):
        grey = window.grey(picture, cutting.bits)
        mask = np.zeros(grey.shape, bool)
        for drawn, known in marks:
            mask |= _marked(drawn[index], None if known else cutting.anomalous, values)
        content = np.count_nonzero(grey) / grey.size
        if not mask.any() and cutting.min_content is not None and content <= cutting.min_content:
            continue
        record.indices.append(index)
        record.labels.append(int(mask.any()))
        write_png(out / record.image(index), resized(grey, size), durable=False)
        if mask.any():
            marked = resized(mask.view(np.uint8), size, nearest=True) > 0
            write_png(out / record.mask(index), marked, durable=False)
    return msgspec.structs.replace(record, mask_values=sorted(values)[:MOST_VALUES])


def _marked(drawn: np.ndarray, anomalous: tuple[int, ...] | None, values: set[int]) -> np.ndarray:
    """Returns the anomalous pixels of a mask's slice, and adds the values of the slice to those seen."""
    whole = np.rint(np.nan_to_num(drawn, posinf=0, neginf=0)).astype(np.int64)
    values.update(np.unique(whole).tolist() if len(values) < MOST_VALUES else ())
    return whole != 0 if anomalous is None else np.isin(whole, anomalous)


def resized(picture: np.ndarray, size: tuple[int, int], nearest: bool = False) -> np.ndarray:
    """Returns a slice `[h, w]` at another size: upsampled linearly, downsampled by means, or by the nearest pixel.

    Args:
        picture: The slice.
        size: Height and width.
        nearest: Whether to use the nearest pixel, which keeps the values of masks.
    """
    if picture.shape == size:
        return picture
    import cv2

    smaller = size[0] <= picture.shape[0] and size[1] <= picture.shape[1]
    way = cv2.INTER_NEAREST_EXACT if nearest else cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(picture), size[::-1], interpolation=way))
