"""AUPIMO: recall of each anomalous image at thresholds where almost no pixel of a normal image is a false alarm.

The *shared* false-positive rate of a threshold is the mean over the normal images of the share of their pixels above
it. An image's AUPIMO is its recall, the share of its anomalous pixels above the threshold, averaged over the logarithm
of that rate from 1e-5 to 1e-4. Both are computed for groups of scores, from the highest to the lowest. Samples of the
images share the recall of each image; only the rates change from sample to sample.

Reference: Bertoldo et al., AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High Speed and Low Tolerance,
    BMVC 2024, arXiv 2401.01984.
Differs: The authors' thresholds are equidistant, and their integration starts and ends at the thresholds whose rates
    are nearest to the bounds. Here every group of scores is a threshold, the bounds are exact, and tied scores count
    one half, as in AUROC. Both agree where thresholds lie between all scores and have the bounds as rates
    (tests/golden/README_aupimo.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from afclip_lightning.metrics.curves import UndefinedMetricError
from afclip_lightning.metrics.image_counts import CategoryCounts

FPR_BOUNDS = (1e-5, 1e-4)
"""Lowest and highest shared false-positive rate over which recall is averaged."""


@dataclass(frozen=True)
class Aupimo:
    """AUPIMO of the anomalous images of a category.

    Attributes:
        images: AUPIMO of each image that has anomalous pixels, by image name, in [0, 1].
        error_bounds: Largest error of each by binning, by image name.
        mean: Mean over these images.
        error_bound: Largest error of the mean by binning.
    """

    images: Mapping[str, float]
    error_bounds: Mapping[str, float]
    mean: float
    error_bound: float


def aupimo(images: CategoryCounts) -> Aupimo:
    """Returns the AUPIMO of each anomalous image, with a bound of the error by binning.

    Within a group, recall rises from `T` to `T + dT` while the logarithm of the rate covers a share `d` of its range.
    The exact contribution lies between `d T` and `d (T + dT)`. Their mean is taken, so the error is at most
    `d dT / 2`. A group whose scores are known to be equal has no error.

    Args:
        images: The images of one category.

    Raises:
        UndefinedMetricError: See `check_defined`.
    """
    check_defined(images)
    at = has_recall(images)
    recall, rise = tail_recall(images)
    shares = tail_shares(images, np.ones((1, len(at))))[0]
    values, bounds = recall @ shares, rise[:, ~images.tied] @ shares[~images.tied] / 2
    names = [name for name, used in zip(images.names, at, strict=True) if used]
    return Aupimo(
        dict(zip(names, values.tolist(), strict=True)),
        dict(zip(names, bounds.tolist(), strict=True)),
        float(values.mean()),
        float(bounds.mean()),
    )


def check_defined(images: CategoryCounts) -> None:
    """Checks that a category has an AUPIMO.

    Raises:
        UndefinedMetricError: A mask is not known, no image has anomalous pixels, or the normal images have too few
            pixels for the lowest rate.
    """
    if not images.masked.all():
        raise UndefinedMetricError("undefined unless all masks are known")
    if not has_recall(images).any():
        raise UndefinedMetricError("undefined without anomalous pixels")
    pixels = int(images.normal[images.labels == 0].sum())
    if pixels < round(1 / FPR_BOUNDS[0]):
        raise UndefinedMetricError(
            f"undefined with {pixels:,} pixels of normal images: a rate of {FPR_BOUNDS[0]:g} takes "
            f"{round(1 / FPR_BOUNDS[0]):,}"
        )


def has_recall(images: CategoryCounts) -> np.ndarray:
    """Returns which images have anomalous pixels, `[n]`, bool. A mask that resizing has emptied has none."""
    found: np.ndarray = images.anomalous.sum(axis=1) > 0
    return found


def tail_recall(images: CategoryCounts) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean recall within each group and its rise, each `[a, g]`, of the images with anomalous pixels.

    The mean recall is the mean of the recall without the group and with it. Both results are in [0, 1].
    """
    anomalous = images.anomalous[has_recall(images)]
    rise = anomalous / anomalous.sum(axis=1, keepdims=True)
    return rise.cumsum(axis=1) - rise / 2, rise


def tail_shares(images: CategoryCounts, weights: np.ndarray) -> np.ndarray:
    """Returns the share of the logarithmic range of rates that each group covers, `[r, g]`. A row sums to 1.

    Rates below the range are clamped to its lower end: pixels found without a false alarm are found there too.

    Args:
        images: The n images, a normal one among them.
        weights: `[r, n]`, how often each image is in each sample. Every sample needs a normal image.
    """
    normal = images.labels == 0
    rates = images.normal[normal] / images.normal[normal].sum(axis=1, keepdims=True)
    drawn = weights[:, normal]
    shared = (drawn @ rates).cumsum(axis=1) / drawn.sum(axis=1, keepdims=True)
    low, high = np.log(FPR_BOUNDS)
    passed = (np.log(shared.clip(*FPR_BOUNDS)) - low) / (high - low)
    return np.diff(passed, axis=1, prepend=0.0)
