"""DICOM segmentations as masks. Each frame is placed by its position, not by its number in the file."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from afclip_lightning.volumes.dicom_series import DicomFile, Frame, check_readable, frames_of, pixels
from afclip_lightning.volumes.grid import LPS, SAME, Grid
from afclip_lightning.volumes.raw import Raw, free_space
from afclip_lightning.volumes.volume import Volume
from afclip_runtime.errors import DatasetError

HALF = 0.5  # least share of the largest value at which a fractional segmentation marks a pixel


def segments_of(file: DicomFile) -> list[int]:
    """Returns the numbers of the segments, without 0, the background of label maps."""
    numbers = [int(item.SegmentNumber) for item in file.data.get("SegmentSequence") or ()]
    return [number for number in numbers if number]


def open_segmentation(
    files: Sequence[DicomFile], grid: Grid, anomalous: Collection[int] | None, scratch: Path
) -> Volume:
    """Returns the mask of segmentations in a volume: 1 in an anomalous segment, 0 elsewhere.

    Absent frames are 0, because files leave out empty frames. Segments may overlap. A fractional segmentation marks
    values of at least half of its largest value.

    Args:
        files: Segmentations of one volume.
        grid: Grid of the volume.
        anomalous: Numbers of the anomalous segments; `None` for all.
        scratch: Folder for the mask.

    Raises:
        UserError: A frame lies outside of the volume's slices or between them, or a file cannot be decoded.
    """
    free_space(scratch, int(np.prod(grid.shape)), files[0].path)
    raw = Raw(scratch / "segments", 0, np.dtype("u1"), grid.shape[::-1])
    marked = np.memmap(raw.path, raw.dtype, "w+", shape=raw.shape)
    for file in files:
        check_readable(file)
        numbers, fractional = segments_of(file), file.get("SegmentationType") == "FRACTIONAL"
        labelled = file.get("SegmentationType") == "LABELMAP"
        most = float(file.data.get("MaximumFractionalValue") or 255)
        wanted = set(numbers if anomalous is None else anomalous)
        frames = frames_of(file)
        for frame, values in zip(frames, pixels(file, len(frames)), strict=True):
            if labelled:
                on = np.isin(values, list(wanted))
            elif (frame.segment or 1) in wanted:
                on = values >= HALF * most if fractional else values > 0
            else:
                continue
            _paint(marked, frame, on, grid)
    marked.flush()
    return Volume(raw, grid)


def _paint(marked: np.ndarray, frame: Frame, on: np.ndarray, grid: Grid) -> None:
    """Adds a frame to a mask `[k, j, i]`.

    Raises:
        DatasetError: The frame does not lie on the grid.
    """
    to_grid = np.linalg.inv(grid.affine) @ (LPS @ frame.affine)  # of column, row, 1: indices i, j, k
    whole = np.rint(to_grid)
    rows, columns = frame.shape
    ends = np.array([[x, y, 1] for x in (0, columns - 1) for y in (0, rows - 1)]).T
    apart = np.abs((to_grid - whole)[:3] @ ends).max()
    steps = np.abs(whole[:3, :2])
    corners = whole[:3] @ ends
    outside = corners.min() < 0 or (corners.max(axis=1) >= grid.shape).any()
    if apart > SAME or outside or not (steps.sum(axis=0) == 1).all() or steps.sum(axis=1).max() > 1:
        place = ", ".join(f"{value:.4g}" for value in frame.affine[:3, 2])
        what = "lies outside of the volume" if outside else "lies between the volume's voxels"
        raise DatasetError(
            f"{frame.path}: frame {frame.number + 1}, at ({place}) mm, {what}: its geometry differs. "
            "Give the series that it was drawn on."
        )
    y, x = np.nonzero(on)
    i, j, k = (whole[:3].astype(np.int64) @ np.stack([x, y, np.ones_like(x)])).tolist() if len(x) else ((), (), ())
    marked[list(k), list(j), list(i)] = 1
