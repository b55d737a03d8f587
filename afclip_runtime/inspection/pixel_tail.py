"""The pixel threshold from the anomaly maps of normal images."""

import math

import numpy as np

from afclip_runtime.inspection.calibration import CONFIDENCE, FEWEST, RESAMPLES, Threshold, require, scale_of

MAX_KEPT = 2**24


class PixelTail:
    """The highest values of the maps of normal images, as many as can affect the threshold. Images have equal weights.

    Of large or many maps, a random sample of the pixels is used, so that memory stays below 4 × `MAX_KEPT` bytes.

    Args:
        images: Maximum number of images.
        fpr: Share of the pixels above the threshold.
        fewest: Minimum number of images.
    """

    def __init__(self, images: int, fpr: float, fewest: int = FEWEST) -> None:
        self.fpr = fpr
        self.fewest = fewest
        self.share = min(1.0, images * fpr)  # in case all pixels above the threshold are in one image
        self.most = max(1, MAX_KEPT // max(images, 1))
        self.rng = np.random.default_rng(0)
        self.highest: list[np.ndarray] = []
        self.counts: list[int] = []
        self.medians: list[float] = []

    def add(self, anomaly_map: np.ndarray) -> None:
        """Adds the map of a normal image, of any shape: the values of its inspected pixels."""
        values = anomaly_map.ravel()
        if len(values) > self.most:
            values = values[self.rng.integers(0, len(values), self.most)]
        kept = min(len(values), math.ceil(self.share * len(values)) + 1)
        self.highest.append(np.partition(values, len(values) - kept)[len(values) - kept :])
        self.counts.append(len(values))
        self.medians.append(float(np.median(values)))

    def threshold(self) -> Threshold:
        """Returns the threshold. Its interval is from a bootstrap over images, since pixels of an image are dependent.

        Raises:
            DatasetError: There are fewer than `fewest` images.
        """
        n = len(self.highest)
        require(n, self.fewest)
        owner = np.repeat(np.arange(n), [len(values) for values in self.highest])
        values = np.concatenate(self.highest)
        order = np.argsort(-values, kind="stable")
        values, owner = values[order], owner[order]
        weight = 1 / (n * np.array(self.counts, np.float64))

        def at(times: np.ndarray) -> float:
            above = np.cumsum((times * weight)[owner])
            return float(values[min(int(np.searchsorted(above, self.fpr, side="right")), len(values) - 1)])

        rng = np.random.default_rng(0)
        drawn = [at(times) for times in rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES // 20)]
        low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        value = at(np.ones(n))
        scale = scale_of(value, np.array(self.medians))
        return Threshold(value, scale, "pixel_quantile", n, self.fpr, (float(low), float(high)))
