"""The JSON answers of `serve`."""

import base64
from typing import Literal

import numpy as np
from pydantic import BaseModel

from afclip_runtime.inspection.drift import Side
from afclip_runtime.inspection.verdict import Inspection
from afclip_runtime.thresholds import ThresholdFrom, Verdict
from afclip_runtime.views.resizing import area_mean

MAP_SIDE = 1024  # longest side of a sent map, in pixels; the input of a backbone has a few hundred


class ModelFacts(BaseModel):
    """The model, thresholds and limits of the server.

    Thresholds and scales are those of the calibration, or else the defaults of the head. Then `threshold_from` is
    `default`, and `chosen` says how they were chosen. Without both they are `null`. `title` is the title of the head.
    `max_few_shot` is 0 if the method takes no few-shot images. `calibration` describes the calibration. A new one needs
    at least `min_normals` normal images; `normals` were given so far. `marks`: number of valid feedback marks. `toy`:
    the backbone was trained only on drawn images. `roi`: inspected share of the images; `null` for the whole image.
    """

    title: str
    method: str
    backbone: str
    category: str
    threshold: float | None
    threshold_from: ThresholdFrom | None
    chosen: str
    pixel_threshold: float | None
    scale: float | None
    pixel_scale: float | None
    calibration: str | None
    toy: bool
    roi: float | None
    marks: int
    few_shot: int
    normals: int
    min_normals: int
    max_normals: int
    max_bytes: int
    max_pixels: int
    max_few_shot: int


class RegionFacts(BaseModel):
    """A region above the pixel threshold: left, top, right, bottom in pixels; area in pixels; highest value."""

    box: tuple[int, int, int, int]
    area: int
    score: float


class MapValues(BaseModel):
    """A map, reduced if the image is large: row by row, 16 bits, little-endian, Base64; map = low + step * value.

    `inside` tells which pixels are inspected: row by row, one bit per pixel, highest bit first, Base64. `null` for all.
    """

    width: int
    height: int
    low: float
    step: float
    values: str
    inside: str | None


class Result(BaseModel):
    """The result for an image. Fields that need a threshold are `null` without one. `map` is given on request.

    `image` is the identifier of the file, for feedback, and `mark` its mark. `note` tells if the calibration no longer
    holds for the last images.
    """

    image: str
    mark: Verdict | None
    score: float
    probability: float | None
    threshold: float | None
    threshold_from: ThresholdFrom | None
    pixel_threshold: float | None
    anomalous: bool | None
    area: float | None
    regions: list[RegionFacts] | None
    width: int
    height: int
    note: str
    map: MapValues | None


class DriftFacts(BaseModel):
    """A drift: whether scores became higher or lower, since when (UTC), at which image of the stream, and in words."""

    side: Side
    since: str
    image: int
    said: str


class Health(BaseModel):
    """State of the server: `ok`, or `drift` if the calibration no longer holds; and the number of waiting requests."""

    status: Literal["ok", "drift"]
    waiting: int
    drift: DriftFacts | None


def result_of(found: Inspection, note: str, with_map: bool, image: str = "", mark: Verdict | None = None) -> Result:
    """Returns the answer for an inspection.

    Args:
        found: The inspection.
        note: Note on the last images.
        with_map: Whether the answer contains the map.
        image: Identifier of the file.
        mark: Feedback mark of the image.
    """
    height, width = found.anomaly_map.shape
    regions = found.regions
    return Result(
        image=image,
        mark=mark,
        score=found.score,
        probability=found.probability,
        threshold=found.threshold,
        threshold_from=found.threshold_from,
        pixel_threshold=found.pixel_threshold,
        anomalous=found.anomalous,
        area=found.area,
        regions=None if regions is None else [RegionFacts(box=r.box, area=r.area, score=r.score) for r in regions],
        width=width,
        height=height,
        note=note,
        map=_map_values(found.anomaly_map, found.inside) if with_map else None,
    )


def _map_values(anomaly_map: np.ndarray, inside: np.ndarray | None) -> MapValues:
    """Returns the answer's form of a map."""
    height, width = anomaly_map.shape
    share = min(1.0, MAP_SIDE / max(height, width))
    if share < 1:
        size = max(1, round(height * share)), max(1, round(width * share))
        anomaly_map = area_mean(anomaly_map, *size)
        inside = None if inside is None else area_mean(inside.astype(np.float32), *size) >= 0.5
    low = float(anomaly_map.min())
    step = (float(anomaly_map.max()) - low) / 65535 or 1.0
    values = np.rint((anomaly_map - low) / step).astype("<u2")
    return MapValues(
        width=values.shape[1],
        height=values.shape[0],
        low=low,
        step=step,
        values=base64.b64encode(values.tobytes()).decode("ascii"),
        inside=None if inside is None else base64.b64encode(np.packbits(inside).tobytes()).decode("ascii"),
    )
