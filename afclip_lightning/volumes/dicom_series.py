"""DICOM series and multi-frame objects as volumes. Frames are ordered by position, never by file."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from afclip_lightning.volumes.grid import INSTALL, LPS, Grid
from afclip_lightning.volumes.raw import Raw, free_space, written
from afclip_lightning.volumes.silence import silenced
from afclip_lightning.volumes.volume import Volume
from afclip_runtime.errors import DatasetError
from afclip_runtime.files import open_regular
from afclip_runtime.images.dicom import padding_of

if TYPE_CHECKING:
    from pydicom import Dataset

DICOM = "DICOM"
ROUNDED = 0.01  # rounding of headers: share of a step between slices, and mm per mm
KNOWN_BY = (
    "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "Modality", "Rows", "Columns",
    "NumberOfFrames", "ReferencedSeriesSequence",
)  # fmt: skip
"""Tags that are read of all headers. Names, dates and institutions are not among them."""
TAGS = (
    "Modality", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PixelSpacing",
    "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "PixelRepresentation", "BitsAllocated", "BitsStored", "EncryptedAttributesSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "SegmentSequence", "SegmentationType",
    "MaximumFractionalValue",
)  # fmt: skip
"""Tags that are read of the headers of an opened volume."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a series.

    Attributes:
        path: File of the frame.
        number: Number in the file, from 0.
        affine: `[4, 3]`, LPS, in mm: the steps of a column and of a row, and the origin, in the patient.
        shape: Rows and columns.
        slope: Slope of the rescaling.
        intercept: Intercept of the rescaling.
        segment: Number of its segment; 0 in an image.
    """

    path: Path
    number: int
    affine: np.ndarray
    shape: tuple[int, int]
    slope: float = 1.0
    intercept: float = 0.0
    segment: int = 0


@dataclass(frozen=True)
class Header:
    """The facts that identify the volume of a DICOM file. They are never written, printed or logged.

    Attributes:
        path: The file.
        series: Identity of the series.
        frame: Identity of its space (frame of reference).
        patient: Identity of the patient; of the study if the ID was removed.
        is_image: Whether it has pixels of an image.
        is_segmentation: Whether it holds segments.
        frames: Number of frames.
        drawn_on: Series that a segmentation refers to.
    """

    path: Path
    series: str
    frame: str
    patient: str
    is_image: bool
    is_segmentation: bool
    frames: int
    drawn_on: frozenset[str]


@dataclass(frozen=True, eq=False)
class DicomFile:
    """A DICOM file whose header was read.

    Attributes:
        path: The file.
        data: Fields of the header that `TAGS` names.
        syntax: Encoding of its pixels (transfer syntax).
    """

    path: Path
    data: "Dataset"
    syntax: Any

    def get(self, name: str) -> str:
        """Returns a field as text, empty if it is absent."""
        return str(self.data.get(name) or "").strip()


def open_file(path: Path, tags: Sequence[str] = TAGS) -> DicomFile:
    """Returns a DICOM file with its header.

    Raises:
        DatasetError: The file cannot be read, or pydicom is not installed.
    """
    try:
        from pydicom import dcmread
    except ImportError as error:
        raise DatasetError(f"{path}: DICOM files need pydicom. Install it: {INSTALL}.") from error
    with open_regular(path, error=DatasetError) as file, silenced(path, DICOM):
        data = dcmread(file, stop_before_pixels=True, specific_tags=list(tags))
        return DicomFile(path, data, data.file_meta.TransferSyntaxUID)


def read_header(path: Path) -> Header:
    """Returns the header that identifies the volume of a DICOM file.

    Raises:
        DatasetError: The file cannot be read, or pydicom is not installed.
    """
    file = open_file(path, KNOWN_BY)
    with silenced(path, DICOM):
        references = (item.get("SeriesInstanceUID") for item in file.data.get("ReferencedSeriesSequence") or ())
        is_segmentation = file.get("Modality") == "SEG"
        return Header(
            path,
            file.get("SeriesInstanceUID"),
            file.get("FrameOfReferenceUID"),
            file.get("PatientID") or file.get("StudyInstanceUID") or file.get("SeriesInstanceUID"),
            "Rows" in file.data and "Columns" in file.data and not is_segmentation,
            is_segmentation,
            int(file.data.get("NumberOfFrames") or 1),
            frozenset(str(uid) for uid in references if uid),
        )


def frames_of(file: DicomFile) -> list[Frame]:
    """Returns the frames of a file with their positions in the patient.

    Raises:
        DatasetError: The header does not state their positions, or the file is encrypted.
    """
    data, path = file.data, file.path
    if data.get("EncryptedAttributesSequence") and "ImagePositionPatient" not in data and not _groups(data):
        raise DatasetError(f"{path}: its header is encrypted. Ask the person who exported it for a de-identified copy.")
    with silenced(path, DICOM):
        shape, count = (int(data.Rows), int(data.Columns)), int(data.get("NumberOfFrames") or 1)
        groups = _groups(data)
        if count > 1 and len(groups) != count:
            raise DatasetError(
                f"{path}: its {count} frames have no positions, so they are a film, not a volume. Save each as a file."
            )
        if not groups:
            return [Frame(path, 0, _placed(path, (data,)), shape, *_scale((data,)))]
        shared = list(data.get("SharedFunctionalGroupsSequence") or ())[:1]
        found = []
        for number, group in enumerate(groups):
            places = [item for whole in (group, *shared) for item in _inner(whole)]
            segment = next((item.ReferencedSegmentNumber for item in places if "ReferencedSegmentNumber" in item), 0)
            found.append(Frame(path, number, _placed(path, places), shape, *_scale(places), int(segment)))
        return found


def _groups(data: "Dataset") -> list["Dataset"]:
    return list(data.get("PerFrameFunctionalGroupsSequence") or ())


def _inner(group: "Dataset") -> list["Dataset"]:
    """Returns the first item of each sequence of a functional group."""
    return [element.value[0] for element in group if element.VR == "SQ" and len(element.value)]


def _placed(path: Path, places: Iterable["Dataset"]) -> np.ndarray:
    """Returns the columns of an affine `[4, 3]`, from the items with a frame's position, orientation and spacing."""
    names = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
    found = {name: place.get(name) for place in places for name in names if place.get(name) is not None}
    lacking = [name for name, count in names.items() if len(np.atleast_1d(found.get(name, ()))) != count]
    if lacking:
        raise DatasetError(
            f"{path}: its header does not give its position in the patient (no {', '.join(lacking)}), so that it is no "
            "part of a volume. Inspect it as an image, without --axis."
        )
    position, turn, spacing = (np.asarray([float(x) for x in found[name]]) for name in names)
    affine = np.zeros((4, 3))
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = turn[:3] * spacing[1], turn[3:] * spacing[0], position
    affine[3, 2] = 1
    if not np.isfinite(affine).all() or not np.linalg.norm(np.cross(affine[:3, 0], affine[:3, 1])) > 0:
        raise DatasetError(f"{path}: its position, orientation or pixel spacing is damaged. Export it again.")
    return affine


