"""The result for one image, in the pixels of the image: score, verdict, map, mask, regions, overlay."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from afclip_runtime.inspection.calibration import probability
from afclip_runtime.inspection.components import find_components
from afclip_runtime.inspection.drawing import CONTOUR, blend, outline, with_caption
from afclip_runtime.thresholds import ThresholdFrom, is_anomalous
from afclip_runtime.views.tiles import Box

CAPTIONS = (  # of an overlay without a common scale; the first that fits is drawn
    "Colours run from this image's lowest to its highest value. No calibration, so no common scale.",
    "Colours: this image's lowest to highest value",
    "Colours: own scale",
    "own scale",
)
BY_DEFAULT = (  # of an overlay with the head's default threshold and scale
    "Default threshold of the head, not calibrated",
    "Default threshold",
)
OWN_SCALE_BY_DEFAULT = (  # of an overlay with the head's default threshold without a scale
    "Colours run from this image's lowest to its highest value; contours by the head's default threshold.",
    "Own scale; default threshold of the head",
    "Default threshold",
)


@dataclass(frozen=True)
class Region:
    """An 8-connected region of pixels above the pixel threshold.

    Attributes:
        box: Left, top, right and bottom in pixels of the image. Right and bottom are exclusive.
        area: Area in pixels.
        score: Highest value of the map in the region.
    """

    box: Box
    area: int
    score: float


@dataclass(frozen=True, eq=False)
class Inspection:
    """The result of a model for an image.

    Attributes:
        score: Anomaly score of the image; higher is more anomalous.
        anomaly_map: Anomaly score of each pixel of the original image, `[H, W]`, float32.
        threshold: Threshold of the score; `None` for none. See `is_anomalous`.
        pixel_threshold: Threshold of the values of the map; `None` for none.
        scale: Unit of `probability`; `None` without calibration.
        pixel_scale: Unit of the probability of the values of the map; `None` without calibration.
        image: The image, `[H, W, 3]`, uint8, RGB; `None` if it was not kept.
        threshold_from: Source of the threshold; `None` for none.
        pixel_threshold_from: Source of the pixel threshold; `None` for none.
        inside: Which pixels are inspected, `[H, W]`, bool; `None` for all. The map has its lowest value elsewhere.
    """

    score: float
    anomaly_map: np.ndarray
    threshold: float | None = None
    pixel_threshold: float | None = None
    scale: float | None = None
    pixel_scale: float | None = None
    image: np.ndarray | None = None
    threshold_from: ThresholdFrom | None = None
    pixel_threshold_from: ThresholdFrom | None = None
    inside: np.ndarray | None = None

    def __repr__(self) -> str:
        """Returns one line without the arrays: `Inspection(score=0.612, …, regions=2, size=640x480)`."""
        height, width = self.anomaly_map.shape
        regions = None if self.regions is None else len(self.regions)
        threshold = "None" if self.threshold is None else f"{self.threshold:.4g} ({self.threshold_from})"
        return (
            f"{type(self).__name__}(score={self.score:.4g}, anomalous={self.anomalous}, threshold={threshold}, "
            f"regions={regions}, size={width}x{height})"
        )

    @property
    def anomalous(self) -> bool | None:
        """Returns whether the image is anomalous; `None` without a threshold."""
        return None if self.threshold is None else is_anomalous(self.score, self.threshold)

    @property
    def probability(self) -> float | None:
        """Returns the score on a scale from 0 to 1, where 0.5 is the threshold; `None` without calibration.

        It is not a frequency; see `afclip_runtime.inspection.calibration.probability`.
        """
        if self.threshold is None or self.scale is None:
            return None
        return float(probability(np.float64(self.score), self.threshold, self.scale))

    @cached_property
    def mask(self) -> np.ndarray | None:
        """Returns which inspected pixels are above the pixel threshold, `[H, W]`, bool; `None` without a threshold.

        It does not depend on the verdict, since the score of an image is not the highest value of its map.
        """
        if self.pixel_threshold is None:
            return None
        mask = is_anomalous(self.anomaly_map, self.pixel_threshold)
        return mask if self.inside is None else mask & self.inside

    @property
    def area(self) -> float | None:
        """Returns the share of inspected pixels in the mask, 0 to 1; `None` without a pixel threshold."""
        return None if self.mask is None else float(self.mask.sum() / self.inspected.size)

    @property
    def inspected(self) -> np.ndarray:
        """Returns the values of the map at the inspected pixels, `[n]`, float32."""
        return self.anomaly_map.ravel() if self.inside is None else self.anomaly_map[self.inside]

    @cached_property
    def regions(self) -> tuple[Region, ...] | None:
        """Returns the regions of the mask by decreasing highest value; `None` without a pixel threshold."""
        if self.mask is None:
            return None
        boxes, areas, highest = find_components(self.mask, self.anomaly_map)
        found = [
            Region((left, top, right, bottom), area, score)
            for (left, top, right, bottom), area, score in zip(
                boxes.tolist(), areas.tolist(), highest.tolist(), strict=True
            )
        ]
        return tuple(sorted(found, key=lambda region: -region.score))

    def at(self, threshold: float | None, pixel_threshold: float | None) -> "Inspection":
        """Returns the same inspection with other thresholds, set by hand."""
        return replace(
            self,
            threshold=threshold,
            pixel_threshold=pixel_threshold,
            threshold_from=None if threshold is None else "hand",
            pixel_threshold_from=None if pixel_threshold is None else "hand",
        )

    @property
    def shares_scale(self) -> bool:
        """Returns whether the colours of the overlay have the same scale as those of other images."""
        return self.pixel_threshold is not None and self.pixel_scale is not None

    def heat(self) -> np.ndarray:
        """Returns the heat of each pixel in the overlay, `[H, W]`, float32, in [0, 1].

        With a calibration it is the calibrated value of the map, 0.5 at the pixel threshold, so that the overlays of
        all images share one scale. Without a calibration, it spans the lowest to the highest value of the map. Then
        even a normal image has a hot spot.
        """
        if self.pixel_threshold is not None and self.pixel_scale is not None:
            return probability(self.anomaly_map, self.pixel_threshold, self.pixel_scale)
        low, high = float(self.anomaly_map.min()), float(self.anomaly_map.max())
        return (self.anomaly_map - np.float32(low)) / np.float32(max(high - low, 1e-12))

    @property
    def captions(self) -> Sequence[str]:
        """Returns alternative captions of the overlay, from long to short. There are none with a calibration.

        They explain that the colours span this image's lowest to highest value, or that the threshold is the default
        threshold of the head.
        """
        if self.pixel_threshold_from == "default":
            return BY_DEFAULT if self.shares_scale else OWN_SCALE_BY_DEFAULT
        return () if self.shares_scale else CAPTIONS

    def overlay(self) -> np.ndarray:
        """Returns the image with its coloured map and the contours of the mask, `[H, W, 3]`, uint8, RGB.

        Pixels that are not inspected are dark and have no heat colours. The first of `captions` that fits is at the
        bottom. On a small image none may fit.

        Raises:
            ValueError: The image was not kept.
        """
        if self.image is None:
            raise ValueError("the image was not kept: there is nothing to draw the map on")
        drawn = blend(self.image, self.heat())
        if self.inside is not None:
            drawn[~self.inside] = self.image[~self.inside] // 3
        if self.mask is not None:
            drawn[outline(self.mask, max(1, round(max(drawn.shape) / 400)))] = CONTOUR
        return with_caption(drawn, self.captions)


def only_inside(anomaly_map: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Returns a map `[H, W]` in which pixels outside have the lowest value of the inspected pixels.

    So its highest value, its overlay and its file do not depend on pixels outside.
    """
    return np.where(inside, anomaly_map, anomaly_map[inside].min())
