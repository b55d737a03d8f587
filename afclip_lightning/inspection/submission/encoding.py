"""Encodes maps as float16 without a change of their metrics."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
ROOM = 4
"""Powers of two by which the farthest normal pixel stays below 1. A pixel 2^20 times as far still fits float16."""


@dataclass(frozen=True)
class Encoding:
    """How the scores of a category become float16: `(score - threshold) * factor`.

    Float16 has 11 significant bits, so its steps are fine near 0 and coarse elsewhere. Scores around 0.5 would have
    steps of 0.0005, and smaller differences would become ties. Relative to the threshold, the steps are finest where
    normal and anomalous pixels are separated: an error is at most 2^-11 of the distance to the threshold, or 2^-20 of
    that of the farthest normal pixel. Values above 0 are above the threshold. The rule is affine, so it commutes with
    upsampling by interpolation. It is monotone, so metrics change only by ties. The factor is a power of two, so it
    causes no rounding.

    Attributes:
        threshold: Score that becomes 0.
        factor: Scale, a power of two.
    """

    threshold: float
    factor: float

    @classmethod
    def around(cls, threshold: float, lowest: float, highest: float) -> "Encoding":
        """Returns the encoding for normal scores between two values.

        Args:
            threshold: Score that becomes 0.
            lowest: Lowest normal score.
            highest: Highest normal score.
        """
        farthest = max(abs(lowest - threshold), abs(highest - threshold))
        exponent = math.frexp(farthest)[1] if farthest else 0  # farthest is below 2^exponent
        return cls(threshold, 2.0 ** max(min(-ROOM - exponent, 1000), -1000))

    def encode(self, scores: np.ndarray) -> tuple[np.ndarray, int]:
        """Returns scores of any shape as float16, and how many were clipped to its limits.

        Scores above the threshold stay above 0, even if float16 would round them to 0.
        """
        values = (scores.astype(np.float64) - self.threshold) * self.factor
        above = values > 0
        values[above] = np.maximum(values[above], SMALLEST)
        beyond = int(np.count_nonzero(np.abs(values) > LARGEST))
        return np.clip(values, -LARGEST, LARGEST).astype(np.float16), beyond

    def decode(self, values: np.ndarray) -> np.ndarray:
        """Returns the scores of float16 values, float64."""
        return values.astype(np.float64) / self.factor + self.threshold


def resized(anomaly_map: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns a map at another size: interpolated where it grows, averaged where it shrinks."""
    if anomaly_map.shape == (height, width):
        return anomaly_map
    values = anomaly_map if anomaly_map.dtype == np.float32 else anomaly_map.astype(np.float64)
    shrinks = height <= anomaly_map.shape[0] and width <= anomaly_map.shape[1]
    return np.asarray(
        cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    )
