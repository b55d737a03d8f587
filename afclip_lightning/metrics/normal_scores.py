"""Scores of normal images in little memory, from which thresholds are fixed."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from afclip_lightning.metrics.fixed_thresholds import Moments, Rule
from afclip_lightning.metrics.histogram import ScoreHistogram, exact_counts
from afclip_lightning.metrics.scores import ranked

Level = str  # `image` or `pixel`


@dataclass(frozen=True)
class NormalScores:
    """Scores of the normal images of a category, from which thresholds are fixed.

    Attributes:
        images: Image score and moments of the map, by path.
        pixels: Histogram of the values of all maps.
    """

    images: dict[str, tuple[float, Moments]] = field(default_factory=dict)
    pixels: ScoreHistogram = field(default_factory=ScoreHistogram.empty)

    def add(self, name: str, score: float, anomaly_map: Tensor) -> None:
        """Adds an image with its map. The map may have any shape and be on any device."""
        values, _ = ranked(anomaly_map.cpu())
        self.images[name] = score, Moments.of(values.numpy())
        self.pixels.add(values, torch.zeros(values.shape, dtype=torch.int32))

    def merge(self, other: "NormalScores") -> None:
        """Adds the scores of another process."""
        self.images.update(other.images)
        self.pixels.merge(other.pixels)

    def thresholds(self, rule: Rule) -> dict[Level, float]:
        """Returns the thresholds of `image` and `pixel` that a rule gives.

        Raises:
            UserError: There are too few scores.
        """
        ordered = [self.images[name] for name in sorted(self.images)]  # a fixed order of floating-point sums
        scores = np.array([score for score, _ in ordered], np.float64)
        pixels = Moments.merged(moments for _, moments in ordered)
        return {
            "image": rule.threshold(Moments.of(scores), exact_counts(scores, scores[:0]), binned=False),
            "pixel": rule.threshold(pixels, self.pixels.score_counts()),
        }