def _scale(places: Iterable["Dataset"]) -> tuple[float, float]:
    for place in places:
        if place.get("RescaleSlope") is not None:
            return float(place.RescaleSlope), float(place.get("RescaleIntercept") or 0)
    return 1.0, 0.0


def open_series(files: Sequence[DicomFile], scratch: Path) -> Volume:
    """Returns the volume of a series: its frames ordered by position, rescaled to their unit, float32.

    Padding as declared by the files becomes NaN, because it holds no image.

    Args:
        files: All files of one series.
        scratch: Folder for the voxels.

    Raises:
        UserError: Slices are missing, duplicated, unevenly spaced or tilted, differ in size or orientation, or cannot
            be decoded.
    """
    name = _name(files)
    frames = [frame for file in files for frame in frames_of(file)]
    frames, grid = ordered(frames, name)
    for file in files:
        check_readable(file)
    rows, columns = frames[0].shape
    raw = Raw(scratch / "frames", 0, np.dtype("<f4"), (len(frames), rows, columns))
    free_space(scratch, raw.nbytes, name)
    places = {(frame.path, frame.number): place for place, frame in enumerate(frames)}
    with written(raw.path) as out:
        for file in files:
            mine = sorted((f for f in frames if f.path == file.path), key=lambda frame: frame.number)
            for frame, values in zip(mine, pixels(file, len(mine)), strict=True):
                out.seek(places[frame.path, frame.number] * rows * columns * 4)
                out.write(_rescaled(values, frame, file.data).tobytes())
    return Volume(raw.check(name), grid, modality=files[0].get("Modality"))


def _name(files: Sequence[DicomFile]) -> str:
    return f"{files[0].path}" if len(files) == 1 else f"{files[0].path} and {len(files) - 1} more files of its series"


