"""AUPIMO: how much of each anomalous image is found where almost no pixel of a normal image is a false alarm.

The *shared* false-positive rate of a threshold is the mean over the normal images of the share of their pixels above
it. An image's AUPIMO is its recall, the share of its anomalous pixels above the threshold, averaged over the logarithm
of that rate from 1e-5 to 1e-4. Its parts are written for groups of scores, visited from the highest down, so that
samples of images need them once: recall does not change with the sample, the rates do.

Reference: Bertoldo et al., AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High Speed and Low Tolerance,
    BMVC 2024, arXiv 2401.01984.
Differs: the authors' thresholds are equidistant, and a bound is the rate of one of them that is nearest; here every
    group of scores is a threshold, the bounds are exact, and scores that are tied count one half, as in AUROC. Where
    the bounds are rates that a threshold has, and thresholds lie between all scores, both are the same
    (tests/golden/README_aupimo.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from afclip_lightning.metrics.curves import UndefinedMetricError
from afclip_lightning.metrics.image_counts import CategoryCounts

FPR_BOUNDS = (1e-5, 1e-4)
"""Between which shared false-positive rates recall is averaged."""


@dataclass(frozen=True)
class Aupimo:
    """AUPIMO of the anomalous images of a category.

    Attributes:
        images: Of each image that has anomalous pixels, by its name, in [0, 1].
        error_bounds: How far binning can have moved each of them.
        mean: Their mean.
        error_bound: How far binning can have moved the mean.
    """

    images: Mapping[str, float]
    error_bounds: Mapping[str, float]
    mean: float
    error_bound: float


def aupimo(images: CategoryCounts) -> Aupimo:
    """Returns the AUPIMO of each anomalous image, with a bound of what binning can have changed.

    In a group recall rises from `T` to `T + dT` while the logarithm of the rate passes a share `d` of its range. The
    truth lies between `d T` and `d (T + dT)`, of which the mean is taken: it is off by at most `d dT / 2`. A group
    whose scores are known to be equal has no error.

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
            pixels, or none, for the lowest of the rates.
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
    """Returns which images have anomalous pixels, `[n]`, bool; a mask that resizing has emptied has none."""
    found: np.ndarray = images.anomalous.sum(axis=1) > 0
    return found


def tail_recall(images: CategoryCounts) -> tuple[np.ndarray, np.ndarray]:
    """Returns, of the images that have anomalous pixels, mean recall within each group and its rise, each `[a, g]`.

    The mean is that of the recall above the group and with it; both are in [0, 1].
    """
    anomalous = images.anomalous[has_recall(images)]
    rise = anomalous / anomalous.sum(axis=1, keepdims=True)
    return rise.cumsum(axis=1) - rise / 2, rise


def tail_shares(images: CategoryCounts, weights: np.ndarray) -> np.ndarray:
    """Returns which share of the range of rates, in logarithms, each group covers, `[r, g]`; a sample's add up to 1.

    Rates below the range count as its lower end: what is found at no false alarm at all is found there too.

    Args:
        images: The n images, a normal one among them.
        weights: `[r, n]`, how often each is in each sample; every sample needs a normal one.
    """
    normal = images.labels == 0
    rates = images.normal[normal] / images.normal[normal].sum(axis=1, keepdims=True)
    drawn = weights[:, normal]
    shared = (drawn @ rates).cumsum(axis=1) / drawn.sum(axis=1, keepdims=True)
    low, high = np.log(FPR_BOUNDS)
    passed = (np.log(shared.clip(*FPR_BOUNDS)) - low) / (high - low)
    return np.diff(passed, axis=1, prepend=0.0)
