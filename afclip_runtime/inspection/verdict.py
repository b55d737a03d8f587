"""What a model says of one image, in the image's own frame: score, verdict, map, mask, regions, overlay."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from afclip_runtime.inspection.calibration import probability
from afclip_runtime.inspection.components import find_components
from afclip_runtime.inspection.drawing import CONTOUR, blend, outline, with_caption
from afclip_runtime.thresholds import ThresholdFrom, is_anomalous
from afclip_runtime.views.tiles import Box

CAPTIONS = (  # of an overlay without common scale: the first that leaves most of the image free
    "Colours run from this image's lowest to its highest value. No calibration, so no common scale.",
    "Colours: this image's lowest to highest value",
    "Colours: own scale",
    "own scale",
)
BY_DEFAULT = (  # likewise, where the scale is the head's own
    "Default threshold of the head, not calibrated",
    "Default threshold",
)
OWN_SCALE_BY_DEFAULT = (  # likewise, where the head has a threshold of its own and no scale
    "Colours run from this image's lowest to its highest value; contours by the head's default threshold.",
    "Own scale; default threshold of the head",
    "Default threshold",
)


@dataclass(frozen=True)
class Region:
    """Pixels above the pixel threshold that touch each other, corners included.

    Attributes:
        box: Left, top, right and bottom in pixels of the image; right and bottom are beyond the last pixel.
        area: In pixels.
        score: Highest value of the map in it.
    """

    box: Box
    area: int
    score: float


@dataclass(frozen=True, eq=False)
class Inspection:
    """What a model says of an image.

    Attributes:
        score: Anomaly score of the image; higher is more anomalous.
        anomaly_map: `[H, W]`, float32, anomaly score of each pixel of the image as it was given.
        threshold: Scores above it are anomalous; `None` if there is none. See `is_anomalous`.
        pixel_threshold: Likewise for the values of the map.
        scale: Unit of `probability`; `None` without calibration.
        pixel_scale: Likewise for the values of the map.
        image: `[H, W, 3]`, uint8, RGB, the image; `None` if it was not kept.
        threshold_from: Where the threshold comes from; `None` if there is none.
        pixel_threshold_from: Likewise for the values of the map.
        inside: `[H, W]`, bool: which pixels are inspected; `None` for all. The map has its lowest value elsewhere.
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

    @property
    def anomalous(self) -> bool | None:
        """Returns whether the image is anomalous; `None` without a threshold."""
        return None if self.threshold is None else is_anomalous(self.score, self.threshold)

    @property
    def probability(self) -> float | None:
        """Returns the score on a scale from 0 to 1 whose 0.5 is the threshold; `None` without calibration.

        It is no frequency; see `afclip_runtime.inspection.calibration.probability`.
        """
        if self.threshold is None or self.scale is None:
            return None
        return float(probability(np.float64(self.score), self.threshold, self.scale))

    @cached_property
    def mask(self) -> np.ndarray | None:
        """Returns which inspected pixels lie above the pixel threshold, `[H, W]`, bool; `None` without one.

        It does not depend on the verdict: the highest value of a map and the score of an image are two things.
        """
        if self.pixel_threshold is None:
            return None
        mask = is_anomalous(self.anomaly_map, self.pixel_threshold)
        return mask if self.inside is None else mask & self.inside

    @property
    def area(self) -> float | None:
        """Returns which share of the inspected pixels the mask marks, 0 to 1; `None` without a pixel threshold."""
        return None if self.mask is None else float(self.mask.sum() / self.inspected.size)

    @property
    def inspected(self) -> np.ndarray:
        """Returns the values of the map at the inspected pixels, `[n]`, float32."""
        return self.anomaly_map.ravel() if self.inside is None else self.anomaly_map[self.inside]

    @cached_property
    def regions(self) -> tuple[Region, ...] | None:
        """Returns the regions of the mask, that with the highest value first; `None` without a pixel threshold."""
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
        """Returns the same at other thresholds, fixed by hand."""
        return replace(
            self,
            threshold=threshold,
            pixel_threshold=pixel_threshold,
            threshold_from=None if threshold is None else "hand",
            pixel_threshold_from=None if pixel_threshold is None else "hand",
        )

    @property
    def shares_scale(self) -> bool:
        """Returns whether the colours of its picture mean the same as those of other images."""
        return self.pixel_threshold is not None and self.pixel_scale is not None

    def heat(self) -> np.ndarray:
        """Returns how hot each pixel is drawn, `[H, W]`, float32, in [0, 1].

        With a calibration that is the calibrated value of the map, 0.5 at the pixel threshold, so that the pictures of
        all images share one scale. Without, the map runs from its lowest to its highest value: even a normal image then
        has a hot spot.
        """
        if self.pixel_threshold is not None and self.pixel_scale is not None:
            return probability(self.anomaly_map, self.pixel_threshold, self.pixel_scale)
        low, high = float(self.anomaly_map.min()), float(self.anomaly_map.max())
        return (self.anomaly_map - np.float32(low)) / np.float32(max(high - low, 1e-12))

    @property
    def captions(self) -> Sequence[str]:
        """Returns what its picture says of its colours and its threshold, shorter and shorter; nothing if calibrated.

        That is where the colours run from this image's lowest to its highest value, for want of a threshold, and where
        the threshold is the head's own.
        """
        if self.pixel_threshold_from == "default":
            return BY_DEFAULT if self.shares_scale else OWN_SCALE_BY_DEFAULT
        return () if self.shares_scale else CAPTIONS

    def overlay(self) -> np.ndarray:
        """Returns the image under its map in colours, with the contours of the mask, `[H, W, 3]`, uint8, RGB.

        What is not inspected is dark and without colours.
        The first of `captions` that fits stands at its foot; on an image of few pixels none does.

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
    """Returns a map `[H, W]` whose pixels that are not inspected have the lowest value of those that are.

    So its highest value, its picture and its file say nothing of what lies outside.
    """
    return np.where(inside, anomaly_map, anomaly_map[inside].min())