def ordered(frames: Sequence[Frame], name: str) -> tuple[list[Frame], Grid]:
    """Returns frames in the order of their positions, and the grid of their volume.

    Raises:
        DatasetError: The frames are not a volume.
    """
    first = frames[0]
    if len({frame.shape for frame in frames}) > 1:
        raise DatasetError(f"{name}: its slices have several sizes. Export the series alone.")
    if max(np.abs(frame.affine[:, :2] - first.affine[:, :2]).max() for frame in frames) > ROUNDED * 0.1:
        raise DatasetError(
            f"{name}: its slices have several orientations or pixel spacings, as a localizer's have. Leave it out."
        )
    columns, rows = first.affine[:3, 0], first.affine[:3, 1]
    normal = np.cross(columns, rows)
    normal /= np.linalg.norm(normal)
    if len(frames) < 2:
        raise DatasetError(f"{name}: has one slice, which is not a volume. Inspect it as an image, without --axis.")
    frames = sorted(frames, key=lambda frame: float(normal @ frame.affine[:3, 2]))
    origins = np.array([frame.affine[:3, 2] for frame in frames])
    steps = np.diff(origins, axis=0)
    along = steps @ normal
    step = float(np.median(along))
    if (twice := np.flatnonzero(along < 1e-3)).size:
        at = float(normal @ origins[twice[0]])
        raise DatasetError(
            f"{name}: {len(twice) + 1} of its {len(frames)} slices lie where another one lies (first at {at:.4g} mm): "
            "several times or kinds of images in one series. Export each as a series of its own."
        )
    sideways = float(np.linalg.norm(steps - along[:, None] * normal, axis=1).max())
    if sideways > 2 * ROUNDED * step:
        tilt = np.degrees(np.arctan2(sideways, step))
        raise DatasetError(
            f"{name}: its slices are stacked at {tilt:.1f}° to their normal (a tilted gantry). Straighten the series, "
            "as dcm2niix does, and import the NIfTI file."
        )
    uneven = np.flatnonzero(np.abs(along - step) > max(ROUNDED * step, 2e-3))
    if uneven.size:
        gap = float(along[uneven[0]])
        places = ", ".join(f"{float(normal @ origins[place]):.4g}" for place in uneven[:3])
        missing = round(gap / step) - 1
        what = f"{missing} missing" if missing > 0 and abs(gap / step - missing - 1) < 0.05 else "uneven steps"
        raise DatasetError(
            f"{name}: its {len(frames)} slices do not follow one another evenly: {what} after the position {places} mm "
            f"(steps of {step:.4g} mm, there {gap:.4g} mm). Export the whole series, or straighten it as dcm2niix does."
        )
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = columns, rows, (origins[-1] - origins[0]) / (len(frames) - 1)
    affine[:3, 3] = origins[0]
    height, width = first.shape
    return frames, Grid((width, height, len(frames)), LPS @ affine)


def check_readable(file: DicomFile) -> None:
    """Raises if the pixels cannot be decoded, or are not values of a scan.

    Raises:
        DatasetError: The pixels cannot be used. The message names the missing package, if any.
    """
    from pydicom.pixels import get_decoder

    if file.get("SamplesPerPixel") not in ("", "1") or file.get("PhotometricInterpretation") == "MONOCHROME1":
        raise DatasetError(
            f"{file.path}: holds colours, or grey with white as 0, and not the values of a scan. Leave it out."
        )
    with silenced(file.path, DICOM):
        if file.syntax.is_compressed and not file.syntax.is_deflated and not get_decoder(file.syntax).is_available:
            raise DatasetError(
                f"{file.path}: its pixels are compressed ({file.syntax.name}), and no decoder for them is "
                f"installed. Install it: {INSTALL}; or save the series uncompressed."
            )


def pixels(file: DicomFile, count: int) -> Iterator[np.ndarray]:
    """Yields the stored values of a file's frames `[rows, columns]`, in the order of the file, one at a time.

    Args:
        file: The file.
        count: Number of its frames.

    Raises:
        DatasetError: The frames cannot be decoded, or do not match the header.
    """
    frames = _decoded(file)
    for number in range(count + 1):
        with silenced(file.path, DICOM):
            values = next(frames, None)
            shape = None if number == count else (file.data.Rows, file.data.Columns)
            if shape != (None if values is None else values.shape):
                raise ValueError("its header states other frames")
        if values is not None:
            yield values


def _decoded(file: DicomFile) -> Iterator[np.ndarray]:
    from pydicom import dcmread
    from pydicom.pixels import iter_pixels

    if file.data.BitsAllocated == 1 and not file.syntax.is_encapsulated:
        # pydicom 3.0 truncates such frames if a frame does not end at a byte
        rows, columns, count = int(file.data.Rows), int(file.data.Columns), int(file.data.get("NumberOfFrames") or 1)
        bits = np.frombuffer(dcmread(file.path).PixelData, np.uint8)
        for start in range(0, count * rows * columns, rows * columns):
            part = bits[start // 8 : -(-(start + rows * columns) // 8)]
            yield np.unpackbits(part, bitorder="little")[start % 8 :][: rows * columns].reshape(rows, columns)
        return
    yield from iter_pixels(dcmread(file.path) if file.syntax.is_deflated else file.path, raw=True)


def _rescaled(values: np.ndarray, frame: Frame, data: "Dataset") -> np.ndarray:
    found = (values.astype(np.float64) * frame.slope + frame.intercept).astype("<f4")
    padding = padding_of(values, data)
    if padding is not None:
        found[padding] = np.nan
    return found
