"""Thresholds: the rule that applies them, and the default thresholds of a head."""

from typing import TYPE_CHECKING, Annotated, Literal, overload

import msgspec

if TYPE_CHECKING:
    import numpy as np

Positive = Annotated[float, msgspec.Meta(gt=0)]
ThresholdFrom = Literal["calibration", "default", "hand"]  # `default`: comes with a head, for any product
Verdict = Literal["normal", "anomalous"]


@overload
def is_anomalous(score: float, threshold: float) -> bool: ...


@overload
def is_anomalous(score: "np.ndarray", threshold: float) -> "np.ndarray": ...


def is_anomalous(score: "float | np.ndarray", threshold: float) -> "bool | np.ndarray":
    """Returns whether a score, or each value of an array, is above the threshold. A score equal to it is normal.

    All of the package uses this rule. A calibrated threshold may equal the score of a normal image, which then raises
    no alarm. The threshold of the best F1 is the number just below the lowest score that it calls anomalous.

    Args:
        score: Score of an image or a pixel, or an array of scores.
        threshold: Threshold in the unit of the scores.
    """
    # NumPy would round the threshold to the float32 of the array, past the score just above or below it.
    return (score if isinstance(score, float) else score.astype(float)) > threshold


class DefaultThreshold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A threshold that comes with a head.

    Attributes:
        value: Scores above it are anomalous, scores equal to it are not. See `is_anomalous`.
        scale: Unit of `probability`: the distance to a typical normal value divided by log 9. `None` if it is not
            known.
    """

    value: float
    scale: Positive | None = None


class DefaultThresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The default thresholds of a head: a first guess for products without a calibration.

    They apply to zero-shot scores of whole images.

    Attributes:
        chosen: How and on which data they were chosen, in one sentence.
        image: Threshold of image scores, or `None`.
        pixel: Threshold of the values of maps, or `None`.
    """

    chosen: str
    image: DefaultThreshold | None = None
    pixel: DefaultThreshold | None = None
