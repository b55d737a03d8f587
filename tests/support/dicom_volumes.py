"""DICOM series, multi-frame objects and segmentations that tests write."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, FileDataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from tests.support.volumes import stored

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_series(
    folder: Path,
    values: np.ndarray,
    codes: str = "LPS",
    own: np.ndarray | None = None,
    patient: str = "P1",
    series: str | None = None,
    order: Sequence[int] | None = None,
    intercept: int = -1024,
    **fields: Any,
) -> list[Path]:
    """Writes values `[R, A, S]` as a CT series, a file per plane of the third stored axis; returns the files.

    Args:
        folder: Where they go.
        values: The values, int16.
        codes: Sides that columns, rows and slices run to.
        own: Affine of the values; see `stored`.
        patient: Its ID.
        series: Its UID.
        order: Numbers in the names of the files, so that names and instance numbers say nothing of positions.
        intercept: Number that is added to stored values to get the values.
        fields: Further fields of all files.
    """
    data, affine = stored(values, codes, own)
    place = LPS @ affine
    columns, rows = (np.linalg.norm(place[:3, axis]) for axis in (0, 1))
    series, study, frame = series or generate_uid(), generate_uid(), generate_uid()
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for slice_number in range(data.shape[2]):
        number = order[slice_number] if order is not None else slice_number
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        item.Modality, item.PatientID, item.PatientName = "CT", patient, "Musterfrau^Erika"
        item.PatientBirthDate, item.PatientSex, item.StudyDate, item.StudyTime = "19500101", "F", "20200101", "120000"
        item.AccessionNumber = item.StudyID = item.ReferringPhysicianName = item.Manufacturer = ""
        item.SeriesNumber = item.AcquisitionNumber = 1
        item.StudyInstanceUID, item.SeriesInstanceUID, item.FrameOfReferenceUID = study, series, frame
        item.PositionReferenceIndicator = item.PatientPosition = ""
        item.ImageType, item.InstanceNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], number + 1
        item.Rows, item.Columns = data.shape[1], data.shape[0]
        item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
        item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 16, 15, 1
        item.PixelSpacing = [float(rows), float(columns)]
        item.SliceThickness = float(np.linalg.norm(place[:3, 2]))
        item.ImageOrientationPatient = [*(place[:3, 0] / columns), *(place[:3, 1] / rows)]
        item.ImagePositionPatient = [*(place @ [0, 0, slice_number, 1])[:3]]
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = 1, intercept, "HU"
        for name, value in fields.items():
            setattr(item, name, value)
        item.PixelData = (data[:, :, slice_number].T - intercept).astype("<i2").tobytes()
        path = folder / f"{number:03d}.dcm"
        item.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def read_sources(paths: Sequence[Path]) -> list[Dataset]:
    """Returns DICOM files, as highdicom takes them."""
    return [dcmread(path) for path in paths]


def write_enhanced(path: Path, paths: Sequence[Path]) -> Path:
    """Writes a series as one object with several frames, as highdicom makes it."""
    from highdicom.legacy import LegacyConvertedEnhancedCTImage

    sources = read_sources(paths)
    made = LegacyConvertedEnhancedCTImage(sources, generate_uid(), 2, generate_uid(), 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path)
    return path


def write_segmentation(
    path: Path, paths: Sequence[Path], masks: np.ndarray, kind: str = "BINARY", **options: Any
) -> Path:
    """Writes a segmentation of a series, as highdicom makes it.

    Args:
        path: The file.
        paths: The series.
        masks: `[slices, rows, columns, segments]` in the order of `paths`, 0 or 1; of fractions in [0, 1].
        kind: `BINARY`, `FRACTIONAL` or `LABELMAP`.
        options: Further ones of `highdicom.seg.Segmentation`.
    """
    import highdicom
    from pydicom.sr.codedict import codes

    described = [
        highdicom.seg.SegmentDescription(
            number,
            f"segment {number}",
            codes.SCT.MorphologicallyAbnormalStructure,
            codes.SCT.Lesion,
            highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number in range(1, masks.shape[3] + 1)
    ]
    made = highdicom.seg.Segmentation(
        read_sources(paths), masks, kind, described, generate_uid(), 3, generate_uid(), 1, "m", "m", "1", "1", **options
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path)
    return path
